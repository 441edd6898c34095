"""`aiaas validate`: load, check and compile a config; start nothing, and without --connect contact nothing.

The problems are the result, so they go to stdout. A summary for people goes to stderr.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.common import ConfigOption, Output, OutputOption, config_path, new_app, print_json
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aiaas.config.problem import Problem, Severity
    from aiaas.plan.model import Plan
    from aiaas.plan.read import Reading

app = new_app()


@app.command(
    epilog="""Examples:

\b
  aiaas validate
  aiaas validate -c deploy/configmap.yaml --strict
  aiaas validate --connect
  aiaas validate -o json | jq -r '.problems[].code'

Exit codes: 0 valid, 1 not valid (or, with --strict, a warning), 3 no such file.
"""
)
def validate(
    config: ConfigOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect", help="Also ask the backends: are they reachable, and which models and paths do they serve?"
        ),
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Check a config and show all its problems at once."""
    from aiaas.config.problem import has_errors
    from aiaas.plan.read import read

    path = config_path(config)
    reading = read(path, os.environ)
    plan, problems = reading.plan, reading.problems + file_problems(reading, deployed=has_cluster(reading))
    if has_cluster(reading) and not has_errors(problems):
        problems += cluster_problems(reading)
    if connect and plan is not None and not has_errors(problems):
        from aiaas.cli.askbackends import ask_backends

        found, lines = ask_backends(reading)
        problems += found
        for line in lines:
            note(line)
    failed = has_errors(problems) or (strict and bool(problems))
    if output == Output.json:
        print_json(_as_json(path, reading, problems, valid=not failed))
    else:
        for problem in problems:
            print(problem)
        for line in chain_table(reading):
            note(line)
    if plan is not None and plan.overrides:
        note(f"overridden by the environment: {', '.join(plan.overrides)}")
    note(validation_summary(path, plan, problems, strict=strict))
    if failed:
        raise typer.Exit(1)


def has_cluster(reading: Reading) -> bool:
    """Whether the config says anything about a cluster."""
    config = reading.loaded.config
    return config is not None and "kubernetes" in config.model_fields_set


def cluster_problems(reading: Reading) -> tuple[Problem, ...]:
    """Problems that `aiaas render` would report: a config with a `kubernetes` section is meant for a cluster."""
    from aiaas.plan.kubernetes import plan_kubernetes

    _, problems = plan_kubernetes(reading.loaded, os.environ)
    return problems


def chain_table(reading: Reading) -> list[str]:
    """The hops from client to engine, the bounds of each, and the first to give up; for a config with a cluster."""
    from aiaas.config.chain import chain, weakest
    from aiaas.units import format_duration, format_size

    config = reading.loaded.config
    if config is None or not has_cluster(reading):
        return []
    hops = chain(config)
    found = weakest(hops)
    rows = [("hop", "silence", "body", "")]
    for hop in hops:
        silence = "-" if hop.silence is None else format_duration(hop.silence)
        body = "-" if hop.body is None else format_size(hop.body)
        mark = f"<- weakest: {found[1]}" if found is not None and hop is found[0] else ""
        rows.append((hop.name, silence, body, "; ".join(part for part in (mark, hop.remark) if part)))
    width = max(len(row[0]) for row in rows)
    return [f"{name:{width}}  {silence:>7}  {body:>8}  {remark}".rstrip() for name, silence, body, remark in rows]


def file_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """Problems of the files beside the config (`deployed`: also as Secrets)."""
    return (
        *key_file_problems(reading, deployed=deployed),
        *_tls_problems(reading, deployed=deployed),
        *_store_problems(reading, deployed=deployed),
    )


def _tls_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """In a cluster the files come from a Secret, so missing files are only a warning."""
    import time

    from aiaas.config import codes
    from aiaas.config.tree import problem_at
    from aiaas.proxy.client.tls import TlsError, TlsFileMissing, read_pair

    tls = None if reading.plan is None else reading.plan.server.tls
    if tls is None:
        return ()
    section = ("server", "tls")
    try:
        warning = read_pair(tls).validity.warning(time.time())
    except TlsFileMissing as error:
        severity: Severity = "warning" if deployed else "error"
        return (problem_at(codes.TLS_FILES, severity, section, str(error), reading.loaded.place(section)),)
    except TlsError as error:
        return (problem_at(codes.TLS_FILES, "error", section, str(error), reading.loaded.place(section)),)
    if warning is None:
        return ()
    path = (*section, "cert_file")
    message = f"the certificate in {tls.cert_file} {warning}"
    return (problem_at(codes.TLS_VALIDITY, "warning", path, message, reading.loaded.place(path)),)


def _store_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """The files that the address of the shared store names."""
    from aiaas.config import codes
    from aiaas.config.tree import problem_at
    from aiaas.limits.connection import StoreTlsError, tls_context

    url = None if reading.plan is None else reading.plan.limits.store_url
    if url is None:
        return ()
    path = ("rate_limit", "store")
    try:
        tls_context(url)
    except StoreTlsError as error:
        severity: Severity = "warning" if deployed else "error"
        return (problem_at(codes.TLS_FILES, severity, path, str(error), reading.loaded.place(path)),)
    return ()


def key_file_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """A missing key file is a warning, since it may come later than the config."""
    from aiaas.config import codes
    from aiaas.config.crosslayer import check_keys_secret
    from aiaas.config.tree import problem_at
    from aiaas.keys.file import KeyFileError, KeyFileMissingError, read_key_file
    from aiaas.plan.keycheck import check_keys

    plan, config = reading.plan, reading.loaded.config
    if plan is None or config is None or not plan.auth.enabled:
        return ()
    path = ("auth", "keys_file")
    place = reading.loaded.place(path)
    try:
        problems = check_keys(plan, read_key_file(plan.auth.keys_file).records)
        if deployed:
            found = check_keys_secret(config, plan.auth.keys_file.stat().st_size)
            problems += tuple(problem_at(code, severity, at, message, place) for code, severity, at, message in found)
        return problems
    except KeyFileMissingError:
        message = (
            f"{plan.auth.keys_file} does not exist, so every request is refused; `aiaas keys create NAME` makes it"
        )
        return (problem_at(codes.KEYS_FILE, "warning", path, message, place),)
    except KeyFileError as error:
        return (problem_at(codes.KEYS_UNREADABLE, "error", path, str(error), place),)


def validation_summary(path: Path, plan: Plan | None, problems: Sequence[Problem], *, strict: bool = False) -> str:
    """One line: a summary of the config, or the number of its problems."""
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    if plan is None or errors:
        return f"{path} is not valid: {_count(errors, 'error')}, {_count(warnings, 'warning')}"
    if strict and warnings:
        return f"{path} has {_count(warnings, 'warning')}, and --strict fails on them"
    routes = [route for table in plan.routes.values() for route in table.values()]
    names = {target.served_name for route in routes for target in route.targets}
    public = {route.model for route in routes}
    parts = [_count(len(plan.backends), "backend"), _count(len(names), "model")]
    if len(public) > len(names):
        parts.append(_count(len(public) - len(names), "alias", "aliases"))
    parts.append(_limits(plan))
    if warnings:
        parts.append(_count(warnings, "warning"))
    return f"{path} is valid: {', '.join(parts)} (digest {plan.digest})"


def _limits(plan: Plan) -> str:
    limits = plan.limits.default
    parts = []
    if limits.requests is not None:
        parts.append(f"{limits.requests.per_minute} requests a minute (burst {limits.requests.burst})")
    if limits.tokens is not None:
        parts.append(f"{limits.tokens.per_minute} tokens a minute")
    if limits.tokens_per_day is not None:
        parts.append(f"{limits.tokens_per_day} tokens a day")
    if limits.tokens_per_month is not None:
        parts.append(f"{limits.tokens_per_month} tokens a month")
    if limits.concurrent is not None:
        parts.append(f"{limits.concurrent} at once")
    return f"limits per key: {', '.join(parts)}" if parts else "no limits"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _as_json(path: Path, reading: Reading, problems: Sequence[Problem], *, valid: bool) -> dict[str, object]:
    from aiaas.config.chain import chain

    plan, config = reading.plan, reading.loaded.config
    return {
        "file": str(path),
        "valid": valid,
        "problems": [asdict(problem) for problem in problems],
        "digest": plan.digest if plan is not None else None,
        "overrides": list(plan.overrides) if plan is not None else [],
        "chain": [asdict(hop) for hop in chain(config)] if config is not None and has_cluster(reading) else [],
    }
