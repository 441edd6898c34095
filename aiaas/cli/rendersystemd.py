"""`aiaas render --target systemd`: judge a config for services of one machine, and write their files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from aiaas.cli.gate import environment_for, explained
from aiaas.cli.manifestfolder import write_files
from aiaas.cli.outcome import note
from aiaas.config.accept import without_accepted
from aiaas.config.address import is_loopback
from aiaas.config.problem import by_place, has_errors
from aiaas.config.systemd import check_systemd
from aiaas.errors import CheckFailed
from aiaas.manifests.systemd import (
    CREDENTIALS,
    FIRST_INSTANCE,
    GATEWAY_USER,
    SYSTEMD_MARK,
    UNITS_FOLDER,
    systemd_files,
    systemd_stream,
)
from aiaas.plan.deployed import KEYS_FOLDER, KEYS_KEY, TLS_CERT, TLS_FOLDER, TLS_KEY
from aiaas.plan.read import read
from aiaas.plan.systemd import SystemdPlan, plan_systemd


def render_systemd(paths: Sequence[Path], output_dir: Path | None) -> None:
    """Print the files, or write them into a folder that has the form of the machine's root. Problems, notes and the
    commands that install the files go to stderr.

    Raises CheckFailed if the config has an error.
    """
    plan = plan_for_systemd(paths)
    files = systemd_files(plan, " + ".join(path.name for path in paths))
    if output_dir is None:
        print(systemd_stream(files), end="")
    else:
        remove_stale(output_dir, files)
        write_files(output_dir, files, SYSTEMD_MARK)
    for text in systemd_notes(plan):
        note(f"note: {text}")
    if output_dir is None:
        note("note: --output-dir DIR writes these files, and says how to install them")
    else:
        note(f"wrote {len(files)} files to {output_dir}; install them on the machine (docs/one-machine.md):")
        for line in install_commands(plan, output_dir):
            note(f"  {line}")


def plan_for_systemd(paths: Sequence[Path]) -> SystemdPlan:
    """The plan to render. Problems go to stderr; raises as `render_systemd` does."""
    env = environment_for(paths)
    reading = read(paths[0], env, overlays=paths[1:], deployed=False)
    loaded = reading.loaded
    found = (explained(each, loaded.written, env) for each in reading.problems + check_systemd(loaded))
    problems, _ = without_accepted(loaded, tuple(sorted(found, key=by_place)))
    for problem in problems:
        note(str(problem))
    if has_errors(problems):
        raise CheckFailed(f"{' + '.join(map(str, paths))} cannot be rendered for systemd; fix it and run again")
    return plan_systemd(loaded, env)


def remove_stale(folder: Path, files: dict[str, str]) -> None:
    """Remove the units of engines that are no longer rendered."""
    for path in sorted((folder / UNITS_FOLDER).glob("vllm-*.service")):
        if f"{UNITS_FOLDER}/{path.name}" not in files and path.read_text(encoding="utf-8").startswith(SYSTEMD_MARK):
            path.unlink()
            note(
                f"removed {path}, which is no longer rendered; on the machine: sudo systemctl disable --now {path.name}"
                f" && sudo rm /{UNITS_FOLDER}/{path.name}"
            )


def systemd_notes(plan: SystemdPlan) -> Iterator[str]:
    """Hints for the operator, one sentence each."""
    server = plan.gateway.server
    if server.tls is None and not is_loopback(plan.host):
        yield (
            f"port {server.port} speaks plain HTTP to everybody who reaches this machine: set server.tls, or write "
            "server.host: 127.0.0.1 and put Caddy or nginx in front"
        )
    if plan.store_here:
        yield "the store runs on this machine: install it (apt-get install redis-server); it starts before the gateway"
    for engine in plan.engines:
        yield f"{engine.name}.service runs /opt/vllm/current/bin/vllm; install vLLM there, and the GPU's driver"


def install_commands(plan: SystemdPlan, folder: Path) -> Iterator[str]:
    """The commands that install the files of `folder`, in order."""
    yield f"sudo cp -R {folder}/etc/. /etc/"
    yield "sudo systemd-sysusers && sudo systemd-tmpfiles --create && sudo systemctl daemon-reload"
    for name in sorted(credentials_of(plan)):
        yield f"sudo install -m 0600 /dev/stdin {CREDENTIALS}/{name}   # type its value, Enter, Ctrl-D"
    if plan.gateway.server.tls is not None:
        yield f"sudo install -m 0640 -g {GATEWAY_USER} CHAIN.pem {TLS_FOLDER}/{TLS_CERT}"
        yield f"sudo install -m 0640 -g {GATEWAY_USER} KEY.pem {TLS_FOLDER}/{TLS_KEY}"
    if plan.gateway.auth.enabled:
        keys_file = f"{KEYS_FOLDER}/{KEYS_KEY}"
        yield f"sudo -u {GATEWAY_USER} /opt/aiaas/current/bin/aiaas keys create NAME --keys-file {keys_file}"
    units = [f"{engine.name}.service" for engine in plan.engines]
    yield f"sudo systemctl enable --now {' '.join((*units, f'aiaas@{FIRST_INSTANCE}.service', 'aiaas.service'))}"


def credentials_of(plan: SystemdPlan) -> set[str]:
    """The names of all credentials, of the gateway and of its engines."""
    of_engines = {name for engine in plan.engines for name in engine.variables}
    return (set(plan.variables) - plan.values.keys()) | of_engines
