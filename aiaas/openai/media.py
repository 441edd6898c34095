"""Does a request name an image, audio or video by a URL that vLLM would fetch, from inside the cluster?

A substring gate first: bodies without a media key, which is nearly all, cost no parse. Past the gate the whole body is
parsed and walked, not only the places where a content part belongs: vLLM's message types are many and change, while a
media key whose value is a URL means the same everywhere. The shapes (OpenAI chat, OpenAI responses, Anthropic):

    {"type": "image_url", "image_url": {"url": "https://..."}}    likewise audio_url, video_url, file_url
    {"type": "input_image", "image_url": "https://..."}
    {"type": "image", "source": {"type": "url", "url": "https://..."}}

A URL is only let through if it begins with `data:`, in any case. Everything else counts: `file:`, an empty string, a
leading blank. Equal keys in one object: msgspec keeps the last, as vLLM's parser does.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aiaas.errors import ClientError
from aiaas.openai import paths

MEDIA_KEYS: Final = frozenset({"image_url", "audio_url", "video_url", "file_url"})

# Commas and opening brackets of a body that is walked, in texts too: each may be one more value to build and visit, at
# half a microsecond. Eight megabytes of English beside an image have as many.
MAX_VALUES: Final = 100_000

_KEYS: Final = tuple(f'"{key}"'.encode() for key in sorted(MEDIA_KEYS))


def names_media_url(body: bytes, path: str, *, escaped: bool) -> bool:
    """Whether some media part of `body` (valid JSON, a request to `path`) has a URL other than `data:`.

    escaped  what `may_hide_keys` says of it

    Raises ClientError 400 `invalid_request` for what msgspec can skip but not decode, and for a body of more than
    MAX_VALUES values.
    """
    anthropic = path in paths.ANTHROPIC
    if (
        not escaped
        and not (anthropic and b'"source"' in body)
        and (body.find(b'_url"') < 0 or not _has_media_key(body))
    ):
        return False
    if body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_VALUES:
        raise ClientError(400, "invalid_request", "The body holds too many values beside images, audio or video.")
    try:
        root = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ClientError(400, "invalid_request", "The body holds a number or a text that cannot be read.") from None
    return _walk(root, anthropic=anthropic)


def _has_media_key(body: bytes) -> bool:
    return any(key in body for key in _KEYS)


def _walk(root: Any, *, anthropic: bool) -> bool:
    """Visit every object, by a stack of our own.

    anthropic  `source` is a media part's; `input` of a `tool_use` part is the own call of the model: no media
    """
    todo: list[Any] = [root]
    while todo:
        value = todo.pop()
        if type(value) is list:
            todo.extend(item for item in value if type(item) is dict or type(item) is list)
        elif type(value) is dict:
            skip_input = anthropic and value is not root and value.get("type") == "tool_use"
            for key, item in value.items():
                if key in MEDIA_KEYS:
                    if _fetched(item):
                        return True
                elif anthropic and key == "source" and type(item) is dict and _fetched(item):
                    return True
                if (type(item) is dict or type(item) is list) and not (skip_input and key == "input"):
                    todo.append(item)
    return False


def _fetched(value: Any) -> bool:
    url = value.get("url") if type(value) is dict else value
    return type(url) is str and url[:5].lower() != "data:"
