"""`aiaas render`: the config's Kubernetes manifests.

The result depends on the shell only where the config says so. Overrides are left out of the environment; a `${NAME}`
that is deployed by its name need not be set here; one inside the `kubernetes` section (`image: x:${TAG}`) must be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.common import ConfigOption, config_path, new_app
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from aiaas.manifests.objects import Object
    from aiaas.plan.kubernetes import KubernetesPlan
    from aiaas.plan.read import Reading

STAND_IN = "not-set-here"

app = new_app()


@app.command(
    epilog="""Examples:

\b
  aiaas render | kubectl apply -f -
  aiaas render --only Deployment,ConfigMap
  aiaas render --diff                     the changes that an apply would make
  aiaas render --output-dir manifests     a file for each object, and kustomization.yaml

Exit codes: 0 done (with --diff: nothing differs), 1 the config is not valid or cannot be deployed (with --diff: or
something differs), 3 no such file, no kubectl, or no cluster.
"""
)
def render(
    config: ConfigOption = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="KIND,...", help="Only objects of these kinds.", show_default=False)
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", metavar="DIR", help="Write files into a folder instead of a stream.", show_default=False
        ),
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show the changes of an apply, by kubectl diff.")] = False,
) -> None:
    """Print the config's Kubernetes manifests as one YAML stream."""
    from aiaas.cli.manifestfolder import keep_keys, write_folder
    from aiaas.errors import UsageError
    from aiaas.manifests.render import to_files, to_stream

    if output_dir is not None and (diff or only is not None):
        raise UsageError("--output-dir writes all objects; remove --diff and --only")
    path = config_path(config)
    plan, keys_text = plan_for_cluster(path)
    objects = chosen(objects_of(plan, keys_text), only)
    if output_dir is not None:
        if keys_text is None and plan.gateway.auth.enabled and plan.settings.keys_secret.create:
            keep_keys(output_dir / f"secret-{plan.keys_secret}.yaml")
        write_folder(output_dir, to_files(plan, objects, path.name))
    elif diff:
        raise typer.Exit(differs(to_stream(plan, objects, path.name)))
    else:
        print(to_stream(plan, objects, path.name), end="")


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
    """All objects; warnings about them go to stderr."""
    from aiaas.keys.records import parse_records
    from aiaas.manifests.expose import notes
    from aiaas.manifests.render import render_manifests as render_objects

    if plan.settings.image is None:
        note(f"warning: kubernetes.image is not set, so the pods run {plan.image}, which no registry has")
    if keys_text is not None and not parse_records(keys_text, "keys"):
        note(f"warning: the Secret {plan.keys_secret} has no keys; applying it replaces a Secret that has keys")
    for text in notes(plan):
        note(f"note: {text}")
    return render_objects(plan, keys_text)


def chosen(objects: tuple[Object, ...], only: str | None) -> tuple[Object, ...]:
    """The objects of the kinds in `only` (any case), or all. Raises UsageError for a kind that is never rendered."""
    from aiaas.errors import UsageError
    from aiaas.manifests.render import MANIFEST_KINDS

    if only is None:
        return objects
    known = {kind.lower(): kind for kind in MANIFEST_KINDS}
    wanted = {known.get(word.strip().lower(), "") for word in only.split(",")}
    if "" in wanted:
        raise UsageError(
            f"--only: {only!r} names a kind that is never rendered; choose from {', '.join(MANIFEST_KINDS)}"
        )
    if absent := sorted(wanted - {made["kind"] for made in objects}):
        note(f"note: this config has nothing of kind {', '.join(absent)}")
    return tuple(made for made in objects if made["kind"] in wanted)


def plan_for_cluster(path: Path) -> tuple[KubernetesPlan, str | None]:
    """The plan to render, and the text of the key file (None if no Secret is made of it).

    Problems go to stderr. Raises CheckFailed if one of the problems is an error.
    """
    from aiaas.cli.validate import key_file_problems
    from aiaas.config.problem import has_errors
    from aiaas.errors import CheckFailed
    from aiaas.plan.kubernetes import plan_kubernetes
    from aiaas.plan.read import read

    env = environment_for(path)
    reading = read(path, env, deployed=True)
    problems = reading.problems + (key_file_problems(reading, deployed=True) if _makes_keys(reading) else ())
    plan = None
    if not has_errors(problems):
        plan, more = plan_kubernetes(reading.loaded, env)
        problems += more
    for problem in problems:
        note(str(problem))
    if plan is None:
        if unset := sorted(name for name, value in env.items() if value == STAND_IN):
            note(f"note: not set here: {', '.join(unset)}; a variable inside an address must be set")
        raise CheckFailed(f"{path} cannot be rendered; fix it and run again")
    for text in guesses(reading):
        note(text)
    return plan, keys_text_of(reading, plan.keys_secret) if _makes_keys(reading) else None


def guesses(reading: Reading) -> list[str]:
    """A warning for each host that a stand-in is part of: the NetworkPolicy cannot know where it is."""
    from aiaas.config.problem import dotted
    from aiaas.plan.kubernetes import addresses

    config = reading.loaded.config
    assert config is not None
    if not config.kubernetes.network_policy.enabled:
        return []
    named = {("backends", name) for name, backend in config.backends.items() if backend.network.namespace is not None}
    if config.kubernetes.network_policy.store.namespace is not None:
        named.add(("rate_limit", "store"))
    return [
        f"warning: the variable in {dotted(path)} is not set here, so the NetworkPolicy may block that host; "
        "set the variable before you render, or name the pods' namespace"
        for path, host in addresses(config)
        if STAND_IN in host and path[:2] not in named
    ]


def environment_for(path: Path) -> dict[str, str]:
    """The environment for rendering a config: the shell's without the overrides, and with a stand-in for each variable
    that is deployed by its name and not set here. Raises EnvironmentFault if the file is missing."""
    from aiaas.config.environment import OVERRIDES
    from aiaas.config.load import load_file
    from aiaas.plan.deployed import literal_names

    ignored = [name for name in OVERRIDES if os.environ.get(name)]
    if ignored:
        note(f"ignored, since they apply to this shell only: {', '.join(ignored)}")
    env = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    named = literal_names(load_file(path, env).written)
    return dict.fromkeys(sorted(named), STAND_IN) | {name: value for name, value in env.items() if value}


def _makes_keys(reading: Reading) -> bool:
    config = reading.loaded.config
    return config is not None and config.auth.enabled and config.kubernetes.keys_secret.create


def keys_text_of(reading: Reading, secret: str) -> str | None:
    """The key file as it goes into the Secret. None if the file is missing: a Secret without keys would replace one
    that has keys, and lock everybody out."""
    from aiaas.keys.file import KeyFileMissingError, read_key_file
    from aiaas.keys.records import render_records

    assert reading.plan is not None
    try:
        return render_records(read_key_file(reading.plan.auth.keys_file).records)
    except KeyFileMissingError:
        note(
            f"warning: without a key file the Secret {secret} is not rendered; a Secret in the cluster stays as it is, "
            "and without one the pods wait for it"
        )
        return None
