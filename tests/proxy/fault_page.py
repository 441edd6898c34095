"""docs/faults.md, made from the table of faults: `python -m tests.proxy.fault_page` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiaas.simulator.faults import Point
from tests.proxy.end_table import ENDS
from tests.proxy.fault_table import CLIENTS, FAULTS, IN_THE_QUEUE, QUEUE, SCRIPTED, Outcome, Says

PAGE: Final = Path(__file__).parents[2] / "docs" / "faults.md"

_INTRO = """# Faults

The fate of a request when something between the client and vLLM goes wrong: a contract, held by tests over real
sockets (`tests/proxy/test_faults.py`), from whose table this page is made (`python -m tests.proxy.fault_page`).

To see a row for yourself, start `aiaas simulate --fault KIND[:ARG]` as the backend ([simulator.md](simulator.md)) and
send a request through `aiaas serve`. The rows hold for `max_retries: 2`, one endpoint, and the default `heartbeat` not
yet due (a comment that has been sent spends the status: an error with a status here is an event then).

- **Client**: status and body. After an error with *no SDK retry* (`x-should-retry: false`) the official SDKs do not try
  again by themselves. A stream's events are always whole: half an event is never passed on.
- **vLLM**: requests that it received, those for which it began to generate, and whether the connection is used again. A
  connection that is not is closed at once, which ends what vLLM was generating. After a 5xx none is: vLLM may be about
  to close it without a word.
- **Again**: further attempts, as `aiaas_retries_total{reason}` counts them and the log's `retries`.
  `connect` and `busy` up to `max_retries`; `stale`, `engine` and `balancer` once, all three together;
  with `max_retries: 0` none.
  Before the same endpoint is asked again, a `Retry-After` of up to 5 s is waited for; one that asks for more goes to
  the client. HTML or plain words in a 502, 503 or 504 are not vLLM's but a balancer's, whose engine may have worked.
- **Log**: `error_code` and `ended_by`. `status` is the client's; `aiaas_responses_total` and `inference_requests_total`
  follow them (`error` for a status of 400 or more, or any `error_code`).
- **Health**: how often the endpoint's health was told; `health.unhealthy_after` in a row take it out.
- **Second endpoint**: with a healthy second endpoint the request is answered by it, or is not sent to it.
"""

_ENDS = """A proxy in between may end its HTTP body cleanly in the middle of vLLM's answer. To an SDK such a stream
looks whole, so the gateway adds an error event, on which the official SDKs raise: `data: {"error": ...}`, for
`/v1/responses` and `/v1/messages` named `event: error`. Before the first event it is a 502. A whole stream needs no
`[DONE]`. The endpoint's health is not told. (`tests/proxy/end_table.py` has the bytes.)
"""

_LEAVES = """A client that leaves, by FIN, RST or half-close, ends the request upstream at once. Nothing is tried again,
and the endpoint's health is not told. The log has `error_code` `client_left` and `ended_by` `client`. One that vanishes
without a word (its machine is gone) has left as soon as nothing was acknowledged for 30 s, which is noticed within 10 s
more; a vLLM that vanishes like that breaks off after 30 s.
"""

_STAYS = """A client that stays and takes nothing stops the reading from vLLM: memory stays bounded. After `timeout`
without a byte taken it is dropped: `error_code` `client_too_slow`, `ended_by` `client`, phase `streaming`."""

_HEAD = """| {} | client | vLLM | again | log | health |
| --- | --- | --- | --- | --- | --- |"""

_HEAD_SECOND = """| `--fault` | client | vLLM | again | log | health | second endpoint |
| --- | --- | --- | --- | --- | --- | --- |"""

_SECTIONS = {
    "No fault": (Point.NEVER,),
    "Before connect": (Point.CONNECT,),
    "Before headers": (Point.REQUEST,),
    "Before the first event": (Point.FIRST_EVENT,),
    "Mid-stream": (Point.MID_STREAM, Point.PACE),
    "After the end": (Point.END,),
}


def page() -> str:
    """The text of docs/faults.md."""
    sections = [*_fault_sections(), *_end_section(), *_scripted_section(), *_queue_section(), *_client_section()]
    return "\n".join([_INTRO, *sections]) + "\n"


def _fault_sections() -> Iterator[str]:
    for title, points in _SECTIONS.items():
        yield f"## {title}\n"
        yield _HEAD_SECOND
        for row in FAULTS:
            if row.point not in points:
                continue
            if row.stream == row.whole:
                yield _line(f"`{row.fault}`", row.stream)
            else:
                yield _line(f"`{row.fault}`, streamed", row.stream)
                yield _line(f"`{row.fault}`, not streamed", row.whole)
        yield ""


def _end_section() -> Iterator[str]:
    yield "## Which ends of a stream are whole\n"
    yield _ENDS
    yield "| path | whole, where the body ends with | cut, where it ends with |"
    yield "| --- | --- | --- |"
    for path in dict.fromkeys(end.path for end in ENDS):
        whole, cut = (
            "; ".join(end.ends_with for end in ENDS if end.path == path and end.whole is kind) for kind in (True, False)
        )
        yield f"| `{path}` | {whole} | {cut} |"
    yield ""


def _scripted_section() -> Iterator[str]:
    yield "## What the simulator does not do\n"
    yield _HEAD.format("vLLM, or what stands before it")
    for row in SCRIPTED:
        yield _line(row.what, row.outcome, simulated=False)
    yield ""


def _queue_section() -> Iterator[str]:
    yield "## In the queue\n"
    yield "Where every endpoint has `max_inflight` requests under way, a request waits. No vLLM has seen it, so it"
    yield "costs the key nothing. `Retry-After` is the predicted wait ([queue.md](queue.md)), and 5 s where nothing was"
    yield "served from the queue yet.\n"
    yield _HEAD.format("while it waits")
    for row in QUEUE:
        yield _line(row.what, row.outcome, simulated=False)
    yield ""


def _client_section() -> Iterator[str]:
    yield "## The client\n"
    yield _LEAVES
    yield "| it leaves | logged status | `aiaas_aborts_total{phase}` | vLLM |"
    yield "| --- | --- | --- | --- |"
    for row in (*CLIENTS[:1], IN_THE_QUEUE, *CLIENTS[1:]):
        begun = "began, and stops at once" if row.begun else "generates nothing"
        yield f"| {row.name} | {row.status} | `{row.phase}` | {begun} |"
    yield ""
    yield _STAYS


def _line(name: str, outcome: Outcome, *, simulated: bool = True) -> str:
    """A row; only the simulator tells what its engine began, and only it is tried beside a healthy endpoint."""
    cells = [name, _client(outcome), _vllm(outcome, simulated), _again(outcome), _log(outcome), _health(outcome)]
    if simulated:
        failed = outcome.code is not None or outcome.status >= 400
        cells.append("answers" if outcome.rescued else "not asked" if failed else "")
    return f"| {' | '.join(cells)} |"


def _client(outcome: Outcome) -> str:
    says = outcome.says.value
    if outcome.says in (Says.OUR_ERROR, Says.OUR_EVENT):
        says = says.replace("our error", f"our error `{outcome.code}`").replace("` event", "` as an event")
    words = [f"{outcome.status}, {says}"]
    words += [f"Retry-After {outcome.retry_after}"] if outcome.retry_after else []
    words += [] if outcome.should_retry else ["no SDK retry"]
    return "; ".join(words)


def _vllm(outcome: Outcome, simulated: bool) -> str:
    if not outcome.sent:
        return "nothing"
    count = f"{outcome.sent} request{'s' if outcome.sent > 1 else ''}"
    begun = f", {outcome.begun or 'none'} begun" if simulated else ""
    return f"{count}{begun}; {'kept' if outcome.kept else 'closed'}"


def _again(outcome: Outcome) -> str:
    return f"{outcome.retries[1]} x `{outcome.retries[0]}`" if outcome.retries else "no"


def _log(outcome: Outcome) -> str:
    return f"{f'`{outcome.code}`' if outcome.code else 'null'}, `{outcome.ended_by}`"


def _health(outcome: Outcome) -> str:
    return f"{outcome.failures} failure{'s' if outcome.failures > 1 else ''}" if outcome.failures else "good"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
