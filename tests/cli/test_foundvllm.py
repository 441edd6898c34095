"""aiaas.cli.foundvllm: the models of a vLLM that runs already, as a config writes them."""

from __future__ import annotations

import asyncio

import pytest
import yaml

from aiaas.cli.foundvllm import look_for_vllm, models_yaml
from aiaas.errors import CheckFailed, CommandError, EnvironmentFault
from aiaas.proxy.request.served_models import ServedModel
from tests.fakes.vllm import FakeVllm, Send, json_answer
from tests.ports import free_port


@pytest.mark.parametrize(
    ("listed", "models"),
    [
        ([("base", "/m", None)], ["base"]),
        ([("base", "/m", None), ("small", "/m", None)], ["base", "small"]),
        ([("base", "/m", None), ("sql", "/a", "base")], [{"name": "base"}, {"name": "sql"}]),
        (
            [("base", "/m", None), ("sql", "/a", "base"), ("small", "/m", None)],
            [{"name": "base", "aliases": ["small"]}, {"name": "sql"}],
        ),
        ([("base", "/m", None), ("sql", "/m", "base")], [{"name": "base"}, {"name": "sql"}]),
        ([("a", None, None), ("b", None, None)], [{"name": "a"}, {"name": "b"}]),
        ([('odd: "name"', "/m", None)], ['odd: "name"']),
    ],
    ids=["one", "an alias", "an adapter", "both", "an adapter beside it", "without roots", "a name to quote"],
)
def test_models_are_written_as_the_config_means_them(
    listed: list[tuple[str, str | None, str | None]], models: list[object]
) -> None:
    """Plain names are one model and its aliases; another model has an entry of its own."""
    found = {name: ServedModel(name, root, parent) for name, root, parent in listed}
    assert yaml.safe_load(models_yaml(found)) == models


async def test_a_vllm_is_found_with_its_models() -> None:
    """A trailing /v1 does no harm."""
    fake = await FakeVllm.start()
    fake.gets["/v1/models"] = (Send(json_answer({"data": [{"id": "base", "root": "/m"}]})),)
    found = await asyncio.to_thread(look_for_vllm, fake.url + "/v1")
    await fake.stop()
    assert (found.url, found.names, found.models) == (fake.url, ("base",), '["base"]')


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (json_answer({"error": "no"}, status=401), CheckFailed, "`api_key_env`"),
        (json_answer({"data": []}), CheckFailed, "lists no models"),
        (json_answer({}), CheckFailed, "is this a vLLM?"),
    ],
    ids=["a key", "nothing", "another server"],
)
async def test_an_answer_without_models_is_one_sentence(answer: bytes, kind: type[CommandError], words: str) -> None:
    """The cause, as `aiaas doctor` names it."""
    fake = await FakeVllm.start()
    fake.gets["/v1/models"] = (Send(answer),)
    try:
        with pytest.raises(kind, match=words.replace("?", "[?]")):
            await asyncio.to_thread(look_for_vllm, fake.url)
    finally:
        await fake.stop()


def test_an_address_where_nobody_listens_is_an_environment_fault() -> None:
    """Exit code 3."""
    with pytest.raises(EnvironmentFault, match="connection refused"):
        look_for_vllm(f"http://127.0.0.1:{free_port()}")
