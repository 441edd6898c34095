"""`aiaas render`: the files that deploy the config, by default to Kubernetes. `aiaas.cli.gate` judges the config.

This module has the command and Kubernetes; `_render_elsewhere` has a line for each other target.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.common import ConfigOption, config_paths, new_app
from aiaas.cli.complete import complete_kinds
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from aiaas.manifests.objects import Object
    from aiaas.plan.kubernetes import KubernetesPlan
    from aiaas.plan.read import Reading

app = new_app()


class Target(StrEnum):
    """Where the rendered files run."""

    kubernetes = "kubernetes"
    compose = "compose"
    systemd = "systemd"


@app.command(
    epilog="""Examples:

\b
  aiaas render | kubectl apply -f -
  aiaas render --only Deployment,ConfigMap
  aiaas render --diff                     the changes that an apply would make
  aiaas render -c aiaas.yaml -c prod.yaml   prod.yaml over aiaas.yaml
  aiaas render --output-dir manifests     a file for each object, and kustomization.yaml
  aiaas render --target compose --domain api.example.com --output-dir deploy   Docker Compose, behind Caddy

Exit codes: 0 done (with --diff: nothing differs), 1 the config is not valid or cannot be deployed (with --diff: or
something differs), 3 no such file, no kubectl, or no cluster.
"""
)
def render(
    config: ConfigOption = None,
    target: Annotated[
        Target,
        typer.Option(
            "--target",
            "-t",
            metavar="kubernetes|compose|systemd",
            help="Where the config is to run.",
            show_default=True,
        ),
    ] = Target.kubernetes,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="KIND,...",
            help="Only objects of these kinds.",
            show_default=False,
            autocompletion=complete_kinds,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", metavar="DIR", help="Write files into a folder instead of a stream.", show_default=False
        ),
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes of an apply, by kubectl diff.")] = False,
    domain: Annotated[
        str | None,
        typer.Option(
            "--domain",
            metavar="NAME",
            help="With --target compose: put Caddy in front, with a certificate for this public name.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the config's Kubernetes manifests as one YAML stream, or what another target needs."""
    from aiaas.errors import UsageError

    paths = config_paths(config)
    if domain is not None and target is not Target.compose:
        raise UsageError("--domain puts Caddy in front of the gateway, and only --target compose can; remove it")
    if target is not Target.kubernetes:
        if diff or only is not None:
            raise UsageError(
                f"--only and --diff are about objects in a cluster; --target {target} has none: remove them"
            )
        _render_elsewhere(target, paths, output_dir, domain=domain)
        return
    if output_dir is not None and (diff or only is not None):
        raise UsageError("--output-dir writes all objects; remove --diff and --only")
    _render_for_cluster(paths, output_dir, only=only, diff=diff)


def _render_elsewhere(target: Target, paths: Sequence[Path], output_dir: Path | None, *, domain: str | None) -> None:
    """Render for a target without a cluster, each in a module of its own."""
    if target is Target.compose:
        from aiaas.cli.rendercompose import render_compose

        render_compose(paths, output_dir, domain)
    else:
        from aiaas.cli.rendersystemd import render_systemd

        render_systemd(paths, output_dir)


def _render_for_cluster(paths: Sequence[Path], output_dir: Path | None, *, only: str | None, diff: bool) -> None:
    from aiaas.cli.manifestfolder import keep_keys, write_folder
    from aiaas.config.files import config_name
    from aiaas.manifests.render import to_files, to_stream

    source = config_name(path.name for path in paths)
    plan, keys_text = plan_for_cluster(*paths)
    objects = chosen(objects_of(plan, keys_text), only)
    if output_dir is not None:
        if keys_text is None and plan.gateway.auth.enabled and plan.settings.keys_secret.create:
            keep_keys(output_dir / f"secret-{plan.keys_secret}.yaml")
        write_folder(output_dir, to_files(plan, objects, source))
    elif diff:
        raise typer.Exit(differs(to_stream(plan, objects, source)))
    else:
        print(to_stream(plan, objects, source), end="")


def differs(stream: str) -> int:
    """Run `kubectl diff`, which prints the difference. Returns 0 if nothing differs, 1 if something does.

    Raises EnvironmentFault if kubectl is missing or does not reach a cluster.
    """
    from aiaas.errors import EnvironmentFault

    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise EnvironmentFault(
            "kubectl is not on PATH; install it, or compare the output of `aiaas render` by other means"
        )
    done = subprocess.run([kubectl, "diff", "-f", "-"], input=stream, text=True, check=False)
    if done.returncode not in (0, 1):
        raise EnvironmentFault(f"kubectl diff failed (exit code {done.returncode}); see its message above")
    return done.returncode


def objects_of(plan: KubernetesPlan, keys_text: str | None) -> tuple[Object, ...]:
    """All objects; notes about them go to stderr."""
    from aiaas.manifests.expose import notes
    from aiaas.manifests.render import render_manifests as render_objects

    for text in notes(plan):
        note(f"note: {text}")
    return render_objects(plan, keys_text)


def chosen(objects: tuple[Object, ...], only: str | None) -> tuple[Object, ...]:
    """The objects of the kinds in `only` (any case), or all. Raises UsageError for a kind that is never rendered."""
    from aiaas.errors import UsageError
    from aiaas.manifests.render import MANIFEST_KINDS

    if only is None:
        return objects
    known = {kind.lower(): kind for kind in (*MANIFEST_KINDS, *(made["kind"] for made in objects))}
    wanted = {known.get(word.strip().lower(), "") for word in only.split(",")}
    if "" in wanted:
        raise UsageError(
            f"--only: {only!r} names a kind that is never rendered; choose from {', '.join(MANIFEST_KINDS)}"
        )
    if absent := sorted(wanted - {made["kind"] for made in objects}):
        note(f"note: this config has nothing of kind {', '.join(absent)}")
    return tuple(made for made in objects if made["kind"] in wanted)


def plan_for_cluster(*paths: Path) -> tuple[KubernetesPlan, str | None]:
    """The plan to render, and the text of the key file (None if no Secret is made of it).

    Problems go to stderr. Raises CheckFailed if one of the problems is an error.
    """
    from aiaas.cli.gate import makes_keys, pass_gate
    from aiaas.config.files import config_name
    from aiaas.errors import CheckFailed

    verdict = pass_gate(paths, given=True)
    for problem in verdict.problems:
        note(str(problem))
    if verdict.cluster is None:
        raise CheckFailed(f"{config_name(paths)} cannot be rendered; fix it and run again")
    return verdict.cluster, keys_text_of(verdict.reading) if makes_keys(verdict.reading) else None


def keys_text_of(reading: Reading) -> str | None:
    """The key file as it goes into the Secret. None if the file is missing: a Secret without keys would replace one
    that has keys, and lock everybody out."""
    from aiaas.keys.file import KeyFileMissingError, read_key_file
    from aiaas.keys.records import render_records

    assert reading.plan is not None
    try:
        return render_records(read_key_file(reading.plan.auth.keys_file).records)
    except KeyFileMissingError:
        return None
