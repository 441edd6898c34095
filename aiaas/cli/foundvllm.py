"""A vLLM that runs already: ask it for its models, and write them as a config does."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiaas.errors import CheckFailed, EnvironmentFault

if TYPE_CHECKING:
    from aiaas.proxy.request.served_models import Listed

USUAL_VLLM: Final = "http://127.0.0.1:8000"  # vLLM's own default port
LISTING_TIMEOUT: Final = 2.0  # seconds; on this machine it answers in milliseconds


@dataclass(frozen=True, slots=True)
class FoundVllm:
    """A server that lists models. `models` is their YAML for a backend's `models:`."""

    url: str
    names: tuple[str, ...]
    models: str


def look_for_vllm(url: str) -> FoundVllm:
    """Raises EnvironmentFault if nothing answers there, CheckFailed if it is not a vLLM or wants a key."""
    from aiaas.proxy.request.served_models import NotAModelList, read_models

    status, content_type, body, shown = asyncio.run(_get_models(url))
    try:
        listed = read_models(status, content_type, body)
    except NotAModelList as error:
        raise CheckFailed(f"{shown}: {error}") from error
    if not listed:
        raise CheckFailed(f"{shown} lists no models")
    return FoundVllm(shown, tuple(listed), models_yaml(listed))


async def _get_models(url: str) -> tuple[int, bytes, bytes, str]:
    from aiaas.clients.check import connected
    from aiaas.httpclient.answer import PlainAnswer
    from aiaas.httpclient.client import BrokenError
    from aiaas.httpclient.target import parse_target
    from aiaas.loadtest.probe import why_silent, with_hint
    from aiaas.openai.paths import MODELS

    target = parse_target(url)
    answer = PlainAnswer()
    async with connected(target) as http:
        try:
            await http.send(target.head("GET", MODELS, None) + b"\r\n", answer, LISTING_TIMEOUT)
        except BrokenError as error:
            raise EnvironmentFault(f"{target.url}: {with_hint(error.kind, str(error))}") from error
    if answer.status is None:
        raise EnvironmentFault(f"{target.url}: {await why_silent(target, answer.detail)}")
    return answer.status, answer.headers.get("content-type", "").encode(), answer.content, target.url


def models_yaml(listed: Listed) -> str:
    """Names of one model are a name and its aliases; an adapter (LoRA) and another model have entries of their own."""
    groups: dict[tuple[str | None, str | None], list[str]] = {}
    for name, model in listed.items():
        groups.setdefault((model.root or name, model.parent), []).append(name)
    names = [[json.dumps(name, ensure_ascii=False) for name in group] for group in groups.values()]
    if len(names) == 1:
        return f"[{', '.join(names[0])}]"
    entries = (
        f"{{name: {first}, aliases: [{', '.join(aliases)}]}}" if aliases else f"{{name: {first}}}"
        for first, *aliases in names
    )
    return f"[{', '.join(entries)}]"
