"""The checks of a smoke test: what each one sends, and which function judges the answer.

They run in this order: first those that need nothing, then those that need the key, last the one that uses up the
key's limit.
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
    MISSING_KEY,
    WRONG_KEY,
    hint_for,
    judge_class,
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
from aiaas.smoke.second_source import (
    TOKENS,
    WITH_USAGE,
    check_abort,
    check_direct,
    check_early_abort,
    check_metrics,
    check_usage,
)

PACED_TOKENS: Final = 64  # of the `stream-pace` check: a tenth of a second at 500 tokens/s
NO_PATH: Final = "/v1/aiaas-smoke-no-such-path"
NO_MODEL: Final = "aiaas-smoke-no-such-model"
# Does not have the form of a key: the gateway refuses it by its checksum, without hashing.
BAD_KEY: Final = "sk-aiaas-smoke-wrong"
LARGEST_BODY: Final = 64 * 1024 * 1024  # a larger one would test the network, not the gateway

_NO_AUTH: Final = "`auth.enabled` is false, so every key is accepted"


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
        return skipped(f"the port of plain HTTP is unknown, since HTTPS is on port {target.port}; give --http-port")
    shown = f"[{target.host}]" if ":" in target.host else target.host
    plain = HttpTarget(f"http://{shown}:{port}{target.base}", target.host, port, target.base, None)
    return judge_redirect(await asker.get("/health", target=plain), target.host, port)


async def _unknown_path(asker: Asker) -> Verdict:
    hint = "something other than the gateway answers there"
    return judge_refusal(await asker.get(NO_PATH), 404, "not_found", hint)


async def _hidden_metrics(asker: Asker) -> Verdict:
    return judge_hidden(await asker.get("/metrics"))


async def _no_key(asker: Asker) -> Verdict:
    if not asker.settings.has_auth:
        return skipped(_NO_AUTH)
    hint = "anyone can use it: `auth.enabled` is false, or the URL bypasses the gateway"
    return judge_refusal(await asker.post(asker.body(NO_MODEL), None), 401, MISSING_KEY, hint, challenge=True)


async def _wrong_key(asker: Asker) -> Verdict:
    if not asker.settings.has_auth:
        return skipped(_NO_AUTH)
    hint = "any key is accepted: `auth.enabled` is false, or the URL bypasses the gateway"
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
    hint = "something in front of the gateway changes the request"
    return judge_refusal(await asker.post(asker.body(NO_MODEL), asker.settings.key), 404, "model_not_found", hint)


async def _priority(asker: Asker) -> Verdict:
    hint = "`request.fields` allows `priority`, so each client decides who waits; --skip priority if that is meant"
    seen = await asker.post(asker.body(asker.model, max_tokens=1, priority=-1), asker.settings.key)
    return judge_refusal(seen, 400, "invalid_request", hint)


async def _class(asker: Asker) -> Verdict:
    return judge_class(await asker.generate(max_tokens=1, service_tier="flex"))


async def _large_body(asker: Asker) -> Verdict:
    size = asker.settings.big_body
    if size is None:
        return skipped("the limit is unknown; give -c CONFIG or --body-size SIZE")
    if size > LARGEST_BODY:
        return skipped(f"it would take a body of {size} bytes")
    hint = "the gateway accepts a body of that size: its `server.max_body_size` is larger"
    # For an unknown model, so that nothing is generated if the gateway accepts the body.
    seen = await asker.post(asker.body(NO_MODEL, user="x" * size), asker.settings.key)
    return judge_refusal(seen, 413, "request_too_large", hint)


async def _rate_limit(asker: Asker) -> Verdict:
    settings = asker.settings
    first = await asker.generate(max_tokens=1)
    told = told_of(first.headers)
    if told is None:
        if settings.has_limit:
            hint = "the gateway runs with another config, limits are off, or a proxy removes the headers"
            return judged(
                False, "x-ratelimit headers, since the config limits every key", says(first), hint_for(first, hint)
            )
        return _no_limit(first)
    if told.reset_after > WORTH_SAYING:  # the earlier checks, or an earlier run, used up the bucket
        await asker.rest(told.reset_after, "until the key's limit is whole again")
    try:
        checks = await check_burst(
            settings.target, settings.key, asker.model, settings.endpoint, settings.most_requests
        )
    except CheckFailed as error:
        return skipped(error.message)
    except EnvironmentFault as error:
        return judged(
            False, "answers and 429s", error.message, "the engine cannot take that many short requests at once"
        )
    return judge_limit(checks)


def _no_limit(seen: Seen) -> Verdict:
    if seen.status == 200:
        return skipped("this key has no request limit (no x-ratelimit-limit-requests)")
    return judged(False, "an answer with the limit's headers", says(seen), hint_for(seen, "see the check `completion`"))


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its name, what it shows, whether it needs the key and a model, and the function that runs it."""

    name: str
    shows: str
    keyed: bool
    make: Callable[[Asker], Awaitable[Verdict]]

    @property
    def generates(self) -> bool:
        """Whether it needs an engine that answers: the gateway itself answers the others."""
        return self.keyed and self.make not in (_request_id, _unknown_model, _priority, _large_body)


MODELS_CHECK: Final = "models"
CERTIFICATE: Final = "certificate"
CHECKS: Final = (
    Check("health", "GET /health is 200", False, _health),
    Check("ready", "GET /ready is 200: in rotation, not draining", False, _ready),
    Check(CERTIFICATE, "the certificate is valid, for this host, and renewed in time", False, _certificate),
    Check("redirect", "plain HTTP redirects to https://", False, _redirect),
    Check("unknown-path", "an unknown path is 404 not_found", False, _unknown_path),
    Check("metrics-hidden", "GET /metrics is not public", False, _hidden_metrics),
    Check("no-key", "a request without a key is 401 missing_api_key, with WWW-Authenticate", False, _no_key),
    Check("wrong-key", "a wrong key is 401 invalid_api_key", False, _wrong_key),
    Check(MODELS_CHECK, "the key works, and GET /v1/models lists the model", False, _models),
    Check("completion", "an answer with a choice and usage", True, _completion),
    Check("request-id", "every answer has its own x-request-id", True, _request_id),
    Check("stream", "events that parse, usage only where asked for, [DONE]", True, _stream),
    Check("stream-usage", "the stream reports usage where asked for", True, _stream_usage),
    Check("stream-pace", "events arrive as they are generated: nothing buffers", True, _stream_pace),
    Check("unknown-model", "an unknown model is 404 model_not_found", True, _unknown_model),
    Check("priority", "a request that puts itself ahead of others is 400", True, _priority),
    Check("class", "a request with service_tier flex is batch, and the engine takes it", True, _class),
    Check("body-too-large", "a body over the limit is 413", True, _large_body),
    Check("usage", "streamed or not, a request costs the same, and the metrics agree (--metrics)", True, check_usage),
    Check("metrics", "the metrics port has the plan's metrics (--metrics)", False, check_metrics),
    Check("abort", "a client that disconnects frees the engine (--engine-metrics, --metrics)", True, check_abort),
    Check("abort-early", "so does one that disconnects before its answer begins", True, check_early_abort),
    Check("direct", "the gateway's answer equals the engine's (--direct)", True, check_direct),
    Check("rate-limit", f"the burst and {EXCESS} more: a 429, and admitted after its Retry-After", True, _rate_limit),
)
