"""`aiaas report`: show load-test runs from their files, as tables, Markdown, JSON or a page with charts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from aiaas.cli.common import Output, OutputOption, new_app, print_json
from aiaas.cli.outcome import note
from aiaas.errors import UsageError

app = new_app()


@app.command(
    epilog="""Examples:

\b
  aiaas report samples.jsonl
  aiaas report before.jsonl after.jsonl             side by side, with the change against the first
  aiaas report samples.jsonl --slo ttft=500ms       judged by another SLO
  aiaas report samples.jsonl --markdown > run.md
  aiaas report samples.jsonl --html run.html        a page with charts: one file, no script, no network

Exit codes: 0 done, 1 a file contains no run, an SLO is missed or a stream was lost, 2 wrong usage, 3 a file cannot be
read or written.
"""
)
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Samples of `aiaas loadtest --out FILE`.")],
    slo: Annotated[
        str | None, typer.Option(metavar="BOUNDS", help="Judge by this SLO instead of the run's own.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with charts; replaces the file.")
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Show one or more runs."""
    from aiaas.cli.loadtest import print_figures
    from aiaas.loadtest.compare import overhead
    from aiaas.loadtest.files import read_run, write_page
    from aiaas.loadtest.html.document import page
    from aiaas.loadtest.html.figure import ToldRun
    from aiaas.loadtest.killed import killed
    from aiaas.loadtest.report import Shown, compare_table, passed, remarks, run_as_json, tables
    from aiaas.loadtest.slo import parse_slo
    from aiaas.loadtest.summary import summarize_recorded
    from aiaas.loadtest.table import to_markdown

    if html is not None and any(html.resolve() == path.resolve() for path in files):
        raise UsageError(f"--html {html}: these are the samples; name another file")
    runs, told = [], []
    for path in files:
        recorded = read_run(path)
        bounds = parse_slo(recorded.run.slo if slo is None else slo)
        found = overhead(recorded.samples, random.Random(0).random) if recorded.run.direct else None
        kill = None if recorded.end is None else recorded.end.kill
        fate = None if kill is None else killed(recorded.samples, kill)
        summary = summarize_recorded(recorded, bounds)
        runs.append(Shown(path.stem, recorded.run, summary, recorded.end, found, fate))
        if html is not None:
            told.append(ToldRun(runs[-1], recorded.samples))
    if output == Output.json:
        print_json([run_as_json(shown) for shown in runs])
    else:
        for table in [compare_table(runs)] if len(runs) > 1 else tables(runs[0]):
            if markdown:
                print(to_markdown(table))
            else:
                print_figures(table)
    if html is not None:
        write_page(html, page(told))
        note(f"the page is in {html}")
    for shown in runs:
        for remark in remarks(shown):
            note(f"note: {shown.name}: {remark}")
    if not all(passed(shown) for shown in runs):
        raise typer.Exit(1)
