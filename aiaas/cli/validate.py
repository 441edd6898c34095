"""`aiaas validate`: load, check and compile a config; start nothing, and without --connect contact nothing.

The problems are the result, so they go to stdout. A summary for people goes to stderr.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.common import ConfigOption, Output, OutputOption, config_paths, new_app, print_json
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiaas.cli.gate import Judged
    from aiaas.config.problem import Problem
    from aiaas.plan.model import Plan
    from aiaas.plan.read import Reading

app = new_app()


@app.command(
    epilog="""Examples:

\b
  aiaas validate
  aiaas validate -c deploy/configmap.yaml --strict
  aiaas validate --connect
  aiaas validate --strict --deployed      in CI, without the cluster's secrets
  aiaas validate -c aiaas.yaml -c prod.yaml   prod.yaml over aiaas.yaml: lists replace, mappings merge
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
            "--connect",
            help="Also ask the backends (are they reachable, which models and paths do they serve?) and the store.",
        ),
    ] = False,
    deployed: Annotated[
        bool,
        typer.Option(
            "--deployed",
            help="Check it as `aiaas render` reads it: take as given variables and files that only the cluster has.",
        ),
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Check a config and show all its problems at once."""
    from aiaas.cli.gate import pass_gate
    from aiaas.config.files import config_name
    from aiaas.config.problem import has_errors
    from aiaas.errors import UsageError
    from aiaas.manifests.expose import notes

    if connect and deployed:
        raise UsageError("--connect needs the values that --deployed takes as given; run them one by one")
    paths = config_paths(config)
    path = config_name(paths)
    verdict = pass_gate(paths, given=deployed)
    plan, problems = verdict.reading.plan, verdict.problems
    if connect and plan is not None and not has_errors(problems):
        more, lines = _asked(verdict.reading)
        problems += more
        for line in lines:
            note(line)
    failed = has_errors(problems) or (strict and bool(problems))
    if output == Output.json:
        print_json(_as_json(path, verdict, problems, valid=not failed))
    else:
        for problem in problems:
            print(problem)
        for line in (*accepted_lines(verdict), *chain_table(verdict)):
            note(line)
        for text in notes(verdict.cluster) if verdict.cluster is not None else ():
            note(f"note: {text}")
    if plan is not None and plan.overrides:
        note(f"overridden by the environment: {', '.join(plan.overrides)}")
    note(validation_summary(path, plan, problems, strict=strict))
    if failed:
        raise typer.Exit(1)


def _asked(reading: Reading) -> tuple[tuple[Problem, ...], list[str]]:
    """The problems of backends and store, without accepted ones, and lines about what they answered."""
    from aiaas.cli.askbackends import ask_backends
    from aiaas.cli.askstore import ask_store
    from aiaas.config.accept import without_accepted

    asked = ask_backends(reading)
    of_store, more = ask_store(reading)
    return without_accepted(reading.loaded, asked.problems + of_store)[0], [*asked.lines, *more]


def accepted_lines(verdict: Judged) -> list[str]:
    """A line for each accepted warning, with the operator's reason."""
    config = verdict.reading.loaded.partial
    reasons = {} if config is None else config.accept
    return [f"accepted {problem.code} {problem.path}: {reasons[problem.code]}" for problem in verdict.accepted]


def chain_table(verdict: Judged) -> list[str]:
    """The hops from client to engine, the bounds of each, and the first to give up; for a config with a cluster."""
    from aiaas.config.chain import chain, weakest
    from aiaas.units import format_duration, format_size

    config = verdict.reading.loaded.config
    if config is None or not verdict.in_cluster:
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


def validation_summary(path: str, plan: Plan | None, problems: Sequence[Problem], *, strict: bool = False) -> str:
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


def _as_json(path: str, verdict: Judged, problems: Sequence[Problem], *, valid: bool) -> dict[str, object]:
    from aiaas.config.chain import chain

    plan, config = verdict.reading.plan, verdict.reading.loaded.config
    reasons = {} if config is None else config.accept
    return {
        "file": path,
        "valid": valid,
        "problems": [asdict(problem) for problem in problems],
        "accepted": [asdict(each) | {"reason": reasons.get(each.code)} for each in verdict.accepted],
        "digest": plan.digest if plan is not None else None,
        "overrides": list(plan.overrides) if plan is not None else [],
        "chain": [asdict(hop) for hop in chain(config)] if config is not None and verdict.in_cluster else [],
    }
