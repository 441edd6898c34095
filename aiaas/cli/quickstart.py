"""`aiaas quickstart`: config, key, simulator and gateway in one command."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from aiaas.cli.common import new_app
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from aiaas.plan.model import Plan
    from aiaas.proxy.server import Ready

app = new_app()

FOLDER: Final = Path("aiaas-quickstart")
LOG: Final = "log.jsonl"
QUICKSTART_PORT: Final = 8080
MODEL: Final = "simulator"
KEY_NAME: Final = "quickstart"
KEY_FILE: Final = "quickstart.key"  # beside the config, for `aiaas chat`

CONFIG: Final = Template("""\
# Written by `aiaas quickstart`. Everything here is on loopback, and the "model" is aiaas's own simulator.
server:
  host: 127.0.0.1
  port: $port
backends:
  local:
    engine: {kind: simulator, port: $engine_port}
    models: [$model]
auth:
  keys_file: keys.yaml
rate_limit:
  requests_per_minute: 60
monitoring:
  metrics_port: $metrics_port
  admin_port: $admin_port
""")


@app.command(
    epilog="""Examples:

\b
  aiaas quickstart
  aiaas quickstart --port 9000 --folder /tmp/try

Ctrl-C stops everything. The folder stays, and `aiaas serve -c FOLDER/aiaas.yaml` starts the same gateway again.
"""
)
def quickstart(
    folder: Annotated[Path, typer.Option(help="The folder for config, keys and log.")] = FOLDER,
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65532,
            help="Port of the gateway; metrics, simulator and page take the next three. "
            f"[default: {QUICKSTART_PORT}, or as the folder's config says]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Set up and run a gateway with a simulated model on this machine."""
    from aiaas.cli.gateway import run_gateway
    from aiaas.cli.serve import read_valid_plan

    config = folder / "aiaas.yaml"
    before = _text_of(config)
    text = _text_with(before, config, port)
    plan = read_valid_plan(config, text)
    _require_free_ports(plan)
    if text != before:
        _write_config(config, text)
    elif port is None:
        note(f"{config} exists already and stays as it is")
    key = _fresh_key(plan.auth.keys_file, plan.auth.api_key_prefix)
    _write_key(folder / KEY_FILE, key)

    listening: list[Ready] = []

    def on_engine_healthy() -> None:
        ready = listening.pop() if listening else None
        if ready is not None:  # only the first time: an engine may be restarted
            note(_welcome(ready, config, key, plan))

    def on_ready(ready: Ready) -> None:
        listening.append(ready)
        if all(backend.engine is None for backend in plan.backends):  # the folder's config was edited
            on_engine_healthy()

    with _opened(folder / LOG) as log:
        run_gateway(plan, on_ready, on_engine_healthy, log.fileno(), chat_key=key)


def _welcome(ready: Ready, config: Path, key: str, plan: Plan) -> str:
    model = plan.models[0].name if plan.models else MODEL
    metrics = f"Metrics: {ready.metrics_url}\n" if ready.metrics_url else ""
    where = "" if config.parent == FOLDER else f" -c {config} --api-key-file {config.parent / KEY_FILE}"
    port = plan.monitoring.admin_port
    page = f"In a browser: http://127.0.0.1:{port}/\n\n" if port else ""
    return f"""
{page}The gateway listens on {ready.url}; its config is {config}. In another terminal:

  curl {ready.url}/v1/chat/completions \\
    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}], "stream": true}}'

Or talk to it: aiaas chat{where}
{metrics}Log: {config.parent / LOG}
Next, your own vLLM: in {config} write `url: http://localhost:8000` instead of `engine:`, and in `models:`
the name that it serves (curl http://localhost:8000/v1/models); then start this again. Ctrl-C stops all of it.
"""


def _text_of(config: Path) -> str | None:
    """The text of an earlier run's config; None if there is no such file. Raises EnvironmentFault if the file cannot be
    read."""
    from aiaas.errors import EnvironmentFault

    try:
        return config.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"cannot read {config}: {getattr(error, 'strerror', None) or error}") from error


def _text_with(before: str | None, config: Path, port: int | None) -> str:
    """The config to run with: an earlier run's, with only a given `port` changed.

    A config that was not edited is written anew, so that metrics and simulator follow the port. Raises UsageError if
    an edited config has no `server.port` to change.
    """
    from aiaas.errors import UsageError

    if before is None:
        return _fresh_text(QUICKSTART_PORT if port is None else port)
    found = _port_in(before)
    if port is None or (found is not None and before[found] == str(port)):
        return before
    if found is None:
        raise UsageError(f"--port {port}: {config} was edited and has no server.port; write it there")
    old = before[found]
    if old.isdecimal() and before == _fresh_text(int(old)):
        return _fresh_text(port)
    return before[: found.start] + str(port) + before[found.stop :]


def _fresh_text(port: int) -> str:
    return CONFIG.substitute(port=port, metrics_port=port + 1, engine_port=port + 2, admin_port=port + 3, model=MODEL)


def _port_in(text: str) -> slice | None:
    """The position of `server.port`'s value in a config's text; None if it is missing or the text is not YAML."""
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        for name in ("server", "port"):
            fields = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((value for key, value in fields if key.value == name), None)
    except (yaml.YAMLError, RecursionError):  # the config's own reader reports the error
        return None
    return slice(node.start_mark.index, node.end_mark.index) if isinstance(node, yaml.ScalarNode) else None


def _write_config(config: Path, text: str) -> None:
    from aiaas.errors import EnvironmentFault

    try:
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {config}: {error.strerror}") from error


def _write_key(path: Path, key: str) -> None:
    """For its owner only."""
    from aiaas.errors import EnvironmentFault

    try:
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}") from error


def _opened(path: Path) -> IO[bytes]:
    from aiaas.errors import EnvironmentFault

    try:
        return path.open("ab")
    except OSError as error:
        raise EnvironmentFault(f"cannot write {path}: {error.strerror}") from error


def _require_free_ports(plan: Plan) -> None:
    """Runs before the key is replaced: a quickstart that already runs in this folder keeps the key that it showed."""
    from aiaas.cli.localchecks import wanted_ports
    from aiaas.proxy.client.ports import bind

    for host, port, field in wanted_ports(plan):
        bind(host, port, field).close()


def _fresh_key(keys_file: Path, prefix: str) -> str:
    """Replace the last run's key, of which only the hash is known, by a new key named KEY_NAME."""
    from aiaas.cli.keytarget import translated
    from aiaas.keys.file import edit_key_file
    from aiaas.keys.format import make_key
    from aiaas.keys.hashing import digest_key
    from aiaas.keys.model import KeyRecord

    key = make_key(prefix, secrets.token_bytes)
    record = KeyRecord(
        id=key.key_id,
        name=KEY_NAME,
        hash=digest_key(key.text),
        created=datetime.now(UTC).replace(microsecond=0),
    )
    with translated(), edit_key_file(keys_file) as file:
        file.records = (*(old for old in file.records if old.name != KEY_NAME), record)
    return key.text
