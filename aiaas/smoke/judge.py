"""The verdicts on single answers: status, form, headers; and the usual cause of each failure. Pure.

The most common fault of a deployment is an ingress that answers in the gateway's place, with an HTML page or an error
in another form than the gateway's. So every hint first looks at which of the two seems to have answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from aiaas.openai.toplevel import UNREADABLE
from aiaas.openai.usage import TokenUsage, usage_of
from aiaas.smoke.result import Seen, Verdict, judged, skipped

REDIRECTS: Final = (301, 302, 307, 308)
MISSING_KEY: Final = "missing_api_key"
WRONG_KEY: Final = "invalid_api_key"
CLASS_HEADER: Final = "x-aiaas-class"


class _Error(msgspec.Struct):
    message: str
    type: str
    code: str | int | None = None


class _Body(msgspec.Struct):
    error: _Error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class _Completion(msgspec.Struct):
    choices: list[msgspec.Raw]


_BODY: Final[msgspec.json.Decoder[_Body]] = msgspec.json.Decoder(_Body)
_MODELS: Final[msgspec.json.Decoder[_Models]] = msgspec.json.Decoder(_Models)
_COMPLETION: Final[msgspec.json.Decoder[_Completion]] = msgspec.json.Decoder(_Completion)

_BY_ERROR: Final = {
    "connect": "the server no longer accepts connections: did the gateway restart or crash?",
    "tls": "check the certificate, or the TLS proxy in front of the gateway; see the check `certificate`",
    "timeout": "the engine is overloaded or hangs, or something drops the connection; try a longer --timeout",
    "reset": "a proxy or the gateway closed the connection: a crash, a proxy's limit, or a TLS port (then write https://)",
    "cut": "the answer was cut off: the gateway or the engine died, or a proxy's timeout is too short",
    "garbage": "something other than the gateway answers there, or it is a TLS port (then write https://)",
    "in_stream": "the engine failed on the request; its log says why",
}
_BY_CODE: Final = {
    "no_healthy_backend": "the gateway cannot reach an engine: is the backend's URL right, is it up, is it firewalled?",
    "upstream_error": "the engine sent an invalid answer or died; the gateway's log names it",
    "upstream_timeout": "the engine was silent for longer than the backend's `timeout`",
    "overloaded": "the queue in front of the engine is full",
    "draining": "this gateway is shutting down; is a rollout in progress?",
    MISSING_KEY: "no key was given: --api-key-file FILE or $AIAAS_API_KEY",
    WRONG_KEY: "the gateway does not know the key: another key file, a Secret not yet synced, a revoked or expired key",
    "model_not_found": "the config does not have that model, or the key may not use it",
    "not_found": "the URL is not that of the gateway, or no backend has this path in its `endpoints`",
    "not_offered": "no backend of the model has this path in its `endpoints`, or its engine does not have it",
    "request_too_large": "`server.max_body_size` is smaller than expected",
    "rate_limit_exceeded": "the key's own limit; use a key that nobody else uses",
    "tokens_limit_exceeded": "the key's token limit; use a key with a larger limit",
    "quota_exceeded": "the key's quota is used up",
    "concurrency_limit_exceeded": "the key has too many requests in flight; use a key that nobody else uses",
    "too_many_wrong_keys": "too many wrong keys came from this address; wait a minute",
}
_HTML: Final = (
    "an HTML page comes from the ingress or another proxy, not from the gateway: its route (host, path, "
    "service, port) is wrong, no gateway pod is ready, or it replaces the gateway's errors with its own page"
)


# Traefik and Envoy answer in plain text where nginx and HAProxy send a page.
_NO_GATEWAY_STATUSES: Final = (502, 503, 504)
_NO_GATEWAY: Final = (
    "the ingress or another proxy reaches no gateway: no gateway pod is ready, its route leads to another port, or a "
    "NetworkPolicy blocks it"
)
_SCHEDULING: Final = (
    "the engine refuses the `priority` that the gateway writes: start it with --scheduling-policy priority, or write "
    "`scheduling: fcfs` in the backend"
)
_NO_VLLM: Final = "is vLLM behind the gateway, and does the model generate text?"


def error_of(seen: Seen) -> tuple[str, str] | None:
    """Code and message of an error in OpenAI's form; None for other forms."""
    try:
        error = _BODY.decode(seen.body).error
    except UNREADABLE:
        return None
    return str(error.code if error.code is not None else ""), error.message


def says(seen: Seen) -> str:
    """Describe an answer in a few words."""
    if seen.status is None:
        return seen.detail or seen.error or "no answer"
    error = error_of(seen)
    if error is not None:
        code = "" if error[0] == str(seen.status) else error[0]  # vLLM's own code is the status
        return f"{seen.status} {code}".rstrip() + f": {error[1]}"
    if seen.status in REDIRECTS:
        return f"{seen.status} to {seen.headers.get('location') or 'nowhere'}"
    if seen.error and seen.detail:
        return f"{seen.status}: {seen.detail}"
    return f"{seen.status} with {seen.headers.get('content-type') or 'no content type'}"


def hint_for(seen: Seen, otherwise: str) -> str:
    """The usual cause of an unexpected answer."""
    error = error_of(seen)
    if seen.status == 413 and error is None:
        return "the ingress or another proxy refuses it first: its body limit is below the gateway's"
    kind = seen.headers.get("content-type", "")
    if "html" in kind:
        return _HTML
    if seen.status in _NO_GATEWAY_STATUSES and error is None and "json" not in kind:
        return _NO_GATEWAY
    if error is not None and (hint := _BY_CODE.get(error[0].removeprefix("user_"))) is not None:
        return hint
    if seen.status == 400 and b"riority" in seen.body:
        return _SCHEDULING
    if seen.status in REDIRECTS:
        return "a proxy redirects: does the URL need https://, or another host?"
    if seen.error in _BY_ERROR and (seen.status is None or seen.error in ("cut", "timeout")):
        return _BY_ERROR[seen.error]
    return otherwise


def judge_status(seen: Seen, wanted: int, hint: str) -> Verdict:
    """Check the status only."""
    return judged(seen.status == wanted, str(wanted), says(seen), hint_for(seen, hint))


def judge_ready(seen: Seen) -> Verdict:
    """`/ready`: in rotation, not draining. The gateway itself never answers 404 there; an ingress that does not route
    it does, as ours do not: it is for the kubelet."""
    if seen.status == 404:
        return skipped("the ingress does not route /ready, which is for the kubelet")
    return judge_status(seen, 200, "this gateway is draining or has not loaded a config")


def judge_refusal(seen: Seen, status: int, code: str, hint: str, challenge: bool = False) -> Verdict:
    """Expect the gateway's own error in OpenAI's form; with `challenge` also `WWW-Authenticate: Bearer`."""
    expected = f"{status} {code}" + (" with WWW-Authenticate: Bearer" if challenge else "")
    error = error_of(seen)
    if seen.status != status:
        return judged(False, expected, says(seen), hint_for(seen, hint))
    if error is None:
        other = "a proxy refused it, or the server is not aiaas"
        return judged(False, expected, f"{says(seen)}, an error in another form than OpenAI's", hint_for(seen, other))
    if error[0] != code:
        return judged(False, expected, says(seen), hint_for(seen, hint))
    if challenge and not seen.headers.get("www-authenticate", "").lower().startswith("bearer"):
        seen_text = f"{says(seen)} without WWW-Authenticate: Bearer"
        return judged(False, expected, seen_text, "a proxy removes the header")
    return judged(True, expected, f"{status} {code}", "")


def judge_hidden(seen: Seen) -> Verdict:
    """Check that the public port does not serve `/metrics`."""
    hint = "metrics are public: the ingress routes /metrics, or all of /, to the metrics port or to the engine"
    return judged(seen.status != 200, "anything but 200", says(seen), hint)


def models_in(seen: Seen) -> tuple[str, ...] | None:
    """The ids of a list of models; None where the answer is something else."""
    if seen.status != 200:
        return None
    try:
        return tuple(model.id for model in _MODELS.decode(seen.body).data)
    except UNREADABLE:
        return None


def judge_models(seen: Seen, wanted: str | None, has_key: bool) -> Verdict:
    """Check the list of models that the key may use, and that it has the model of this test."""
    expected = "a list of models" if wanted is None else f"a list of models with {wanted} in it"
    listed = models_in(seen)
    if listed is None:
        hint = "something other than the gateway answers there; is the URL right?"
        if seen.status in (401, 403):
            hint = _BY_CODE[WRONG_KEY if has_key else MISSING_KEY]
        elif seen.status == 404:
            hint = "none of the config's backends has /v1/models in its `endpoints`; give --model"
        return judged(False, expected, says(seen), hint_for(seen, hint))
    shown = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    held = bool(listed) if wanted is None else wanted in listed
    hint = "the key may use other models, or the config has others; see `aiaas keys show` and `backends.*.models`"
    return judged(held, expected, shown or "an empty list", hint)


def judge_class(seen: Seen) -> Verdict:
    """Check that a request of a lower class is answered, and says its class."""
    expected = f"200 with {CLASS_HEADER}: batch"
    if seen.status != 200 or seen.error:
        return judged(False, expected, says(seen), hint_for(seen, "the engine refused it; the gateway's log says why"))
    written = seen.headers.get(CLASS_HEADER)
    shown = f"200 with {CLASS_HEADER}: {written}" if written else f"200 without {CLASS_HEADER}"
    return judged(written == "batch", expected, shown, "a proxy removes the header, or the server is not aiaas")


def judge_completion(seen: Seen, most_tokens: int) -> Verdict:
    """Check a whole answer: choices, usage, and not longer than asked for."""
    expected = f"200, a choice, usage of 1 to {most_tokens} output tokens"
    if seen.status != 200 or seen.error:
        return judged(False, expected, says(seen), hint_for(seen, "the engine refused it; the gateway's log says why"))
    if "json" not in seen.headers.get("content-type", ""):
        return judged(False, expected, says(seen), hint_for(seen, _BY_ERROR["garbage"]))
    try:
        choices = len(_COMPLETION.decode(seen.body).choices)
    except UNREADABLE:
        return judged(False, expected, "200 with JSON that is not a completion", _NO_VLLM)
    usage = usage_of(seen.body)
    if not choices or usage is None:
        missing = "no choice" if not choices else "no usage"
        return judged(False, expected, f"200 with {missing}", _NO_VLLM)
    text = f"200, {usage.input_tokens} input and {usage.output_tokens} output tokens"
    return judged(
        0 < usage.output_tokens <= most_tokens and usage.input_tokens > 0,
        expected,
        text,
        "the request's max_tokens did not reach the engine, or its answer is empty",
    )


def usage_in(seen: Seen) -> TokenUsage | None:
    """The usage of a good whole answer."""
    usage = usage_of(seen.body) if seen.status == 200 and not seen.error else None
    return None if usage is None else usage.without_cached()


def judge_ids(answers: Sequence[Seen]) -> Verdict:
    """Check that every answer has a request id, and that they all differ."""
    expected = f"x-request-id on each of {len(answers)} answers, all different"
    broken = next((seen for seen in answers if seen.status is None), None)
    if broken is not None:
        return judged(False, expected, says(broken), hint_for(broken, ""))
    ids = [seen.headers.get("x-request-id", "") for seen in answers]
    missing = sum(not one for one in ids)
    if missing:
        html = next((seen for seen in answers if not seen.headers.get("x-request-id")), answers[0])
        return judged(
            False,
            expected,
            f"{missing} without one",
            hint_for(html, "a proxy removes the header, or the server is not aiaas"),
        )
    hint = "a proxy caches answers, or sends a fixed X-Request-Id and is in `server.trusted_proxies`"
    return judged(len(set(ids)) == len(ids), expected, f"{len(set(ids))} different, such as {ids[0]}", hint)


def judge_redirect(seen: Seen, host: str, port: int) -> Verdict:
    """Check that plain HTTP is answered with a redirect to https:// on the same host."""
    expected = f"a redirect to https://{host}"
    if not seen.connected:
        return skipped(f"nothing answers on port {port} ({seen.detail}), so plain HTTP is not served")
    if seen.status not in REDIRECTS:
        hint = "the ingress serves plain HTTP: give it a `tls` section for the host, and turn on its redirect"
        return judged(False, expected, says(seen), hint)
    location = seen.headers.get("location", "")
    try:
        parts = urlsplit(location)
        held = parts.scheme == "https" and parts.hostname == host
    except ValueError:
        held = False
    return judged(
        held, expected, f"{seen.status} to {location or 'nowhere'}", "the redirect leads to another host or to http"
    )
