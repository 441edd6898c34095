"""The checks of a smoke test: what each sends, and who judges what came.

In the order in which they are made: from what needs nothing, to what needs the key, to what uses the key's limit up.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.limit_check import EXCESS, told_of
from aiaas.loadtest.limit_run import check_burst
from aiaas.smoke.ask import WORTH_SAYING, Asker
from aiaas.smoke.certificate import judge_certificate, read_certificate
from aiaas.smoke.judge import (
    NO_KEY,
    WRONG_KEY,
    hint_for,
    judge_completion,
    judge_hidden,
    judge_ids,
    judge_models,
    judge_ready,
    judge_redirect,
    judge_refusal,
    judge_status,
    models_in,
    says,
)
from aiaas.smoke.judge_metrics import judge_limit
from aiaas.smoke.judge_stream import judge_pace, judge_stream
from aiaas.smoke.result import Seen, Verdict, judged, skipped
from aiaas.smoke.second_source import TOKENS, WITH_USAGE, check_abort, check_direct, check_metrics, check_usage

PACED_TOKENS: Final = 64  # of one whose pace is looked at: a tenth of a second at 500 tokens/s
NO_PATH: Final = "/v1/aiaas-smoke-no-such-path"
NO_MODEL: Final = "aiaas-smoke-no-such-model"
# Not of the form of a key: refused by its checksum, without costing the gateway a hash.
BAD_KEY: Final = "sk-aiaas-smoke-wrong"
LARGEST_BODY: Final = 64 * 1024 * 1024  # a larger one would be a load test of the line

_NO_AUTH: Final = "`auth.enabled` is false, so nobody is refused"


async def _health(asker: Asker) -> Verdict:
    hint = "the ingress has no route to /health, or to another service"
    return judge_status(await asker.get("/health"), 200, hint)


async def _ready(asker: Asker) -> Verdict:
    return judge_ready(await asker.get("/ready"))


async def _certificate(asker: Asker) -> Verdict:
    settings = asker.settings
    if settings.tls is None:
        return skipped("the URL is http://")
    found = await read_certificate(settings.target, settings.tls, settings.timeout)
    return judge_certificate(found, time.time())


async def _redirect(asker: Asker) -> Verdict:
    target, port = asker.settings.target, asker.settings.http_port
    if target.tls is None:
        return skipped("the URL is http://")
    if port is None:
        return skipped(f"with HTTPS on port {target.port} nobody knows that of plain HTTP; name it by --http-port")
    shown = f"[{target.host}]" if ":" in target.host else target.host
    plain = HttpTarget(f"http://{shown}:{port}{target.base}", target.host, port, target.base, None)
    return judge_redirect(await asker.get("/health", target=plain), target.host, port)


async def _unknown_path(asker: Asker) -> Verdict:
    hint = "something else than the gateway answers there"
    return judge_refusal(await asker.get(NO_PATH), 404, "not_found", hint)


async def _hidden_metrics(asker: Asker) -> Verdict:
    return judge_hidden(await asker.get("/metrics"))


async def _no_key(asker: Asker) -> Verdict:
    if not asker.settings.has_auth:
        return skipped(_NO_AUTH)
    hint = "anybody may use it: `auth.enabled` is false, or the URL leads past the gateway"
    return judge_refusal(await asker.post(asker.body(NO_MODEL), None), 401, NO_KEY, hint, challenge=True)


async def _wrong_key(asker: Asker) -> Verdict:
    if not asker.settings.has_auth:
        return skipped(_NO_AUTH)
    hint = "any key is taken: `auth.enabled` is false, or the URL leads past the gateway"
    return judge_refusal(await asker.post(asker.body(NO_MODEL), BAD_KEY), 401, WRONG_KEY, hint, challenge=True)


async def _models(asker: Asker) -> Verdict:
    seen = await asker.get("/v1/models", asker.settings.key)
    verdict = judge_models(seen, asker.settings.model, asker.settings.key is not None)
    asker.refused = seen.status in (401, 403)
    listed = models_in(seen)
    if asker.model is None and listed:
        asker.model = listed[0]
    return verdict


async def _completion(asker: Asker) -> Verdict:
    return judge_completion(await asker.generate(max_tokens=TOKENS), TOKENS)


async def _request_id(asker: Asker) -> Verdict:
    key = asker.settings.key
    answers = [await asker.get(path, key) for path in ("/v1/models", "/v1/models", NO_PATH)]
    return judge_ids(answers)


async def _stream(asker: Asker) -> Verdict:
    return judge_stream(await asker.generate(max_tokens=TOKENS, stream=True), usage_asked=False)


async def _stream_usage(asker: Asker) -> Verdict:
    return judge_stream(await asker.generate(max_tokens=TOKENS, **WITH_USAGE), usage_asked=True)


async def _stream_pace(asker: Asker) -> Verdict:
    return judge_pace(await asker.generate(max_tokens=PACED_TOKENS, ignore_eos=True, stream=True))


async def _unknown_model(asker: Asker) -> Verdict:
    hint = "the request does not reach the gateway as it was sent"
    return judge_refusal(await asker.post(asker.body(NO_MODEL), asker.settings.key), 404, "model_not_found", hint)


async def _large_body(asker: Asker) -> Verdict:
    size = asker.settings.big_body
    if size is None:
        return skipped("nobody knows what is too large; give -c CONFIG or --body-size SIZE")
    if size > LARGEST_BODY:
        return skipped(f"it would take a body of {size} bytes")
    hint = "a body of that size is taken: `server.max_body_size` is larger there"
    # Of a model that there is not: where the body is taken nothing is generated from it.
    seen = await asker.post(asker.body(NO_MODEL, user="x" * size), asker.settings.key)
    return judge_refusal(seen, 413, "request_too_large", hint)


async def _rate_limit(asker: Asker) -> Verdict:
    settings = asker.settings
    first = await asker.generate(max_tokens=1)
    told = told_of(first.headers)
    if told is None:
        if settings.has_limit:
            hint = "another config is in force there, limits are off, or a proxy takes the headers away"
            return judged(
                False, "x-ratelimit headers, as the config limits every key", says(first), hint_for(first, hint)
            )
        return _no_limit(first)
    if told.reset_after > WORTH_SAYING:  # the checks before, or an earlier run, have used the bucket up
        await asker.rest(told.reset_after, "until the key's limit is whole again")
    try:
        checks = await check_burst(
            settings.target, settings.key, asker.model, settings.endpoint, settings.most_requests
        )
    except CheckFailed as error:
        return skipped(error.message)
    except EnvironmentFault as error:
        return judged(
            False, "answers and 429s", error.message, "the engine does not bear so many short requests at once"
        )
    return judge_limit(checks)


def _no_limit(seen: Seen) -> Verdict:
    if seen.status == 200:
        return skipped("this key has no limit of requests (no x-ratelimit-limit-requests)")
    return judged(False, "an answer that tells the limit", says(seen), hint_for(seen, "see the check `completion`"))


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its name, what it shows, whether it needs the key and a model, and how it is made."""

    name: str
    shows: str
    keyed: bool
    make: Callable[[Asker], Awaitable[Verdict]]


MODELS: Final = "models"
CERTIFICATE: Final = "certificate"
CHECKS: Final = (
    Check("health", "GET /health is 200", False, _health),
    Check("ready", "GET /ready is 200: in rotation, not draining", False, _ready),
    Check(CERTIFICATE, "the certificate verifies, is this host's, and has days left", False, _certificate),
    Check("redirect", "plain HTTP is sent to https://", False, _redirect),
    Check("unknown-path", "an unknown path is 404 not_found", False, _unknown_path),
    Check("metrics-hidden", "GET /metrics is not public", False, _hidden_metrics),
    Check("no-key", "no key is 401 missing_api_key, with WWW-Authenticate", False, _no_key),
    Check("wrong-key", "a wrong key is 401 invalid_api_key", False, _wrong_key),
    Check(MODELS, "the key is taken, and GET /v1/models lists the model", False, _models),
    Check("completion", "an answer with a choice and usage", True, _completion),
    Check("request-id", "every answer bears an x-request-id of its own", True, _request_id),
    Check("stream", "events that parse, no usage unasked, [DONE]", True, _stream),
    Check("stream-usage", "usage in the stream where asked for", True, _stream_usage),
    Check("stream-pace", "events come as they are generated: nothing buffers", True, _stream_pace),
    Check("unknown-model", "an unknown model is 404 model_not_found", True, _unknown_model),
    Check("body-too-large", "a body over the limit is 413", True, _large_body),
    Check("usage", "whole and streamed cost the same, and the metrics agree (--metrics)", True, check_usage),
    Check("metrics", "the plan's metrics are there to be scraped (--metrics)", False, check_metrics),
    Check("abort", "who goes away frees the engine (--engine-metrics, --metrics)", True, check_abort),
    Check("direct", "the gateway's answer is the engine's own (--direct)", True, check_direct),
    Check("rate-limit", f"the burst and {EXCESS} more: a 429, and after the wait it told, admitted", True, _rate_limit),
)
