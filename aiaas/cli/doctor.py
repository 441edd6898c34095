"""`aiaas doctor`: look at everything that a gateway needs, and say for each fault what to do.

In this order, from what stands on this machine to what lies behind the network: Python, config, keys, files,
certificate, ports, descriptors, disk, then usage, the shared store, the backends, and the clocks. A config that is
refused ends it, since the rest is read from the config.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer

from aiaas.cli.common import ConfigOption, Output, OutputOption, config_paths, new_app, print_json, wants_colours
from aiaas.cli.diagnosis import Diagnosis, worst
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from pathlib import Path

    from aiaas.config.problem import Problem
    from aiaas.plan.read import Reading

app = new_app()

_COLOURS: Final = {"ok": "32", "warn": "33", "FAIL": "31"}
# The beginning of a problem's path -> the check in whose line it is shown.
_CHECKS: Final = (
    ("auth.keys_file", "keys"),
    ("keys.", "keys"),
    ("server.tls", "certificate"),
    ("rate_limit.store", "store"),
)


@app.command(
    epilog="""Examples:

\b
  aiaas doctor
  aiaas doctor -c /etc/aiaas/aiaas.yaml
  aiaas doctor -c aiaas.yaml -c prod.yaml     with the files of `aiaas serve`
  aiaas doctor -o json | jq -r '.findings[] | select(.state == "FAIL") | .seen'
  kubectl exec deploy/aiaas -- aiaas doctor -c /etc/aiaas/config/config.yaml     inside of the pod

Run it where the gateway runs, as the gateway's user. It asks each backend for its models, and where the config says
`scheduling: priority` for one token. Exit codes: 0 no FAIL, 1 a FAIL, 3 no such config.
"""
)
def doctor(config: ConfigOption = None, output: OutputOption = Output.text) -> None:
    """Check config, files, ports, store, certificate, clocks and backends of a gateway, and say what to do."""
    from aiaas.config.files import config_name

    findings: list[Diagnosis] = []
    paths = config_paths(config)
    for finding in examine(paths):
        findings.append(finding)
        if output is Output.text:
            print(_line(finding, coloured=wants_colours()), flush=True)
    state = worst(findings)
    if output is Output.json:
        print_json({"file": config_name(paths), "state": state, "findings": [asdict(finding) for finding in findings]})
    count = {each: sum(finding.state == each for finding in findings) for each in ("FAIL", "warn", "ok")}
    note(f"{config_name(paths)}: {', '.join(f'{number} {each}' for each, number in count.items() if number)}")
    if state == "FAIL":
        raise typer.Exit(1)


def _line(finding: Diagnosis, *, coloured: bool) -> str:
    state = f"{finding.state:4}"
    if coloured:
        state = f"\x1b[{_COLOURS[finding.state]}m{state}\x1b[0m"
    return f"{state}  {finding.check:16}  {finding.seen}"


def examine(paths: Sequence[Path]) -> Iterator[Diagnosis]:
    """All findings, in order, each as soon as it is known. Raises EnvironmentFault where the config cannot be read."""
    from aiaas.cli import localchecks, remotechecks
    from aiaas.cli.filechecks import key_file_problems, store_problems, tls_problems
    from aiaas.cli.gate import has_cluster
    from aiaas.cli.validate import validation_summary
    from aiaas.config.files import config_name
    from aiaas.plan.read import read

    yield localchecks.check_python()
    reading = read(paths[0], os.environ, overlays=paths[1:])
    plan = reading.plan
    if plan is None:
        yield from of_problems(reading.problems)
        yield Diagnosis("warn", "config", "nothing else was checked: fix the config first")
        return
    problems = reading.problems
    for of_files in (key_file_problems, tls_problems, store_problems):
        problems += of_files(reading, deployed=has_cluster(reading))
    yield from of_problems(problems)
    if not any(problem.severity == "error" for problem in problems):
        yield Diagnosis("ok", "config", validation_summary(config_name(paths), plan, ()))
    yield from localchecks.check_keys_of(plan)
    yield from localchecks.check_files(plan)
    yield from localchecks.check_certificate(plan, _host(reading))
    holders = localchecks.holders_of_ports(plan)
    yield from localchecks.check_ports(plan, holders)
    yield from localchecks.check_descriptors(plan, holders)
    yield from localchecks.check_disks(plan, holders)
    yield from remotechecks.check_usage_store(plan)
    found, clocks = remotechecks.check_store(plan)
    yield from found
    answered, more = remotechecks.check_backends(reading)
    yield from answered
    yield from remotechecks.check_clocks({**clocks, **more})


def of_problems(problems: tuple[Problem, ...]) -> Iterator[Diagnosis]:
    """A problem of `aiaas validate` as a finding, under the check that it belongs to."""
    from aiaas.config import codes

    for problem in problems:
        if problem.code == codes.TLS_VALIDITY:  # `check_certificate` says it
            continue
        check = next((check for begin, check in _CHECKS if problem.path.startswith(begin)), "config")
        yield Diagnosis("FAIL" if problem.severity == "error" else "warn", check, str(problem))


def _host(reading: Reading) -> str | None:
    config = reading.loaded.config
    return None if config is None else config.kubernetes.host
