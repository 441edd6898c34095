"""A load test while it runs, on stderr: a view that moves on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from aiaas.cli.common import console
from aiaas.cli.outcome import note
from aiaas.loadtest.live import Glance, Recent
from aiaas.loadtest.table import number, seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from aiaas.loadtest.runner import Stage
    from aiaas.loadtest.sample import Kill, Run, Sample
    from aiaas.loadtest.summary import Summary

LINE_EVERY: Final = 5.0  # seconds; a log of a load test is read afterwards


class LoadView:
    """A `Listener` that shows progress."""

    def __init__(self) -> None:
        self._recent = Recent()
        self._console = console(stderr=True)
        self._live: Live | None = None
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begun(self, run: Run) -> None:
        """Load begins."""
        keys = f", {len(run.keys)} keys" if len(run.keys) > 1 else ""
        note(f"{run.url}, model {run.model}, {run.loop} loop{keys}; Ctrl-C ends it and keeps what was measured")
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()

    def sample(self, sample: Sample) -> None:
        """A request ended."""
        self._recent.add(sample)

    def tick(self, now: float, elapsed: float, inflight: int, stage: Stage) -> None:
        """Show the last seconds."""
        glance = self._recent.glance(now)
        if self._live is not None:
            self._live.update(_picture(elapsed, inflight, stage, glance), refresh=True)
        elif now - self._last_line >= LINE_EVERY:
            self._last_line = now
            note(_line(now, inflight, glance))

    def level_done(self, summary: Summary) -> None:
        """A level of a sweep is over."""
        if not summary.level:
            return
        ttft = "-" if summary.ttft is None else seconds(summary.ttft.p99)
        self._console.print(
            f"level {summary.level:g}: {number(summary.output_tokens_per_second)} tokens/s, "
            f"{number(summary.requests_per_second)} answers/s, TTFT p99 {ttft}, errors {summary.error_rate:.1%}"
        )

    def killed(self, kill: Kill) -> None:
        """The command of `--kill-replica` ended."""
        note(f"{kill.command}: exit code {kill.code}, {kill.at:.1f} s after the start")


def _line(now: float, inflight: int, glance: Glance) -> str:
    parts = [
        f"{now:5.0f} s",
        f"{inflight} under way",
        f"{number(glance.answers_per_second)} answers/s",
        f"{number(glance.tokens_per_second)} tokens/s",
    ]
    if glance.ttft_p50 is not None and glance.ttft_p99 is not None:
        parts.append(f"TTFT p50 {seconds(glance.ttft_p50)} p99 {seconds(glance.ttft_p99)}")
    if glance.e2e_p50 is not None and glance.e2e_p99 is not None:
        parts.append(f"E2E p50 {seconds(glance.e2e_p50)} p99 {seconds(glance.e2e_p99)}")
    parts.append(f"{glance.errors} errors")
    if glance.rate_limited:
        parts.append(f"{glance.rate_limited} x 429")
    return "  ".join(parts)


def _picture(elapsed: float, inflight: int, stage: Stage, glance: Glance) -> RenderableType:
    from rich.table import Table

    whole = None if stage.duration is None else stage.ramp + stage.warmup + stage.duration
    load = f"{stage.rate:g} requests/s" if stage.rate is not None else f"{stage.users} users"
    phase = "warm-up" if elapsed < stage.ramp + stage.warmup else "measuring"
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "load", f"{load}, {inflight} under way", phase, f"{elapsed:.0f} s" + (f" of {whole:.0f} s" if whole else "")
    )
    table.add_row(
        "rates", f"{number(glance.answers_per_second)} answers/s", f"{number(glance.tokens_per_second)} tokens/s"
    )
    table.add_row("TTFT", *_percentiles(glance.ttft_p50, glance.ttft_p99))
    table.add_row("E2E", *_percentiles(glance.e2e_p50, glance.e2e_p99))
    colour = "red" if glance.errors else "green"
    table.add_row(
        "ended", f"{glance.answered} answered", f"[{colour}]{glance.errors} errors[/]", f"{glance.rate_limited} x 429"
    )
    table.add_row("answers/s", glance.sparkline)
    return table


def _percentiles(p50: float | None, p99: float | None) -> tuple[str, str]:
    if p50 is None or p99 is None:
        return "-", "-"
    return f"p50 {seconds(p50)}", f"p99 {seconds(p99)}"
