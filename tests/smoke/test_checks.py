"""The checks that need a server of another kind: TLS, a redirect."""

from __future__ import annotations

from dataclasses import replace

from aiaas.httpclient.target import parse_target
from aiaas.smoke.ask import SmokeSettings
from tests.fakes.vllm import FakeVllm, Send, answer
from tests.loadtest.conftest import Secure
from tests.smoke.test_run import run


def secure_settings(secure: Secure, http_port: int | None = None) -> SmokeSettings:
    """A server whose certificate is trusted."""
    target = parse_target(secure.url, ca=secure.certificate)
    return SmokeSettings(target=target, tls=target.tls, http_port=http_port, timeout=5.0)


def moved(location: str) -> Send:
    """A server that redirects."""
    return Send(answer(308, b"", headers=f"location: {location}\r\n"))


async def test_a_certificate_that_is_trusted_passes(secure: Secure) -> None:
    """A new certificate, valid for two days."""
    result = (await run(secure_settings(secure), "certificate"))["certificate"]
    assert result.outcome == "passed", result
    assert "issued by test, 2 days left" in result.seen


async def test_insecure_forgives_every_check_but_the_certificate(secure: Secure) -> None:
    """The run goes on, and the check still fails."""
    strict, lax = parse_target(secure.url), parse_target(secure.url, insecure=True)
    results = await run(SmokeSettings(target=lax, tls=strict.tls, timeout=5.0), "health", "certificate")
    assert {name: result.outcome for name, result in results.items()} == {"health": "passed", "certificate": "failed"}


async def test_plain_http_is_sent_to_https(secure: Secure, fake: FakeVllm) -> None:
    """And no key is sent there."""
    fake.gets["/health"] = (moved("https://127.0.0.1/health"),)
    settings = replace(secure_settings(secure, fake.port), key="sk-1")
    assert (await run(settings, "redirect"))["redirect"].outcome == "passed"
    assert "authorization" not in fake.got[0].headers


async def test_plain_http_that_is_served_fails(secure: Secure, fake: FakeVllm) -> None:
    """The usual cause is the ingress."""
    result = (await run(secure_settings(secure, fake.port), "redirect"))["redirect"]
    assert result.outcome == "failed"
    assert "give it a `tls` section" in result.hint


async def test_a_port_of_plain_http_that_nobody_knows_is_skipped(secure: Secure, fake: FakeVllm) -> None:
    """And one where nobody listens."""
    assert "--http-port" in (await run(secure_settings(secure), "redirect"))["redirect"].seen
    await fake.down()
    result = (await run(secure_settings(secure, fake.port), "redirect"))["redirect"]
    assert (result.outcome, "nothing answers on port" in result.seen) == ("skipped", True)


async def test_a_body_beyond_all_reason_is_not_sent(secure: Secure) -> None:
    """A gigabyte would test the line."""
    settings = replace(secure_settings(secure), big_body=1024**3, model="m")
    result = (await run(settings, "body-too-large"))["body-too-large"]
    assert (result.outcome, result.seen) == ("skipped", "it would take a body of 1073741824 bytes")


async def test_without_keys_nobody_is_refused(secure: Secure) -> None:
    """`auth.enabled: false` in the config."""
    results = await run(replace(secure_settings(secure), has_auth=False), "no-key", "wrong-key")
    assert {result.seen for result in results.values()} == {"`auth.enabled` is false, so every key is accepted"}
