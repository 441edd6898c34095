"""`aiaas quickstart`: config, key, simulator and gateway in one command."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer

from aiaas.cli.common import new_app, wants_colours
from aiaas.cli.outcome import note

if TYPE_CHECKING:
    from aiaas.cli.foundvllm import FoundVllm
    from aiaas.plan.model import Plan
    from aiaas.proxy.server import Ready

app = new_app()

FOLDER: Final = Path("aiaas-quickstart")
LOG: Final = "log.jsonl"
QUICKSTART_PORT: Final = 8080
MODEL: Final = "simulator"
KEY_NAME: Final = "quickstart"
KEY_FILE: Final = "key.txt"  # beside the config, for `aiaas chat`

CONFIG: Final = Template("""\
# Written by `aiaas quickstart`. The gateway listens on this machine only$comment.
server:
  host: 127.0.0.1
  port: $port
backends:
  local:
    $engine
    models: $models
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
  aiaas quickstart --backend http://127.0.0.1:8000    a vLLM that runs already

On a terminal it looks for a vLLM at 127.0.0.1:8000 and offers to use it; --yes uses it without asking.
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
    backend: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A vLLM that runs already. [default: a simulator]", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Use a vLLM at 127.0.0.1:8000 without asking.")] = False,
) -> None:
    """Set up and run a gateway with a simulated model on this machine."""
    from aiaas.cli.gateway import run_gateway
    from aiaas.cli.serve import read_valid_plan

    config = folder / "aiaas.yaml"
    before = _text_of(config)
    text = _text_with(before, config, port, _vllm_for(before, config, backend, yes=yes))
    plan = read_valid_plan([config], (text,))
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
        _show_requests(folder / LOG, log.tell())
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
{_next_step(config, plan)}Ctrl-C stops all of it. Each request is one line:
"""


def _next_step(config: Path, plan: Plan) -> str:
    if all(backend.engine is None for backend in plan.backends):
        return ""
    return f"""\
Next, your own vLLM: in {config} write `url: http://localhost:8000` instead of `engine:`, and in `models:`
the name that it serves (curl http://localhost:8000/v1/models); then start this again.
"""


def _show_requests(log: Path, start: int) -> None:
    """Print the log's requests and warnings on stderr from now on, in a thread that ends with the process."""
    from aiaas.cli.logs import followed, whole_lines
    from aiaas.proxy.telemetry.log import INFERENCE, OTHER
    from aiaas.proxy.telemetry.readable import parse_log_line, readable_line

    colours = wants_colours(sys.stderr)

    def show() -> None:
        for lines in whole_lines(followed(log, time.sleep, start)):
            for found in map(parse_log_line, lines):
                if found is not None and (found[1]["event"] in (INFERENCE, OTHER) or found[1].get("level") != "info"):
                    note(readable_line(found[1], colours=colours))

    threading.Thread(target=show, name="requests", daemon=True).start()


def _vllm_for(before: str | None, config: Path, url: str | None, *, yes: bool) -> FoundVllm | None:
    """The vLLM to use in a new config: the one that was named, or one at its usual address if the user agrees.

    Raises UsageError for --backend and a config that was edited, and as `look_for_vllm`.
    """
    from aiaas.cli.foundvllm import USUAL_VLLM, look_for_vllm
    from aiaas.errors import CheckFailed, CommandError, UsageError

    if url is not None:
        found = look_for_vllm(url)
        if before is not None and not (_is_fresh(before) or _is_fresh(before, found)):
            raise UsageError(f"--backend: {config} was edited; write url and models there, or choose another --folder")
        return found
    asks = sys.stdin.isatty() and sys.stderr.isatty()
    if before is not None or not (asks or yes):
        return None
    try:
        found = look_for_vllm(USUAL_VLLM)
    except CheckFailed as error:
        note(f"{error.message}; so this starts a simulator")
        return None
    except CommandError:  # nobody listens there
        return None
    listed = ", ".join(found.names[:5])
    question = f"A server at {found.url} offers {listed}. Put the gateway in front of it (n: a simulator)?"
    return found if yes or typer.confirm(question, default=True, err=True) else None


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


def _text_with(before: str | None, config: Path, port: int | None, vllm: FoundVllm | None) -> str:
    """The config to run with: a new one for `vllm`, or an earlier run's, with only a given `port` changed.

    A config that was not edited is written anew, so that metrics and simulator follow the port. Raises UsageError if
    an edited config has no `server.port` to change.
    """
    from aiaas.errors import UsageError

    found = None if before is None else _port_in(before)
    if before is None or vllm is not None:
        last = QUICKSTART_PORT if before is None or found is None else int(before[found])
        return _fresh_text(last if port is None else port, vllm)
    if port is None or (found is not None and before[found] == str(port)):
        return before
    if found is None:
        raise UsageError(f"--port {port}: {config} was edited and has no server.port; write it there")
    if _is_fresh(before):
        return _fresh_text(port)
    return before[: found.start] + str(port) + before[found.stop :]


def _is_fresh(text: str, vllm: FoundVllm | None = None) -> bool:
    """Whether this is the config of a simulator, or of `vllm`, as it was written, on any port."""
    found = _port_in(text)
    return found is not None and text[found].isdecimal() and text == _fresh_text(int(text[found]), vllm)


def _fresh_text(port: int, vllm: FoundVllm | None = None) -> str:
    comment = ', and the "model" is aiaas\'s own simulator' if vllm is None else ""
    engine = f"engine: {{kind: simulator, port: {port + 2}}}" if vllm is None else f"url: {vllm.url}"
    models = f"[{MODEL}]" if vllm is None else vllm.models
    ports = {"port": port, "metrics_port": port + 1, "admin_port": port + 3}
    return CONFIG.substitute(ports, engine=engine, models=models, comment=comment)


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
    """Runs before the key is replaced: a quickstart that already runs in this folder keeps the key that it showed. The
    gateway does not need its admin port, but we show the address of its page."""
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
