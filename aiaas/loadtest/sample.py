"""The data of a run: one sample per request, the run's settings, and its end, as JSON lines that `aiaas report` reads.

    {"kind":"run","format":1,"version":"0.1.0","url":"http://127.0.0.1:8080","model":"...","options":{...},...}
    {"kind":"sample","number":0,"due":0.0,"began":0.0,"sent":0.0004,"first":0.051,"end":0.83,"status":200,...}
    {"kind":"end","windows":[{"start":5.0,"stop":65.0}],"generator":{...}}

The first line is the run, then one line a request in the order in which they ended, then the end; the file of a run
that crashed has no end line. Fields with their default value are left out and unknown fields ignored, so newer programs
read older files and vice versa.

All times are seconds since the run's start, on one monotonic clock, rounded to the microsecond:

    due     when the pacer scheduled the request; in a closed loop, when its user was free
    began   when the generator started on the request; `began - due` is the generator's own lateness
    sent    when its bytes were written to the socket, after waiting for a connection
    first   when the socket delivered the first output event (streams only)
    end     when the answer was complete or had failed

Latencies count from `due`, so a stalled server cannot hide the requests that wait for it (coordinated omission).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from aiaas.errors import CheckFailed

FORMAT: Final = 1


class StreamParts(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often the parts came that a stream has once (`--kill-replica` only), see `aiaas.httpclient.counted`.

    finish  the last finish_reason, or ""
    asked   the tokens that the answer must have (max_tokens with ignore_eos), 0 if it may have any number
    """

    ids: int = 1
    roles: int = 1
    finishes: int = 1
    usages: int = 1
    dones: int = 1
    finish: str = ""
    asked: int = 0


class Sample(msgspec.Struct, frozen=True, omit_defaults=True, tag="sample", tag_field="kind"):
    """The measurements of one request.

    via            "gateway", or "direct" in a run that compares the two
    key            index of the key among the run's keys, from 0
    level          in a sweep, the users or the rate of the level that this request belongs to
    warmup         due before the measured part began
    aborted        left on purpose (`--abort-share`); neither a success nor an error
    error          the kind of failure, or "": see `aiaas.httpclient.answer`
    code, detail   the server's own error code, and one clause for people; never a prompt, an answer or a key
    prompt_tokens, output_tokens   the server's counts; without them, 0 and the number of output events
    events         number of output events
    gaps           microseconds between output events, in order; 0 between events from one read of the socket
    parts          of a stream that began, in a run with `--kill-replica`; else None
    """

    number: int
    due: float
    began: float
    sent: float | None = None
    first: float | None = None
    end: float = 0.0
    status: int | None = None
    error: str = ""
    code: str = ""
    detail: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    events: int = 0
    gaps: tuple[int, ...] = ()
    key: int = 0
    via: str = "gateway"
    level: float = 0
    warmup: bool = False
    aborted: bool = False
    parts: StreamParts | None = None

    @property
    def ok(self) -> bool:
        """Whether the answer is complete."""
        return not self.error and not self.aborted

    @property
    def e2e(self) -> float:
        """Seconds from when the request was due to the complete answer."""
        return self.end - self.due

    @property
    def ttft(self) -> float | None:
        """Seconds from when the request was due to the first output event; None without one."""
        return None if self.first is None else self.first - self.due

    @property
    def tpot(self) -> float | None:
        """(E2E - TTFT) / (output tokens - 1), seconds; None for fewer than two tokens or without a stream."""
        if self.first is None or self.output_tokens < 2:
            return None
        return (self.end - self.first) / (self.output_tokens - 1)


class Generator(msgspec.Struct, frozen=True, omit_defaults=True):
    """How well the load generator itself kept up.

    cpu_share    its CPU seconds divided by the run's seconds; it can use one core at most
    lag_p99, lag_max   seconds by which its event loop ran timers late
    late_sends   requests that began more than LATE_SEND after they were due (open loop)
    events       output events received
    """

    cpu_share: float = 0.0
    lag_p99: float = 0.0
    lag_max: float = 0.0
    late_sends: int = 0
    events: int = 0


class Run(msgspec.Struct, frozen=True, omit_defaults=True, tag="run", tag_field="kind"):
    """The settings of a run: enough to repeat it, without keys.

    started  UTC, ISO 8601
    loop     "closed" or "open"
    keys     labels of the keys in use: the names of their files
    options  the command's options as given
    machine  the generator's machine: system, processor count, Python
    slo      as written, or ""
    """

    format: int
    version: str
    url: str
    model: str
    started: str
    loop: str
    keys: tuple[str, ...] = ()
    options: dict[str, str] = {}
    machine: dict[str, str] = {}
    slo: str = ""
    direct: str = ""


class GatewayUse(msgspec.Struct, frozen=True):
    """One gateway's use in a window, from its metrics port (`--metrics`).

    cores     CPU seconds per second of its process, all workers included
    requests  inference requests per second that it counted as ended, from all clients
    """

    cores: float
    requests: float


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """The measured part of a run, for rates: from the end of ramp and warm-up until sending stopped (or, with a fixed
    number of requests, until the last one ended). Seconds since the run's start.

    gateway  the gateway's use in the window, None without `--metrics`
    """

    start: float
    stop: float
    level: float = 0
    gateway: GatewayUse | None = None


class Kill(msgspec.Struct, frozen=True, omit_defaults=True):
    """The command of `--kill-replica`, as it ran.

    at     seconds since the run's start when it began
    ended  when it ended, None if it was still running when the run ended
    code   its exit code, negative for a signal
    """

    command: str
    at: float
    ended: float | None = None
    code: int | None = None


class RunEnd(msgspec.Struct, frozen=True, omit_defaults=True, tag="end", tag_field="kind"):
    """How a run ended.

    windows      the measured parts, one for each level
    interrupted  whether Ctrl-C ended the run
    stopped_by   why the run ended early, or ""
    unfinished   requests in flight that an early end cut off; no figure includes them
    kill         the command of `--kill-replica`, None without
    """

    windows: tuple[Window, ...] = ()
    interrupted: bool = False
    stopped_by: str = ""
    unfinished: int = 0
    generator: Generator = Generator()
    kill: Kill | None = None


class Recorded(msgspec.Struct, frozen=True):
    """A run read from a file; `end` is None if the run crashed."""

    run: Run
    samples: tuple[Sample, ...]
    end: RunEnd | None


FileLine = Run | Sample | RunEnd

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Run | Sample | RunEnd]] = msgspec.json.Decoder(Run | Sample | RunEnd)


def to_line(value: FileLine) -> bytes:
    """Encode one line of the file, with its newline."""
    return _ENCODER.encode(value) + b"\n"


def from_lines(name: str, lines: Iterable[bytes]) -> Recorded:
    """Parse a file, ignoring an incomplete last line (from a crash in the middle of a write).

    Raises CheckFailed naming file and line for any other line that does not belong to a run.
    """
    run: Run | None = None
    end: RunEnd | None = None
    samples: list[Sample] = []
    for number, value in _values(name, lines):
        if isinstance(value, Run):
            if run is not None:
                raise CheckFailed(f"{name}:{number}: a second run begins here; a file contains one run only")
            if value.format != FORMAT:
                raise CheckFailed(f"{name}:{number}: format {value.format}; this version reads format {FORMAT}")
            run = value
        elif run is None:
            raise CheckFailed(
                f"{name}:{number}: does not begin with a run; `aiaas loadtest --out FILE` writes such files"
            )
        elif isinstance(value, Sample):
            samples.append(value)
        else:
            end = value
    if run is None:
        raise CheckFailed(f"{name}: is empty; `aiaas loadtest --out FILE` writes such files")
    return Recorded(run, tuple(samples), end)


def _values(name: str, lines: Iterable[bytes]) -> Iterator[tuple[int, FileLine]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number > 1 and not line.endswith(b"\n"):
                return
            raise CheckFailed(f"{name}:{number}: is not a line of a load test's samples: {error}") from error
