"""Show what became of the requests when a replica was killed. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from aiaas.loadtest.killed import Killed
from aiaas.loadtest.table import ReportTable, seconds


def killed_tables(found: Killed) -> list[ReportTable]:
    """Show the fate of the requests in flight when a replica was killed, and of later ones; then the details."""
    labels = {
        "requests": "requests",
        "whole": "ended whole",
        "spoiled": "ended, but not as one whole answer",
        "error_events": "ended by an error event",
        "cut": "cut without one",
        "refused": "refused",
    }
    fates = [
        (label, *(str(getattr(group, name)) for group in (found.in_flight, found.later)))
        for name, label in labels.items()
    ]
    kill = found.kill
    details = [
        ("command", kill.command),
        ("exit code", "still running when the run ended" if kill.code is None else str(kill.code)),
        ("began, after the run's start", seconds(kill.at)),
        ("took", "-" if kill.ended is None else seconds(kill.ended - kill.at)),
        ("in flight and past the first event", str(found.begun)),
    ]
    if found.gaps is not None:
        longest = (found.gaps.p50, found.gaps.p95, found.gaps.maximum)
        details.append(("their longest gap, p50, p95, max", ", ".join(map(seconds, longest))))
    details += [(f"refused, {error}", str(count)) for error, count in found.refusals.items()]
    details += [(f"in flight with a wrong {part}", str(count)) for part, count in found.spoiled_by.items()]
    return [
        ReportTable("Replica killed", ("", "in flight", "later"), tuple(fates)),
        ReportTable("The kill", ("", ""), tuple(details)),
    ]


def kill_remarks(found: Killed) -> list[str]:
    """Return what keeps the run from showing that no stream was lost; empty if it does."""
    remarks, flying = [], found.in_flight
    if found.kill.code is None:
        remarks.append("the command of --kill-replica was still running when the run ended, and was ended")
    elif found.kill.code:
        remarks.append(f"the command of --kill-replica failed ({found.kill.code}), so perhaps nothing was killed")
    if not flying.requests:
        remarks.append("no request was in flight when the command of --kill-replica began, so the run proves nothing")
    elif flying.lost:
        remarks.append(f"{flying.lost} of the {flying.requests} requests in flight were lost with the replica")
    return remarks


def killed_as_json(found: Killed) -> dict[str, Any]:
    """Return the figures as JSON data, with `lost` and `held`."""
    figures: dict[str, Any] = msgspec.to_builtins(found)
    return figures | {"lost": found.in_flight.lost, "held": found.held}
