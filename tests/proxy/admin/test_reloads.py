"""aiaas.proxy.admin.reloads: the last reading of each file."""

from __future__ import annotations

from itertools import count

from aiaas.proxy.admin.model import ReloadView
from aiaas.proxy.admin.reloads import Reloads


def test_failure_keeps_the_time_of_the_last_success() -> None:
    """A file that was never good has none."""
    ticks = count(1.0)
    reloads = Reloads(lambda: next(ticks))
    reloads.note("config")
    reloads.note("tls", "expired")
    reloads.note("config", "a.yaml:1: no")
    assert reloads.views == [
        ReloadView("config", False, 3.0, 1.0, "a.yaml:1: no"),
        ReloadView("tls", False, 2.0, None, "expired"),
    ]
    reloads.note("config")
    assert reloads.views[0] == ReloadView("config", True, 4.0, 4.0, None)
