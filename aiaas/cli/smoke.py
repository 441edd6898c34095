"""`aiaas smoke`: run a series of checks against a gateway, with the likely cause of each failure."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Self

import typer

from aiaas.cli.common import (
    CaOption,
    ConfigOption,
    InsecureOption,
    KeyFileOption,
    Output,
    OutputOption,
    console,
    new_app,
    print_json,
    print_table,
)
from aiaas.cli.complete import complete_checks, complete_models
from aiaas.cli.loadtest import Endpoint
from aiaas.cli.outcome import EXIT_INTERRUPTED, note
from aiaas.cli.smokeoptions import known_of, read_metrics, read_names, read_size, read_timeout
from aiaas.errors import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.status import Status

    from aiaas.smoke.ask import SmokeSettings
    from aiaas.smoke.result import Result

app = new_app()

_EPILOG = """Examples:

\b
  aiaas smoke https://api.example.com --api-key-file team.key
  aiaas smoke -c aiaas.yaml                         the host of the config's kubernetes section, else this machine
  aiaas smoke --only health,models,completion,stream
  aiaas smoke https://api.example.com -c aiaas.yaml --metrics http://127.0.0.1:9090 --direct http://vllm:8000
  aiaas smoke --junit smoke.xml -o json             for a pipeline

The key comes from --api-key-file or $AIAAS_API_KEY, never from the command line.
Exit codes: 0 nothing failed, 1 a check failed, 2 wrong usage, 3 unreachable, 130 Ctrl-C (with the results so far).
"""


@app.command(epilog=_EPILOG)
def smoke(
    url: Annotated[
        str | None, typer.Argument(help="The gateway. [default: the config's kubernetes.host, else its port here]")
    ] = None,
    config: ConfigOption = None,
    api_key_file: KeyFileOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model. [default: the first of GET /v1/models]", autocompletion=complete_models),
    ] = None,
    endpoint: Annotated[
        Endpoint, typer.Option(metavar="chat|completions", help="The endpoint to call.")
    ] = Endpoint.chat,
    only: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Run only these checks.", autocompletion=complete_checks),
    ] = None,
    skip: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Skip these checks.", autocompletion=complete_checks)
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the checks without running them.")] = False,
    metrics: Annotated[str | None, typer.Option(metavar="URL", help="The gateway's metrics port.")] = None,
    engine_metrics: Annotated[str | None, typer.Option(metavar="URL", help="A vLLM's own address.")] = None,
    direct: Annotated[
        str | None, typer.Option(metavar="URL", help="The engine's own URL, to compare its answers.")
    ] = None,
    direct_model: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name at the engine.")] = None,
    direct_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="A file with the engine's key.")] = None,
    body_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="A body of this size must be refused. [default: the config's]")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The port to check for plain HTTP. [default: 80 for 443]")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="The longest that an answer may take.")] = "60s",
    ca: CaOption = None,
    insecure: InsecureOption = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Send more than 200 requests if the rate limit check needs them.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Check a running gateway: answers, streams, keys, errors, TLS, limits."""
    from aiaas.cli.loadoptions import read_keys
    from aiaas.httpclient.target import parse_target
    from aiaas.loadtest.limit_check import MOST_REQUESTS
    from aiaas.smoke.ask import SmokeSettings

    names = read_names(only, skip)
    if listed:
        _print_checks(names, output)
        return
    known = known_of(url, config)
    target = parse_target(known.url, ca=ca, insecure=insecure)
    metrics = metrics or known.metrics
    settings = SmokeSettings(
        target=target,
        tls=parse_target(known.url, ca=ca).tls,
        key=read_keys([] if api_key_file is None else [api_key_file])[0].value,
        model=model,
        endpoint=endpoint.value,
        http_port=http_port or (80 if target.port == 443 else None),
        big_body=known.big_body if body_size is None else read_size("--body-size", body_size),
        has_auth=known.has_auth,
        has_limit=known.has_limit,
        metrics=read_metrics(metrics, ca, insecure),
        engine=read_metrics(engine_metrics, ca, insecure),
        direct=None if direct is None else parse_target(direct, ca=ca, insecure=insecure),
        direct_model=direct_model,
        direct_key=None if direct_key_file is None else read_keys([direct_key_file])[0].value,
        timeout=read_timeout(timeout),
        most_requests=MOST_REQUESTS if yes else DEFAULT_MOST,
    )
    _run(settings, names, output, junit)


DEFAULT_MOST = 200  # requests


def _print_checks(names: Sequence[str], output: Output) -> None:
    from aiaas.smoke.checks import CHECKS

    chosen = [check for check in CHECKS if check.name in names]
    if output == Output.json:
        print_json([{"name": check.name, "shows": check.shows} for check in chosen])
    else:
        print_table(("check", "shows"), [(check.name, check.shows) for check in chosen])


def _run(settings: SmokeSettings, names: Sequence[str], output: Output, junit: Path | None) -> None:
    import uvloop

    from aiaas.smoke.report import held, results_as_json, results_line, to_junit
    from aiaas.smoke.run import run_checks as make_checks

    started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "")
    interrupted = False
    url = settings.target.url
    with View(url, as_text=output == Output.text) as view:
        try:
            uvloop.run(make_checks(settings, names, view.begin, view.tell, view.say))
        except KeyboardInterrupt:
            interrupted = True
    results = view.results
    if output == Output.json:
        print_json(results_as_json(url, results, interrupted=interrupted))
    else:
        view.show()
    note(f"{url}: {results_line(results)}" + ("; ended early (interrupted)" if interrupted else ""))
    if junit is not None:
        _write(junit, to_junit(url, results, started))
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not held(results):
        raise typer.Exit(1)


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error


class View:
    """Shows the results: one line each when piped; on a terminal the running check, and a table at the end."""

    def __init__(self, url: str, *, as_text: bool) -> None:
        self.results: list[Result] = []
        self._screen = console()
        self._url = url
        self._as_lines = as_text and not self._screen.is_terminal
        self._progress = console(stderr=True)
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._progress.is_terminal:
            self._status = self._progress.status(self._url)
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def begin(self, name: str) -> None:
        """A check begins."""
        if self._status is not None:
            self._status.update(f"{self._url}: {name}")

    def say(self, text: str) -> None:
        """Explain a delay."""
        self._progress.print(f"note: {text}", markup=False)

    def tell(self, result: Result) -> None:
        """Take a result."""
        from aiaas.smoke.report import lines

        self.results.append(result)
        if self._as_lines:
            print("\n".join(lines(result)), flush=True)

    def show(self) -> None:
        """The table, on a terminal."""
        if self._as_lines:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        from aiaas.smoke.report import took_of

        table = Table(title=self._url, title_justify="left", box=SIMPLE_HEAD)
        for heading in ("check", "", "time", "what came"):
            table.add_column(heading, justify="right" if heading == "time" else "left", no_wrap=heading != "what came")
        for result in self.results:
            came = Text(result.seen)
            if result.outcome == "failed":
                came.append(f"\nexpected: {result.expected}", "dim")
                if result.hint:
                    came.append(f"\nhint: {result.hint}", "yellow")
            table.add_row(result.name, Text(result.outcome, _STYLES[result.outcome]), took_of(result), came)
        self._screen.print(table, soft_wrap=False)


_STYLES = MappingProxyType({"passed": "green", "failed": "bold red", "skipped": "dim"})
