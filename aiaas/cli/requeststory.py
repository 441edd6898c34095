"""The story of one request, for `aiaas explain ID`: each decision in the order in which it was made. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aiaas.cli.words import clock_time, size, time_span
from aiaas.proxy.admin.model import AttemptView, BackendView, RequestView, ResumeView, Status

# Why a session's request went to its endpoint; docs/replicas.md.
TURNS: Final = {
    "stayed": "the session's last turn went there, so its prompt is cached there",
    "first": "the first turn of its session went to the session's home",
    "load": "the session moved: another endpoint would read its prompt sooner",
    "full": "the session moved: its endpoint had no free slot",
    "down": "the session moved: its endpoint was down, or gone",
    "back": "the session returned to the endpoint that it had left",
    "agreed": "the session moved to its home, as another gateway serves it, too",
    "parallel": "many requests of the session were in flight, so it went where the fewest were",
    "retry": "another endpoint than the one that had failed",
}
BALANCES: Final = {"round_robin": "each endpoint in turn (balance: round_robin)"}
LEAST_BUSY: Final = "the endpoint with the fewest requests in flight"
# Why a key was refused; docs/logs.md.
KEY_REASONS: Final = {
    "missing": "it had no key, or not in the form `Authorization: Bearer KEY`",
    "malformed": "its key is mistyped or cut short: it does not have the form of a key of aiaas, and was not imported",
    "unknown_id": "the key file does not have the id of its key: the key was removed, or is another installation's",
    "wrong_secret": "the secret in its key is not that of the record: the key was rotated, or made up",
    "revoked": "its key is revoked",
    "expired": "its key has expired; aiaas keys rotate NAME makes a new one",
}
# How a stream that broke off went on; docs/resume.md.
WAYS: Final = {
    "again": "the request was sent once more, since no event had come",
    "continue": "the other engine wrote on from the text that the client had",
    "replay": "the other engine wrote it again from its beginning, and it was the same",
}
# Why it did not, by outcome.
RESUME_ENDS: Final = {
    "finished": "only its end was missing, which aiaas wrote",
    "nobody": "no other endpoint was up, or none had a slot within resume_wait",
    "not_resumable": "it could not go on",
    "differs": "the other engine wrote another text",
    "died_again": "the other engine died, too",
}
ENDS: Final = {
    "upstream": "vLLM, which finished its answer",
    "client": "the client, which left",
    "gateway": "aiaas itself",
}


def story(request: RequestView, status: Status) -> str:
    """Everything that was decided about a request, line by line."""
    return "\n".join(f"{name:<10}{text}" if name else f"{'':<10}{text}" for name, text in _lines(request, status))


def headline(request: RequestView) -> str:
    """One line: for a list of several."""
    ended = f"{request.status}" if request.phase == "ended" else request.phase
    return f"{request.id}  {clock_time(request.at)}  {ended}  {request.path}  {request.user or '-'}"


def _lines(request: RequestView, status: Status) -> Iterator[tuple[str, str]]:
    yield "request", request.id + ("" if request.worker is None else f", by worker {request.worker}")
    kind = ", a stream" if request.stream else ""
    arrived = f"{clock_time(request.at)} from {request.client_address}: {request.path}"
    yield "arrived", f"{arrived}, {size(request.request_bytes)}{kind}"
    yield "key", _key(request)
    if request.model is not None:
        yield "model", request.model
    for number, limit in enumerate(request.limits or ()):
        again = "" if limit.resets_in is None else f"; whole again in {time_span(limit.resets_in)}"
        left = f"{limit.remaining} left then, of {limit.of} a minute{again}"
        yield "" if number else "limits", f"{limit.limit}: {left}"
    if request.queue_seconds or request.phase == "queued":
        place = f", as number {request.queue_position} of its key" if request.queue_position else ""
        yield "queue", f"waited {time_span(request.queue_seconds)} for a slot of backend {request.backend}{place}"
    yield from _endpoints(request, status)
    yield "times", ", ".join(_times(request))
    if request.phase == "ended":
        yield from _end(request)
    else:
        yield (
            "now",
            f"{request.phase}, for {time_span(request.duration)} in all"
            + (f"; waits for {request.waiting_for}" if request.waiting_for else ""),
        )


def _key(request: RequestView) -> str:
    if request.reason is not None:
        named = "" if request.key_id is None else f" ({request.key_id})"
        return f"refused{named}: {KEY_REASONS.get(request.reason, request.reason)}"
    if request.user is None:
        return "not checked"
    named = f"{request.user} ({request.key_id})" if request.key_id != "-" else f"none needed; counted as {request.user}"
    return f"{named}, class {request.priority_class}" if request.priority_class else named


def _endpoints(request: RequestView, status: Status) -> Iterator[tuple[str, str]]:
    if not request.attempts:
        yield "sent", "never: no backend has seen it"
        return
    first, *others = request.attempts
    yield "sent", f"to {first.endpoint}{_outcome(first)}"
    for attempt in others:
        yield "", f"again to {attempt.endpoint}{_outcome(attempt)}"
    last = request.attempts[-1]
    resumes = request.resume is not None
    if request.phase == "ended" and last.failure is not None and last.again is None and not resumes:
        yield "", "not tried again: the engine may have run the request"
    elif request.phase == "ended" and not resumes and last.again is not None:
        yield "", "not tried again: max_retries, total_timeout or no endpoint left"
    if (why := _why(request, status)) is not None:
        yield "", f"chosen: {why}"
    if request.resume is not None:
        yield "broke off", _resume(request.resume)


def _resume(resume: ResumeView) -> str:
    """The end of a stream that broke off."""
    if resume.outcome == "resumed":
        text = f"went on after {time_span(resume.gap or 0.0)}: {WAYS.get(resume.way or '', resume.way)}"
        return text if resume.counted else f"{text}; its tokens were counted by events"
    if resume.outcome is None:
        return "waits for another endpoint to go on" if resume.gap is None else "goes on at another endpoint"
    reason = f": {resume.reason}" if resume.reason else ""
    return f"{RESUME_ENDS.get(resume.outcome, resume.outcome)}{reason}"


def _outcome(attempt: AttemptView) -> str:
    parts = [str(attempt.status)] if attempt.status else []
    parts += [attempt.failure] if attempt.failure else []
    text = ": " + ", ".join(parts) if parts else ""
    text += f" after {time_span(attempt.seconds)}" if attempt.seconds else ""
    return text + (f" ({attempt.again}; safe to try again: {attempt.why_safe})" if attempt.why_safe else "")


def _why(request: RequestView, status: Status) -> str | None:
    if request.turn is not None:
        return TURNS.get(request.turn, request.turn)
    backend = next((found for found in status.backends if found.name == request.backend), None)
    if backend is None:
        return None
    if len(backend.endpoints) == 1:
        return f"the only endpoint of backend {backend.name}"
    return _by_balance(backend) + ("; one that was not tried before goes first" if request.retries else "")


def _by_balance(backend: BackendView) -> str:
    if backend.balance == "auto":
        return f"{LEAST_BUSY} (balance: auto, and the request shows no session)"
    return BALANCES.get(backend.balance, f"{LEAST_BUSY} (balance: {backend.balance})")


def _times(request: RequestView) -> Iterator[str]:
    if request.body_seconds:
        yield f"body {time_span(request.body_seconds)}"
    if request.overhead is not None:
        yield f"aiaas {time_span(request.overhead)}"
    if request.queue_seconds:
        yield f"queue {time_span(request.queue_seconds)}"
    if request.ttft is not None:
        yield f"first text after {time_span(request.ttft)}"
    yield f"in all {time_span(request.duration)}"


def _end(request: RequestView) -> Iterator[tuple[str, str]]:
    code = f" {request.error_code}" if request.error_code else ""
    by = ENDS.get(request.ended_by or "", request.ended_by or "")
    if code and request.ended_by == "upstream":
        by = "vLLM, which refused it or broke its answer off"
    where = f", while {_PHASES.get(request.ended_in or '', '')}" if request.ended_by == "client" else ""
    yield "ended", f"{request.status}{code}, by {by}{where}"
    if request.message is not None:
        yield "", f"the client was told: {request.message}"
    if request.input_tokens is not None:
        cached = "" if request.cached_tokens is None else f" ({request.cached_tokens} of them cached)"
        kind = "estimated as" if request.estimated else "vLLM counted"
        yield "tokens", f"{kind} {request.input_tokens} input{cached}, {request.output_tokens or 0} output"


_PHASES: Final = {
    "admission": "it was being read and checked",
    "queued": "it waited in the queue",
    "waiting": "it waited for the first byte of its answer",
    "streaming": "its answer was arriving",
}
