"""aiaas.proxy.request.visit: a request's session, and which turn it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aiaas.openai import paths
from aiaas.openai.peek import peek
from aiaas.openai.session import session_number
from aiaas.proxy.request.visit import Visit, visit_of
from aiaas.proxy.telemetry.record import Record
from tests.proxy.conftest import config_of, plan_of


def visit(body: bytes, name: str | None = None, key_id: str = "k", model: str = "m") -> Visit:
    """A request with this body."""
    return Visit(key_id, model, name, peek(body, paths.CHAT, session=True).session, body, 1, 0.0, stream=False)


def body(answers: int, **fields: Any) -> bytes:
    """A chat with so many answers."""
    messages = [{"role": "user", "content": "hello"}, *[{"role": "assistant", "content": "yes"}] * answers]
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def test_session_is_the_first_that_is_named() -> None:
    """A header, else a field, else the opening, which belongs to the key and the model."""
    field = body(1, prompt_cache_key="field")
    assert visit(field, "header").session == session_number("k", "header")
    assert visit(field).session == session_number("k", "field")
    assert visit(body(0)).session == visit(body(3)).session
    sessions = {visit(body(0), None, key, model).session for key in ("a", "b") for model in ("m", "n")}
    assert len(sessions) == 4


def test_session_needs_a_conversation() -> None:
    """None without one."""
    assert visit(b'{"model":"m"}').session is None


@pytest.mark.parametrize("padding", [0, 200_000])
@pytest.mark.parametrize("answers", [0, 1, 5])
def test_first_turn_has_no_answer(answers: int, padding: int) -> None:
    """Also in a body of which only the beginning and the end are read."""
    for fields in ({"tools": "x" * padding}, {}):
        padded = body(answers, **fields)
        assert visit(padded).is_first == (answers == 0)
        assert visit(padded).answers() == answers
    assert visit(b'{"tools":"%b",' % (b"x" * padding) + body(answers)[1:]).is_first == (answers == 0)


VISITS = {
    "two endpoints": (["http://a:1", "http://b:1"], {}, paths.CHAT, True),
    "one endpoint": (["http://a:1"], {}, paths.CHAT, False),
    "another balance": (["http://a:1", "http://b:1"], {"balance": "round_robin"}, paths.CHAT, False),
    "the old name": (["http://a:1", "http://b:1"], {"balance": "prefix_hash"}, paths.CHAT, True),
    "a path that generates nothing": (["http://a:1", "http://b:1"], {}, paths.EMBEDDINGS, False),
}


@pytest.mark.parametrize(("urls", "backend", "path", "visits"), VISITS.values(), ids=VISITS)
def test_visit_where_there_is_a_choice(urls: list[str], backend: dict[str, Any], path: str, visits: bool) -> None:
    """Of endpoints, by the session, for an answer that is generated."""
    plan = plan_of(config_of(urls, {"endpoints": [paths.CHAT, paths.EMBEDDINGS], **backend}, {}))
    record = Record("id", path, 5.0, "1.2.3.4", key_id="k")
    written = body(0)
    found = visit_of(record, plan.routes[path]["m"], "name", peek(written, path), written, 7)
    assert (found is not None) == visits
    if found is not None:
        assert (found.session, found.tokens, found.now) == (session_number("k", "name"), 7, 5.0)
