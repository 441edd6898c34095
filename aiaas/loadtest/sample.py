"""What one request measured, what a run was, and how both stand in a file: JSON lines, read back by `aiaas report`.

    {"kind":"run","format":1,"version":"0.1.0","url":"http://127.0.0.1:8080","model":"...","options":{...},...}
    {"kind":"sample","number":0,"due":0.0,"began":0.0,"sent":0.0004,"first":0.051,"end":0.83,"status":200,...}
    {"kind":"end","windows":[{"start":5.0,"stop":65.0}],"generator":{...}}

The first line is the run, then one line a request in the order in which they ended, then the end; a run that crashed
has no end. Fields at their default are left out and unknown ones ignored, so that older files and newer programs agree.

All moments are seconds since the run's start, on one monotonic clock, rounded to the microsecond:

    due     when the pacer wanted it sent. In a closed loop that is when its user was free
    began   when the generator got round to it; `began - due` is the generator's own lateness
    sent    when its bytes were handed to the socket; before it lies the wait for a connection
    first   when the socket gave the first output event (streams only)
    end     when the answer was whole, or had failed

Latencies count from `due`, so that what waits because the server stalls is seen (coordinated omission).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from aiaas.errors import CheckFailed

FORMAT: Final = 1


class Sample(msgspec.Struct, frozen=True, omit_defaults=True, tag="sample", tag_field="kind"):
    """One request, measured.

    via            "gateway", or "direct" where the run compares the two
    key            which of the run's keys (from 0)
    level          the users or the rate that this request was part of, where they vary (a sweep)
    warmup         sent before the measured part began
    aborted        left on purpose (`--abort-share`); neither a success nor an error
    error          what kind of failure, "" for none: see `aiaas.httpclient.answer`
    code, detail   the server's own error code, and one clause for people; never a prompt, an answer or a key
    prompt_tokens, output_tokens   as the server counted them; where it told nothing 0 and the number of output events
    events         output events that came
    gaps           microseconds between output events, in order; events that one read brought have 0 between them
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

    @property
    def ok(self) -> bool:
        """A whole answer."""
        return not self.error and not self.aborted

    @property
    def e2e(self) -> float:
        """Seconds from when it was due to the whole answer."""
        return self.end - self.due

    @property
    def ttft(self) -> float | None:
        """Seconds from when it was due to the first output event; None where there was none."""
        return None if self.first is None else self.first - self.due

    @property
    def tpot(self) -> float | None:
        """(E2E - TTFT) / (output tokens - 1), seconds; None for fewer than two tokens or without a stream."""
        if self.first is None or self.output_tokens < 2:
            return None
        return (self.end - self.first) / (self.output_tokens - 1)


class Generator(msgspec.Struct, frozen=True, omit_defaults=True):
    """How well the load generator itself kept up.

    cpu_share    its CPU seconds by the run's seconds; one core is all it can use
    lag_p99, lag_max   seconds by which its event loop came late to a timer
    late_sends   requests that began more than LATE_SEND after they were due (open loop)
    events       output events received
    """

    cpu_share: float = 0.0
    lag_p99: float = 0.0
    lag_max: float = 0.0
    late_sends: int = 0
    events: int = 0


class Run(msgspec.Struct, frozen=True, omit_defaults=True, tag="run", tag_field="kind"):
    """What was run: enough to run it again, without keys.

    started       UTC, ISO 8601
    loop     "closed" or "open"
    keys          labels of the keys in use, the names of their files
    options       the command's options as given
    machine       where the generator ran: system, processor count, Python
    slo           as written, "" for none
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
    """What one gateway's metrics port told of a window (`--metrics`).

    cores     CPU seconds of its process (of all workers) in a second
    requests  inference requests that it counted as ended, a second, whoever had sent them
    """

    cores: float
    requests: float


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a run in which rates count: from the end of ramp and warm-up until no more was sent (or, where a
    number of requests was asked for, until the last was over). Seconds since the run's start.

    gateway  what the gateway used meanwhile, None where nobody looked
    """

    start: float
    stop: float
    level: float = 0
    gateway: GatewayUse | None = None


class RunEnd(msgspec.Struct, frozen=True, omit_defaults=True, tag="end", tag_field="kind"):
    """How a run ended.

    windows      the measured parts, one for each level
    interrupted  by Ctrl-C
    stopped_by   why it ended early, "" where it did not
    unfinished   requests in flight that an early end cut off; they are in no figure
    """

    windows: tuple[Window, ...] = ()
    interrupted: bool = False
    stopped_by: str = ""
    unfinished: int = 0
    generator: Generator = Generator()


class Recorded(msgspec.Struct, frozen=True):
    """A run as a file holds it; `end` is None where it crashed."""

    run: Run
    samples: tuple[Sample, ...]
    end: RunEnd | None


FileLine = Run | Sample | RunEnd

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[Run | Sample | RunEnd]] = msgspec.json.Decoder(Run | Sample | RunEnd)


def to_line(value: FileLine) -> bytes:
    """One line of the file, with its newline."""
    return _ENCODER.encode(value) + b"\n"


def from_lines(name: str, lines: Iterable[bytes]) -> Recorded:
    """A file's content. A last line that was cut short (a crash in the middle of a write) is left out.

    Raises CheckFailed naming file and line for anything else that is no line of a run.
    """
    run: Run | None = None
    end: RunEnd | None = None
    samples: list[Sample] = []
    for number, value in _values(name, lines):
        if isinstance(value, Run):
            if run is not None:
                raise CheckFailed(f"{name}:{number}: a second run begins here; one file holds one run")
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
            raise CheckFailed(f"{name}:{number}: is no line of a load test's samples: {error}") from error
