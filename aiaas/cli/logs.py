"""`aiaas logs`: the gateway's JSON lines as lines that read at a glance, filtered, and followed as they are written."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from aiaas.cli.common import Output, OutputOption, new_app, read_duration, wants_colours
from aiaas.cli.complete import complete_keys, complete_models
from aiaas.errors import UsageError

if TYPE_CHECKING:
    from aiaas.proxy.telemetry.readable import LogFields

app = new_app()

CHUNK: Final = 64 * 1024  # bytes of one read
# Seconds between two looks at the end of a file that is followed.
POLL: Final = 0.2
_STATUS: Final = re.compile(r"[1-5](?:[0-9][0-9]|xx)")


@app.command(
    epilog="""Examples:

\b
  kubectl logs deploy/aiaas | aiaas logs
  kubectl logs -f deploy/aiaas | aiaas logs --status 4xx,5xx
  aiaas logs -f aiaas-quickstart/log.jsonl
  aiaas logs --key alice --since 10m gateway.log
  aiaas logs --event endpoint_down gateway.log
  aiaas logs --id 7be1c0 -o json gateway.log | jq .     the lines themselves

Lines that the gateway did not write are passed on as they are; with a filter they are left out.
"""
)
def logs(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The log. [default: stdin]", show_default=False)
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines of FILE, also after its rotation.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(metavar="NAME|ID", help="Only requests of this key.", autocompletion=complete_keys),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only requests for this model.", autocompletion=complete_models),
    ] = None,
    status: Annotated[
        str | None, typer.Option(metavar="429|4xx,...", help="Only requests that ended with one of these.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Only the request whose id begins like this.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only the last 10m, 2h, 1d.")] = None,
    event: Annotated[str | None, typer.Option(metavar="NAME", help="Only these events; docs/logs.md has all.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Show the gateway's log in readable lines."""
    after = None if since is None else time.time() - read_duration("--since", since)
    wanted = Wanted(key, model, read_statuses(status), request_id, after, event)
    show = shower(wanted, colours=wants_colours(), as_json=output is Output.json)
    for lines in whole_lines(_chunks(file, follow)):
        sys.stdout.buffer.write(b"".join(shown + b"\n" for line in lines if (shown := show(line)) is not None))
        sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The lines to show; None and () ask for all.

    key       a key's name or id
    statuses  how a status begins: `429`, `4`
    after     POSIX seconds
    """

    key: str | None = None
    model: str | None = None
    statuses: tuple[str, ...] = ()
    request_id: str | None = None
    after: float | None = None
    event: str | None = None

    def __bool__(self) -> bool:
        return self != Wanted()

    def has(self, fields: LogFields) -> bool:
        """Whether a line matches every filter."""
        return (
            (self.key is None or self.key in (fields.get("user"), fields.get("key_id")))
            and self.model in (None, fields.get("model"))
            and (not self.statuses or str(fields.get("status")).startswith(self.statuses))
            and (self.request_id is None or str(fields.get("request_id")).startswith(self.request_id))
            and self.event in (None, fields.get("event"))
            and (self.after is None or self.after <= _posix(fields.get("time")))
        )


def read_statuses(text: str | None) -> tuple[str, ...]:
    """`429,5xx` as the digits that a status begins with. Raises UsageError."""
    statuses = () if text is None else tuple(part.strip().lower() for part in text.split(","))
    for status in statuses:
        if not _STATUS.fullmatch(status):
            raise UsageError(f"--status {status!r} is not a status; write for example 429, 4xx or 429,5xx")
    return tuple(status.replace("x", "") for status in statuses)


def shower(wanted: Wanted, *, colours: bool, as_json: bool = False) -> Callable[[bytes], bytes | None]:
    """Return a function from a line to its bytes on stdout, None where a filter leaves it out."""
    from aiaas.proxy.telemetry.readable import parse_log_line, readable, readable_line

    def show(line: bytes) -> bytes | None:
        if not wanted:
            return line if as_json else readable(line, colours=colours)
        found = parse_log_line(line)
        if found is None or not wanted.has(found[1]):
            return None
        return line if as_json else found[0] + readable_line(found[1], colours=colours).encode()

    return show


def _posix(time_of_line: object) -> float:
    try:
        return datetime.fromisoformat(str(time_of_line)).timestamp()
    except ValueError:
        return 0.0


def whole_lines(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The lines that each chunk completes, without their ends; at last what has no end."""
    rest = bytearray()
    for chunk in chunks:
        *lines, last = chunk.split(b"\n")
        if lines:
            lines[0] = bytes(rest + lines[0])
            rest.clear()
            yield lines
        rest += last
    if rest:
        yield [bytes(rest)]


def _chunks(file: Path | None, follow: bool) -> Iterator[bytes]:
    if file is None or str(file) == "-":
        if sys.stdin.isatty():
            raise UsageError("name the log's file, or pipe it in: kubectl logs deploy/aiaas | aiaas logs")
        while chunk := os.read(sys.stdin.fileno(), CHUNK):
            yield chunk
    elif follow:
        yield from followed(file, time.sleep)
    else:
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


def followed(file: Path, sleep: Callable[[float], object], start: int = 0) -> Iterator[bytes]:
    """The file from byte `start` on, and everything that is written to it, without an end.

    Two kinds of rotation: another file gets the name (the old one is read to its end first), or the file is cut
    (logrotate's `copytruncate`, the only one that reaches a gateway's stdout).
    """
    stream = file.open("rb", buffering=0)
    stream.seek(start)
    ends_whole = True
    try:
        while True:
            while chunk := stream.read(CHUNK):
                yield chunk
                ends_whole = chunk.endswith(b"\n")
            now = os.fstat(stream.fileno())
            there = _stat(file)
            if there is not None and not os.path.samestat(now, there):
                another = file.open("rb", buffering=0)
                while chunk := stream.read(CHUNK):  # written between the last read and the rotation
                    yield chunk
                    ends_whole = chunk.endswith(b"\n")
                stream.close()
                stream = another
            elif now.st_size < stream.tell():
                stream.seek(0)
            else:
                sleep(POLL)
                continue
            if not ends_whole:
                yield b"\n"
                ends_whole = True
    finally:
        stream.close()


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:  # between the renaming and the new file
        return None
