"""`aiaas connect`: print what a client needs to use the gateway, or check that the gateway offers all of it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.common import (
    CaOption,
    ConfigOption,
    InsecureOption,
    Output,
    OutputOption,
    config_paths,
    new_app,
    print_json,
    print_table,
)
from aiaas.cli.complete import complete_clients, complete_models
from aiaas.cli.outcome import note
from aiaas.errors import AiaasError, CheckFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiaas.clients.check import ClientCheck, OfferedModel
    from aiaas.clients.client import Block, KnownClient
    from aiaas.httpclient.target import HttpTarget

app = new_app()

ASK_TIMEOUT = 3.0  # seconds for the list of models, which printing can do without
MODELS_TIMEOUT = 10.0

_EPILOG = """Examples:

\b
  aiaas connect                                   list the clients
  aiaas connect codex                             for the gateway of ./aiaas.yaml
  aiaas connect claude-code --url https://api.example.com --model coder --api-key-file my.key
  eval "$(aiaas connect claude-code --api-key-file my.key)"
  aiaas connect --check --api-key-file my.key     does the gateway offer what each client needs?
  aiaas connect --check codex --api-key-file my.key

A key is printed only from --api-key-file; $AIAAS_API_KEY is used to ask the gateway, and never printed.
Exit codes: 0 nothing is missing, 1 something is, or was not tried (--check), 2 wrong usage, 3 no answer (--check).
"""


@app.command("connect", epilog=_EPILOG)
def show_client(
    client: Annotated[
        str | None,
        typer.Argument(help="The client. [default: list them]", show_default=False, autocompletion=complete_clients),
    ] = None,
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The gateway. [default: the config's host, else its port here]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The model. [default: the gateway's first, else the config's]",
            autocompletion=complete_models,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, metavar="TOKENS", help="The model's context size. [default: ask the gateway]"),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with the key to print. [default: a placeholder]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask the gateway whether it offers what the client needs.")
    ] = False,
    ca: CaOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.text,
) -> None:
    """Print what to paste to use the gateway with a client: Claude Code, Codex, Open WebUI, an SDK, curl."""
    from aiaas.cli.loadoptions import read_keys
    from aiaas.cli.smokeoptions import known_of
    from aiaas.clients.paste import Offer, paste
    from aiaas.httpclient.target import parse_target

    chosen = _chosen(client)
    if client is None and not check:
        _print_clients(chosen, output)
        return
    target = parse_target(known_of(url, config).url, ca=ca, insecure=insecure)
    key = read_keys([] if api_key_file is None else [api_key_file])[0].value
    if check:
        checks = _check(target, chosen, key, model, context)
        _print_checks(checks, output, by_line=client is not None)
        if not all(each.passed for each in checks):
            raise typer.Exit(1)
        return
    offered = _offered(target, key, model, context, _models_of(None if url is not None else config))
    printed = None if api_key_file is None else key
    offer = Offer(_plain_url(target), offered.id, printed, offered.max_model_len)
    _print_blocks(chosen[0], paste(chosen[0], offer), output)
    if offered.max_model_len is None and any("«{context}»" in block.text for block in chosen[0].blocks):
        note("the context size is unknown, so its lines are left out; --context TOKENS adds them")


def _chosen(name: str | None) -> tuple[KnownClient, ...]:
    from aiaas.clients.table import CLIENTS

    found = tuple(client for client in CLIENTS if name in (None, client.name))
    if not found:
        raise UsageError(f"{name!r} is not a known client; known: {', '.join(client.name for client in CLIENTS)}")
    return found


def _models_of(config: Sequence[Path] | None) -> tuple[str, ...]:
    """The config's models; empty where there is no config, or none that is valid."""
    from aiaas.plan.read import read_plan

    paths = config_paths(config)
    plan = read_plan(paths[0], os.environ, paths[1:])[0] if paths[0].exists() else None
    return () if plan is None else tuple(model.name for model in plan.models)


def _offered(
    target: HttpTarget, key: str | None, model: str | None, context: int | None, configured: tuple[str, ...]
) -> OfferedModel:
    """The model and its context size: as given, else from the gateway, else from the config, else a placeholder."""
    from aiaas.clients.check import OfferedModel
    from aiaas.clients.paste import UNKNOWN_MODEL

    if model is not None and context is not None:
        return OfferedModel(model, context)
    try:
        found = _pick(_ask(target, key, ASK_TIMEOUT), model)
    except AiaasError as error:
        note(f"cannot ask the gateway for its models: {error}")
        found = OfferedModel(model or (configured[0] if configured else UNKNOWN_MODEL))
    return OfferedModel(found.id, context or found.max_model_len)


def _ask(target: HttpTarget, key: str | None, timeout: float) -> tuple[OfferedModel, ...]:
    import asyncio

    from aiaas.clients.check import connected, offered_models

    async def ask() -> tuple[OfferedModel, ...]:
        async with connected(target) as http:
            return await offered_models(http, key, timeout)

    return asyncio.run(ask())


def _pick(models: tuple[OfferedModel, ...], wanted: str | None) -> OfferedModel:
    """The model that is wanted, else the first. Raises CheckFailed if it is not there."""
    found = next((model for model in models if wanted in (None, model.id)), None)
    if found is None:
        listed = ", ".join(model.id for model in models) or "none"
        raise CheckFailed(f"this key may not use {wanted or 'any model'}; the gateway lists: {listed}")
    return found


def _check(
    target: HttpTarget, clients: tuple[KnownClient, ...], key: str | None, model: str | None, context: int | None
) -> tuple[ClientCheck, ...]:
    import asyncio

    from aiaas.clients.check import OfferedModel, check_clients, connected

    found = _pick(_ask(target, key, MODELS_TIMEOUT), model)
    offered = OfferedModel(found.id, context or found.max_model_len)
    note(f"{target.url}, model {offered.id}:")

    async def ask() -> tuple[ClientCheck, ...]:
        async with connected(target) as http:
            return await check_clients(http, clients, offered, key)

    return asyncio.run(ask())


def _plain_url(target: HttpTarget) -> str:
    """The gateway's URL without a port that its scheme implies."""
    scheme, _, rest = target.url.partition("://")
    port = f":{443 if scheme == 'https' else 80}"
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.removesuffix(port)}{slash}{path}"


def _print_clients(clients: tuple[KnownClient, ...], output: Output) -> None:
    if output == Output.json:
        print_json([{"name": client.name, "title": client.title, "what": client.what} for client in clients])
    else:
        print_table(("client", "", "needs"), [(each.name, each.what, ", ".join(each.needs)) for each in clients])


def _print_blocks(client: KnownClient, blocks: tuple[Block, ...], output: Output) -> None:
    """The blocks on stdout; where each belongs, on stderr."""
    if output == Output.json:
        print_json({"client": client.name, "blocks": [asdict(block) for block in blocks], "notes": client.notes})
        return
    for number, block in enumerate(blocks):
        if number:
            print(flush=True)
        note(f"--- {block.where}:")
        print(block.text, end="", flush=True)
    for line in client.notes:
        note(f"note: {line}")


def _print_checks(checks: tuple[ClientCheck, ...], output: Output, *, by_line: bool) -> None:
    if output == Output.json:
        print_json(
            [
                {"client": each.client.name, "passed": each.passed, "findings": [asdict(one) for one in each.findings]}
                for each in checks
            ]
        )
    elif by_line:
        for finding in checks[0].findings:
            print(finding)
    else:
        for each in checks:
            wrong = [str(finding) for finding in each.findings if finding.state != "ok"]
            print(f"{each.client.name:14} {'; '.join(wrong) or 'ok'}")
