"""`aiaas render --target compose`: judge a config for containers on one machine, and write what they need."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aiaas.cli.filechecks import key_file_problems
from aiaas.cli.gate import environment_for, explained
from aiaas.cli.manifestfolder import is_ours, write_files
from aiaas.cli.outcome import note
from aiaas.cli.render import keys_text_of
from aiaas.config.accept import without_accepted
from aiaas.config.compose import check_compose
from aiaas.config.files import config_name
from aiaas.config.problem import by_place, has_errors
from aiaas.errors import CheckFailed, EnvironmentFault, UsageError
from aiaas.manifests.compose import COMPOSE_FILE, COMPOSE_MARK, KEYS_PLACE, compose_files, compose_text
from aiaas.manifests.compose_notes import compose_notes
from aiaas.plan.compose import ComposePlan, plan_compose
from aiaas.plan.read import Reading, read

_PUBLIC_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+")


def render_compose(paths: Sequence[Path], output_dir: Path | None, domain: str | None) -> None:
    """Print the compose file, or write it and the files beside it into a folder. Problems and notes go to stderr.

    domain  the public name for which Caddy ends TLS in front of the gateway

    Raises CheckFailed if the config has an error, UsageError if `domain` contradicts it, EnvironmentFault if the folder
    has foreign files.
    """
    plan, keys_text = plan_for_compose(paths, domain, output_dir)
    source = config_name(path.name for path in paths)
    files = compose_files(plan, source, keys_text)
    if output_dir is None:
        print(compose_text(plan, source), end="")
        others = ", ".join(sorted(files.keys() - {COMPOSE_FILE, ".env.example"}))
        note(f"note: {COMPOSE_FILE} needs {others} beside it; --output-dir DIR writes all")
    else:
        write_files(output_dir, files, COMPOSE_MARK)
    for text in compose_notes(plan):
        note(f"note: {text}")
    if output_dir is not None:
        first = "" if (output_dir / ".env").exists() else "copy .env.example to .env, fill it in, and run "
        number = sum(not name.endswith("/") for name in files)
        note(f"wrote {number} files to {output_dir}; there: {first}docker compose up -d")


def plan_for_compose(
    paths: Sequence[Path], domain: str | None, output_dir: Path | None = None
) -> tuple[ComposePlan, str | None]:
    """The plan to render, and the text of the key file (None if there is none to copy into `output_dir`).

    Problems go to stderr. Raises as `render_compose` does.
    """
    if domain is not None and not _PUBLIC_NAME.fullmatch(domain):
        raise UsageError(f"--domain {domain!r} is not a public name; write one such as api.example.com")
    env = environment_for(paths)
    reading = read(paths[0], env, overlays=paths[1:], deployed=False)
    loaded = reading.loaded
    found = (explained(each, loaded.written, env) for each in reading.problems + check_compose(loaded))
    in_order = tuple(sorted(found, key=by_place))
    problems, _ = without_accepted(loaded, in_order + key_file_problems(reading, deployed=False))
    for problem in problems:
        note(str(problem))
    if has_errors(problems):
        raise CheckFailed(f"{' + '.join(map(str, paths))} cannot be rendered for compose; fix it and run again")
    if domain is not None and reading.plan is not None and reading.plan.server.tls is not None:
        raise UsageError("--domain ends TLS in Caddy, and server.tls ends it in the gateway; remove one of them")
    plan = plan_compose(loaded, env, domain=domain)
    if not plan.gateway.auth.enabled or (output_dir is not None and _are_there(reading, output_dir)):
        return plan, None
    return plan, keys_text_of(reading)


def _are_there(reading: Reading, folder: Path) -> bool:
    """Whether the config's key file is the one that the container mounts from `folder`.

    Raises EnvironmentFault if another file with keys is there.
    """
    assert reading.plan is not None
    mounted = folder / KEYS_PLACE
    if mounted.exists() and mounted.resolve() == reading.plan.auth.keys_file.resolve():
        return True
    if mounted.exists() and not is_ours(mounted, COMPOSE_MARK):
        raise EnvironmentFault(
            f"{mounted} has keys that aiaas render did not put there; let auth.keys_file name it, or move it away"
        )
    return False
