"""`aiaas init`: a commented starter config. It never overwrites."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from aiaas.cli.common import CONFIG_VARIABLE, DEFAULT_CONFIG, config_paths, new_app
from aiaas.cli.outcome import note
from aiaas.errors import CheckFailed, EnvironmentFault

app = new_app()

DEFAULT_URL: Final = "http://localhost:8000"  # where `vllm serve` listens by itself
PLACEHOLDER_MODEL: Final = "my-model"

STARTER: Final = Template("""\
# aiaas: the gateway in front of your own vLLM. Check it with `aiaas validate`; docs/config.md has every field.

server:
$host  port: 8080

backends:
  vllm:
    url: $url            # where vLLM listens, without /v1
    timeout: 120s        # longest silence of vLLM, not the length of an answer
    models:
      - $model           # the name that vLLM serves it as; further names below it are aliases
$aliases    # api_key_env: VLLM_KEY       # the variable with vLLM's own --api-key, if it has one
    # urls: [http://vllm-1:8000, http://vllm-2:8000]    # instead of url: several replicas
    # engine: {kind: vllm, model: Qwen/Qwen3-0.6B}      # instead of url: `aiaas serve` starts vLLM itself
    # engine: {kind: simulator}                         # instead of url: a stand-in without a model

auth:
  keys_file: keys.yaml   # hashed records; `aiaas keys create NAME` makes it

rate_limit:              # for each key that has no limits of its own
  requests_per_minute: 60
  burst: 20              # requests at once after an idle period
  # tokens_per_minute: 100000
  # max_concurrent: 8
  # store: redis://redis:6379/0   # several gateways count together (docs/limits.md)

monitoring:
  metrics_port: 9090     # Prometheus metrics at /metrics
  log_level: info

$kubernetes""")
# For a process on this machine.
LOCAL_HOST: Final = "  host: 127.0.0.1        # this machine only; 0.0.0.0 for everybody who can reach it\n"
LOCAL_KUBERNETES: Final = """\
# kubernetes:            # `aiaas render` makes manifests of this file (docs/deploy.md). There vLLM has another address,
#   image: registry.example.com/aiaas:0.1.0    # and server.host goes: `aiaas init --kubernetes HOST` writes such a file
#   host: api.example.com
"""
# For pods, which listen on all of their addresses.
KUBERNETES: Final = Template("""\
kubernetes:              # `aiaas render` makes manifests of this file (docs/deploy.md)
  image: registry.example.com/aiaas:0.1.0    # where your cluster gets the image from
  host: $host            # the name that clients use
""")


@app.command(
    epilog="""Examples:

\b
  aiaas init
  aiaas init --url http://vllm:8000 --model Qwen/Qwen3-0.6B --model small
  aiaas init -c gateway/aiaas.yaml
  aiaas init -c cluster.yaml --kubernetes api.example.com --url http://vllm.default:8000 --model Qwen/Qwen3-0.6B
"""
)
def init(
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help=f"The file to write; otherwise ${CONFIG_VARIABLE}, otherwise ./{DEFAULT_CONFIG}.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[str, typer.Option(metavar="URL", help="Where vLLM listens.")] = DEFAULT_URL,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"The name that vLLM serves its model as; repeat it for aliases. [default: {PLACEHOLDER_MODEL}]",
        ),
    ] = None,
    kubernetes: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Write a config for `aiaas render`: pods behind this public name. --url is vLLM's Service.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented starter config; an existing file stays as it is."""
    path = _new_file(config)
    text = _starter(url, model or [], kubernetes)
    if kubernetes is not None:
        _check_host(path, text)
    _write_new(path, text)
    option = "" if (path,) == config_paths(None) else f" -c {path}"
    note(f"wrote {path}; now:")
    note("  1. put vLLM's address and model into it" if not model else "  1. look through it")
    note(f"  2. aiaas validate{option}")
    note(f"  3. KEY=$(aiaas keys create NAME{option})")
    note(f"  4. aiaas render{option} | kubectl apply -f -" if kubernetes else f"  4. aiaas serve{option}")


def _new_file(option: Sequence[Path] | None) -> Path:
    """The one file to write. Raises UsageError for several."""
    from aiaas.errors import UsageError

    paths = config_paths(option)
    if len(paths) > 1:
        raise UsageError(f"init writes one file, and not {len(paths)}; run it for each, or write the overlay by hand")
    return paths[0]


def _starter(url: str, models: list[str], kubernetes: str | None) -> str:
    """The starter config. Names are quoted (a JSON string is valid YAML), since YAML could read one as another type.

    Raises UsageError if an option cannot be part of a config.
    """
    from aiaas.config.address import parse_url
    from aiaas.errors import UsageError

    try:
        parse_url(url)
    except ValueError as error:
        raise UsageError(f"--url {error}") from error
    if not all(model.strip() and model.isprintable() for model in models):
        raise UsageError("--model must be the name of a model")
    unique = list(dict.fromkeys(models))
    return STARTER.substitute(
        url=url,
        model=_quoted(unique[0]) if unique else PLACEHOLDER_MODEL,
        aliases="".join(f"      - {_quoted(alias)}\n" for alias in unique[1:]),
        host=LOCAL_HOST if kubernetes is None else "",
        kubernetes=LOCAL_KUBERNETES if kubernetes is None else KUBERNETES.substitute(host=_quoted(kubernetes)),
    )


def _check_host(path: Path, text: str) -> None:
    """Raises UsageError if the config would be refused for its public name."""
    from aiaas.errors import UsageError
    from aiaas.plan.read import read

    for problem in read(path, {}, (text,)).problems:
        if problem.path == "kubernetes.host":
            raise UsageError(f"--kubernetes {problem.message}")


def _quoted(name: str) -> str:
    import json

    return json.dumps(name.replace("${", "$${"), ensure_ascii=False)


def _write_new(path: Path, text: str) -> None:
    """Write a new file. Raises CheckFailed if it exists already, EnvironmentFault if it cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise CheckFailed(f"{path} exists and is left as it is; name another file with --config") from None
    except FileNotFoundError:
        raise EnvironmentFault(f"{path}: the folder does not exist; make it first") from None
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
