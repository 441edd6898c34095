"""A whole smoke test on real sockets: right servers pass, and each check fails where it should, with its hint."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from aiaas.errors import EnvironmentFault
from aiaas.httpclient.target import parse_target
from aiaas.limits.model import Rate
from aiaas.smoke.ask import SmokeSettings
from aiaas.smoke.checks import CHECKS
from aiaas.smoke.names import CHECK_NAMES
from aiaas.smoke.result import Result
from aiaas.smoke.run import NAMES, run_checks
from tests.fakes.gateway import KEY, LARGEST_BODY, FakeGateway, whole
from tests.fakes.vllm import (
    DONE,
    STREAM_HEAD,
    Close,
    FakeVllm,
    Hang,
    Send,
    Sleep,
    Step,
    answer,
    chunk,
    error_answer,
    error_stream_event,
    json_answer,
    stream,
    token_event,
    usage_event,
)
from tests.loadtest.conftest import Secure

HTML = Send(answer(502, b"<html><title>502 Bad Gateway</title></html>", content_type="text/html"))
ALL_MADE = set(NAMES) - {"certificate", "redirect"}


@pytest.fixture
async def good() -> AsyncIterator[FakeGateway]:
    """A gateway that does everything right."""
    made = await FakeGateway.start()
    assert isinstance(made, FakeGateway)
    yield made
    await made.stop()


async def test_tls_on_one_side_only_ends_it(secure: Secure) -> None:
    """One line instead of twenty failed checks."""
    with pytest.raises(EnvironmentFault, match="the server speaks TLS; write https:// instead of http://"):
        await run(SmokeSettings(parse_target(secure.url.replace("https://", "http://")), timeout=20.0))


def test_the_names_for_completion_are_those_of_the_checks() -> None:
    """They stand apart, since importing the checks is slow."""
    assert NAMES == CHECK_NAMES


async def run(settings: SmokeSettings, *names: str) -> dict[str, Result]:
    """The results of these checks, all of them where none is named."""
    results: list[Result] = []
    await run_checks(settings, names or NAMES, lambda _: None, results.append, lambda _: None)
    return {result.name: result for result in results}


def settings_of(fake: FakeVllm, **more: object) -> SmokeSettings:
    """The facts that are known of a fake gateway."""
    return replace(SmokeSettings(target=parse_target(fake.url), key=KEY, big_body=LARGEST_BODY, timeout=5.0), **more)


@pytest.mark.parametrize(
    ("name", "steps", "seen", "hint"),
    [
        pytest.param("health", (HTML,), "502: text/html: 502 Bad Gateway", "an HTML page comes from the", id="health"),
        pytest.param("ready", (Send(json_answer({"status": "draining"}, status=503)),), "503", "draining", id="ready"),
        pytest.param(
            "unknown-path", (Send(json_answer({})),), "200 with application/json", "something other", id="path"
        ),
        pytest.param(
            "unknown-path",
            (Send(json_answer({"detail": "Not Found"}, status=404)),),
            "another form",
            "is not aiaas",
            id="path's form",
        ),
        pytest.param("metrics-hidden", (Send(answer(200, b"a 1\n")),), "200", "metrics are public", id="metrics"),
        pytest.param("no-key", (Send(json_answer(whole(5))),), "200", "`auth.enabled` is false", id="no key taken"),
        pytest.param(
            "no-key", (Send(error_answer(401, "No.")),), "401: No.", "bypasses the gateway", id="vLLM's own 401"
        ),
        pytest.param("wrong-key", (Send(json_answer(whole(5))),), "200", "any key is accepted", id="any key taken"),
        pytest.param("models", (HTML,), "502", "an HTML page", id="no models"),
        pytest.param(
            "models", (Send(json_answer({"data": []})),), "an empty list", "may use other models", id="empty models"
        ),
        pytest.param("completion", (Send(json_answer({"choices": [{}]})),), "no usage", "vLLM behind", id="no usage"),
        pytest.param(
            "completion", (Send(json_answer(whole(9))),), "9 output", "max_tokens did not reach", id="too long"
        ),
        pytest.param("completion", (Hang(),), "not complete within", "overloaded or hangs", id="silence"),
        pytest.param("completion", (Close(),), "closed before an answer", "closed the connection", id="closed"),
        pytest.param(
            "stream", (Send(stream(token_event(), token_event())),), "no [DONE] after 2 events", "timeout", id="no DONE"
        ),
        pytest.param(
            "stream",
            (Send(STREAM_HEAD), Send(chunk(token_event())), Sleep(0.02), Close()),
            "in the middle of the answer",
            "timeout is too short",
            id="closed mid-stream",
        ),
        pytest.param(
            "stream",
            (Send(stream(b"data: {nonsense\n\n", DONE)),),
            "event 1 is not JSON",
            "invalid data",
            id="garbage events",
        ),
        pytest.param(
            "stream",
            (Send(stream(token_event(), error_stream_event(), DONE)),),
            "event 2 is an error",
            "failed in the middle",
            id="engine dies",
        ),
        pytest.param(
            "stream",
            (Send(stream(token_event(), usage_event(), DONE)),),
            "usage on 1 of them",
            "force-include-usage",
            id="unasked usage",
        ),
        pytest.param(
            "stream", (Send(json_answer(whole(5))),), "200 with application/json", "rewrites answers", id="no stream"
        ),
        pytest.param(
            "stream-usage",
            (Send(stream(token_event(), DONE)),),
            "no usage",
            "`stream_options` did not",
            id="asked usage",
        ),
        pytest.param(
            "stream-pace",
            (Sleep(0.15), Send(stream(*[token_event()] * 20, DONE))),
            "20 events in 1 reads",
            "buffers streams",
            id="buffered",
        ),
        pytest.param("unknown-model", (Send(json_answer(whole(5))),), "200", "changes the request", id="any model"),
        pytest.param("priority", (Send(json_answer(whole(1))),), "200", "`request.fields` allows", id="priority"),
        pytest.param(
            "class", (Send(json_answer(whole(1))),), "200 without x-aiaas-class", "a proxy removes", id="class"
        ),
        pytest.param(
            "class",
            (Send(json_answer(whole(1), headers="x-aiaas-class: default\r\n")),),
            "x-aiaas-class: default",
            "a proxy removes",
            id="another class",
        ),
        pytest.param(
            "class",
            (Send(json_answer({"object": "error", "message": "Got priority 20 but"}, status=400)),),
            "400: Got priority 20 but",
            "--scheduling-policy priority, or write `scheduling: fcfs`",
            id="engine refuses the priority",
        ),
        pytest.param("body-too-large", (Send(json_answer(whole(5))),), "200", "accepts a body", id="body taken"),
        pytest.param(
            "body-too-large",
            (Send(answer(413, b"<html>", content_type="text/html")),),
            "413",
            "limit is below",
            id="ingress's 413",
        ),
        pytest.param("usage", (), "no usage in the streamed answer", "stream-usage", id="usage"),
        pytest.param(
            "direct", (Send(json_answer(whole(20, model="x"))),), "they differ at model", "another model", id="direct"
        ),
    ],
)
async def test_each_check_can_fail(good: FakeGateway, name: str, steps: tuple[Step, ...], seen: str, hint: str) -> None:
    """For the right reason, with the usual cause, and no independent check fails with it."""
    good.breaks[{"usage": "stream-usage"}.get(name, name)] = steps or (Send(stream(token_event(), DONE)),)
    engine = await FakeGateway.start()
    settings = settings_of(good, timeout=1.0, direct=parse_target(engine.url), direct_key=KEY)
    try:
        results = await run(settings, name)
    finally:
        await engine.stop()
    failed = results[name]
    assert failed.outcome == "failed"
    assert seen in failed.seen
    assert hint in failed.hint
    assert {one.name for one in results.values() if one.outcome == "failed"} == {name}


def test_each_check_has_a_case_in_which_it_fails() -> None:
    """Here, or in the tests for servers of another kind."""
    marks = test_each_check_can_fail.pytestmark  # type: ignore[attr-defined]
    here = {case.values[0] for case in marks[0].args[1]}
    elsewhere = {"certificate", "redirect", "request-id", "metrics", "abort", "abort-early", "rate-limit"}
    assert here | elsewhere == set(NAMES)


async def test_a_right_server_passes(good: FakeGateway) -> None:
    """All checks that need nothing but the key; the others are skipped and say what they need."""
    results = await run(settings_of(good))
    assert {name for name, result in results.items() if result.outcome == "failed"} == set()
    skipped = {name: result.seen for name, result in results.items() if result.outcome == "skipped"}
    unseen = {"metrics", "abort", "abort-early", "direct"}
    assert set(skipped) == {"certificate", "redirect", "stream-pace", "rate-limit"} | unseen
    assert skipped["rate-limit"].startswith("this key has no request limit")
    assert skipped["metrics"].startswith("needs --metrics URL")
    assert {name for name, result in results.items() if result.seconds is None} == set(skipped)


async def test_answers_that_share_an_id_fail_the_request_id(good: FakeGateway) -> None:
    """Such as those of a cache in front."""
    good.breaks["models"] = (Send(json_answer({"data": [{"id": "m"}]}, headers="x-request-id: same\r\n")),)
    result = (await run(settings_of(good), "request-id"))["request-id"]
    assert (result.outcome, result.seen) == ("failed", "2 different, such as same")
    assert "caches answers" in result.hint


async def test_the_limit_is_waited_for_and_then_tested(good: FakeGateway) -> None:
    """600 a minute and 4 at once: other checks wait as told, and the last one sees the burst, the 429s and the wait."""
    good.rate = Rate(600, 4)
    results = await run(settings_of(good), "completion", "rate-limit")
    assert results["rate-limit"].outcome == "passed", results["rate-limit"]
    assert "request after the Retry-After: admitted" in results["rate-limit"].seen


async def test_wait_for_the_limit_is_not_in_a_checks_time(good: FakeGateway) -> None:
    """The second answer comes one and a half seconds after the first, and took a moment."""
    good.rate = Rate(40, 1)
    results = await run(settings_of(good), "completion", "stream")
    assert {name: result.outcome for name, result in results.items()} == dict.fromkeys(results, "passed")
    assert (results["stream"].seconds or 9) < 1.2


async def test_a_limiter_that_admits_too_much_fails(good: FakeGateway) -> None:
    """Replicas that count separately: the headers say 4, and twice as many are admitted."""
    good.rate = Rate(60, 4)
    good.breaks["rate-limit"] = (
        Send(json_answer(whole(1), headers="x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 3\r\n")),
    )
    result = (await run(settings_of(good), "rate-limit"))["rate-limit"]
    assert result.outcome == "failed"
    assert "admitted under overload: 9" in result.seen
    assert "each count alone" in result.hint


async def test_many_requests_need_a_yes(good: FakeGateway) -> None:
    """A burst of 300 takes 305; without --yes it is skipped and only one is sent."""
    good.rate = Rate(60_000, 300)
    results = await run(settings_of(good), "rate-limit")
    assert results["rate-limit"].outcome == "skipped"
    assert "at once, so a 429 takes" in results["rate-limit"].seen
    assert "--yes" in results["rate-limit"].seen
    assert good.admitted <= 3


async def test_a_limit_that_the_config_promises_and_nobody_tells_fails(good: FakeGateway) -> None:
    """The config has a limit for every key."""
    result = (await run(settings_of(good, has_limit=True), "rate-limit"))["rate-limit"]
    assert result.outcome == "failed"
    assert "with another config" in result.hint


async def test_a_refused_key_is_told_once(good: FakeGateway) -> None:
    """`models` fails, also where it was not chosen; checks with the key are skipped; the key is never shown."""
    results = await run(settings_of(good, key="sk-other"), "health", "completion", "rate-limit")
    assert {name: result.outcome for name, result in results.items()} == {
        "health": "passed",
        "models": "failed",
        "completion": "skipped",
        "rate-limit": "skipped",
    }
    assert "another key file" in results["models"].hint
    assert results["completion"].seen == "the server refuses the key; see `models`"
    assert "sk-other" not in str(results)


async def test_a_dead_backend_is_one_failed_check(good: FakeGateway) -> None:
    """The checks that need an answer are not judged; all others are."""
    error = {"message": "no", "type": "server_error", "code": "no_healthy_backend"}
    dead = (Send(json_answer({"error": error}, status=503)),)
    good.breaks = {check.name: dead for check in CHECKS if check.generates}
    results = await run(settings_of(good))
    assert [name for name, result in results.items() if result.outcome == "failed"] == ["completion"]
    assert "the gateway cannot reach an engine" in results["completion"].hint
    unjudged = [name for name, result in results.items() if result.seen.startswith("not judged: the gateway")]
    assert {"stream", "stream-usage", "stream-pace", "class", "usage", "rate-limit"} <= set(unjudged)
    assert results["stream"].seen.endswith("see `completion`")
    assert results["models"].outcome == results["unknown-model"].outcome == "passed"


async def test_nobody_there_is_one_line() -> None:
    """And no check at all."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        target = parse_target(f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(EnvironmentFault, match="connection refused; is the server running"):
            await run(SmokeSettings(target=target, key=KEY))


async def test_a_certificate_that_does_not_verify_fails_alone(secure: Secure) -> None:
    """No key goes over such a connection."""
    target = parse_target(secure.url)
    results = await run(SmokeSettings(target=target, tls=target.tls, key=KEY))
    assert results["certificate"].outcome == "failed"
    assert "self-signed" in results["certificate"].seen
    assert "--ca FILE" in results["certificate"].hint
    assert {result.outcome for name, result in results.items() if name != "certificate"} == {"skipped"}
    assert secure.fake.got == []


async def test_a_check_that_hangs_ends_with_its_time(good: FakeGateway) -> None:
    """Every answer has a timeout."""
    good.breaks = {check.name: (Hang(),) for check in CHECKS if check.name != "health"}
    async with asyncio.timeout(10):
        results = await run(settings_of(good, timeout=0.05))
    assert results["ready"].outcome == "failed"
    assert "not complete within" in results["ready"].seen
