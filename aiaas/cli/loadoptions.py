"""Read the options of `aiaas loadtest`, and reject combinations that conflict."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiaas.cli.common import config_paths, read_duration
from aiaas.cli.outcome import note
from aiaas.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiaas.loadtest.kill_run import KillOrder
    from aiaas.loadtest.prompts import Asking
    from aiaas.loadtest.recommend import AdvisedFleet
    from aiaas.loadtest.runner import Stage
    from aiaas.loadtest.session import LabelledKey

KEY_VARIABLE: Final = "AIAAS_API_KEY"
HEAVY_VARIABLE: Final = "AIAAS_HEAVY_API_KEY"
DEFAULT_PORT: Final = 8080
DEFAULT_USERS: Final = 8
DEFAULT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class LoadShape:
    """The shape of the load as given; None if not given."""

    users: int | None
    rate: float | None
    poisson: bool
    duration: str | None
    requests: int | None
    warmup: str
    ramp: str
    sweep: str | None


@dataclass(frozen=True, slots=True)
class Preset:
    """Defaults for options that are not given."""

    users: int
    duration: str
    warmup: str
    ramp: str
    prompt_tokens: str
    output_tokens: str
    slo: str
    says: str


# The plan's success criteria: 100 concurrent users, response times below 5 s for typical requests, errors below 1 %.
# Typical is taken from its own test request, a short chat message with max_tokens 50, and means 95 of 100 answers.
PRESETS: Final = {
    "plan": Preset(
        users=100,
        duration="60s",
        warmup="5s",
        ramp="5s",
        prompt_tokens="100",
        output_tokens="50",
        slo="e2e:p95=5s,error_rate=1%",
        says=(
            "preset plan: 100 users at once for 60 s; a typical request is a streamed chat of 100 tokens that asks for "
            "50; 95 % of the answers must be whole within 5 s, and errors, 429s included, at most 1 %"
        ),
    )
}


def default_url(config: Sequence[Path] | None) -> str:
    """The gateway on this machine, on the port that the config names. Raises EnvironmentFault if the config cannot be
    read."""
    from aiaas.config.files import config_name
    from aiaas.config.load import load_file

    paths = config_paths(config)
    if not config and not paths[0].exists():
        return f"http://127.0.0.1:{DEFAULT_PORT}"
    loaded = load_file(paths[0], os.environ, paths[1:])
    if loaded.config is None:
        raise UsageError(f"{config_name(paths)} is not valid, so it names no port; see `aiaas validate`, or give a URL")
    scheme = "http" if loaded.config.server.tls is None else "https"
    server = loaded.config.server
    return f"{scheme}://127.0.0.1:{server.port}{server.path_prefix or ''}"


def unbounded_backends(config: Sequence[Path] | None) -> tuple[str, ...]:
    """The names of the config's backends without `max_inflight`, whose requests never wait in the gateway; empty if
    there is no valid config. Raises EnvironmentFault if the config cannot be read."""
    from aiaas.config.load import load_file

    paths = config_paths(config)
    if not config and not paths[0].exists():
        return ()
    read = load_file(paths[0], os.environ, paths[1:]).config
    return () if read is None else tuple(name for name, at in read.backends.items() if at.max_inflight is None)


def raise_descriptor_limit() -> None:
    """Let this process open as many connections as the system allows: the usual limit of 1024 is soon reached."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def read_fleet(config: Sequence[Path] | None, keys: int, model: str) -> AdvisedFleet:
    """The fleet to recommend for: the backend of `model`, if there is a config. Raises EnvironmentFault."""
    from aiaas.loadtest.recommend import AdvisedFleet, Pod
    from aiaas.plan.read import read

    paths = config_paths(config)
    reading = read(paths[0], os.environ, overlays=paths[1:]) if config or paths[0].exists() else None
    if reading is None or reading.plan is None or reading.loaded.config is None:
        return AdvisedFleet(keys=keys)
    plan, written = reading.plan, reading.loaded.config
    amounts = written.kubernetes.resources
    pod = Pod(amounts.requests.cpu, amounts.limits.cpu, written.server.workers, written.kubernetes.cpu_target)
    routes = [table[model] for table in plan.routes.values() if model in table]
    backend = routes[0].targets[0].backend if routes else plan.backends[0]
    has_engine = backend.engine is not None and backend.engine.kind == "vllm"
    return AdvisedFleet(backend.name, max(len(backend.endpoints), 1), keys, has_engine, pod)


def read_keys(files: list[Path], variable: str = KEY_VARIABLE) -> tuple[LabelledKey, ...]:
    """The keys: from the files, else from the environment variable, else none. Raises EnvironmentFault, UsageError;
    never shows a key."""
    from aiaas.loadtest.session import LabelledKey

    if not files:
        value = os.environ.get(variable, "").strip()
        return (LabelledKey(f"${variable}", _checked(value, f"${variable}")) if value else LabelledKey("no key", None),)
    return tuple(LabelledKey(path.stem, _checked(_read_text(path).strip(), str(path))) for path in files)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file, so it cannot hold a key") from error


def _checked(value: str, where: str) -> str:
    if not value:
        raise UsageError(f"{where} is empty; it must hold a key")
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise UsageError(f"{where} must hold one key and nothing else: no spaces, one line")
    return value


def read_stages(load: LoadShape) -> tuple[Stage, ...]:
    """The stages of a load: one, or a sweep's. Raises UsageError."""
    from aiaas.loadtest.runner import Stage
    from aiaas.loadtest.sweep import parse_sweep

    if load.users is not None and load.rate is not None:
        raise UsageError("--users is a closed loop and --rate an open one; give one of them")
    if load.duration is not None and load.requests is not None:
        raise UsageError("give either --duration or --requests")
    length = None if load.requests is not None else DEFAULT_SECONDS
    if load.duration is not None:
        length = read_duration("--duration", load.duration)
        if not length:
            raise UsageError("--duration must be longer than 0")
    warmup, ramp = read_duration("--warmup", load.warmup), read_duration("--ramp", load.ramp)

    def stage(users: int | None, rate: float | None, level: float = 0) -> Stage:
        return Stage(users, rate, load.poisson, ramp, warmup, length, load.requests, level)

    if load.sweep is None:
        users = None if load.rate is not None else load.users or DEFAULT_USERS
        return (stage(users, load.rate),)
    if load.users is not None or load.rate is not None:
        raise UsageError("--sweep names its own levels; leave out --users and --rate")
    sweep = parse_sweep(load.sweep)
    if sweep.what == "users":
        return tuple(stage(int(level), None, level) for level in sweep.levels)
    return tuple(stage(None, level, level) for level in sweep.levels)


def read_kill(
    command: str | None, after: str | None, stages: tuple[Stage, ...], *, one_way: bool, stream: bool
) -> KillOrder | None:
    """The command of --kill-replica, and its moment. Raises UsageError."""
    from aiaas.loadtest.kill_run import KillOrder

    if command is None:
        if after is not None:
            raise UsageError("--kill-after needs a --kill-replica to run then")
        return None
    if len(stages) > 1 or not one_way or not stream:
        raise UsageError("--kill-replica needs streams of one load: leave out --sweep, --direct and --no-stream")
    stage = stages[0]
    if after is None and stage.duration is None:
        raise UsageError("with --requests, say when to run --kill-replica: --kill-after 10s")
    moment = (stage.duration or 0) / 2 if after is None else read_duration("--kill-after", after)
    if stage.duration is not None and moment >= stage.duration:
        raise UsageError(f"--kill-after must be less than the {stage.duration:g} s of --duration")
    return KillOrder(command, stage.ramp + stage.warmup + moment)


def read_share(option: str, text: str) -> float:
    """Parse `10%` or `0.1` into a share between 0 and 1. Raises UsageError naming the option."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError(f"{option}: {text!r} is not a share; write 10% or 0.1") from error
    if not 0 <= share <= 1:
        raise UsageError(f"{option}: {text} is not between 0 and 100%")
    return share


def read_asking(
    *, endpoint: str, stream: bool, prompt_tokens: str, output_tokens: str, shared_prefix: int, prompts: Path | None
) -> Asking:
    """The requests to send. Raises UsageError, EnvironmentFault, CheckFailed (a broken line in the file of prompts)."""
    from aiaas.loadtest.files import read_file_lines
    from aiaas.loadtest.prompts import Asking, check_asking, parse_length, parse_prompts

    asking = Asking(
        endpoint=endpoint,
        stream=stream,
        prompt_tokens=parse_length("--prompt-tokens", prompt_tokens),
        output_tokens=parse_length("--output-tokens", output_tokens),
        shared_prefix=shared_prefix,
        prompts=() if prompts is None else parse_prompts(str(prompts), read_file_lines(prompts)),
    )
    check_asking(asking)
    return asking


def say_preset(name: str | None) -> Preset | None:
    """Find a preset by name and print its description. Raises UsageError if it is unknown."""
    if name is None:
        return None
    if name not in PRESETS:
        raise UsageError(f"--preset: {name!r} is unknown; known: {', '.join(PRESETS)}")
    note(PRESETS[name].says)
    return PRESETS[name]
