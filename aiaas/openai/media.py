"""Does a request name an image, audio or video by a URL that vLLM would fetch, from inside the cluster?

A key that names media means it wherever it stands: vLLM's message types are many and change. The shapes (OpenAI chat,
OpenAI responses, Anthropic):

    {"type": "image_url", "image_url": {"url": "https://..."}}    likewise audio_url, video_url, file_url
    {"type": "input_image", "image_url": "https://..."}
    {"type": "image", "source": {"type": "url", "url": "https://..."}}

A URL is only let through if it plainly begins with `data:`, in any case. Everything else counts: `file:`, an empty
string, a leading blank, an escape. Of equal keys in one object each counts.

The keys are found by searching the bytes, and nothing is decoded but the few bytes behind each. To decode a body whole
stopped all other clients for 0.4 s where it was 10 MiB of 4,000-digit numbers. In valid JSON a text never holds
`"image_url"` with a first quote that is not escaped, so what is found is the whole text of a key or of a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.toplevel import UNREADABLE, unreadable

MEDIA_KEYS: Final = frozenset({"image_url", "audio_url", "video_url", "file_url"})
# Places where one of the keys stands, as a key or as a value (`"type": "image_url"`): half of them images. Each costs
# 2 microseconds.
MAX_PLACES: Final = 10_000
# Objects in a body whose tool calls are looked at.
MAX_OBJECTS: Final = 100_000
# How often the body may be read in sum. Media inside media inside media is read again for each; no client writes that.
MAX_TIMES: Final = 2

# As they are nearly always written; with escapes below.
_KEYS: Final = tuple(f'"{key}"'.encode() for key in sorted(MEDIA_KEYS))
_SOURCE: Final = b'"source"'  # the Anthropic shape's: an object
_ESCAPED: Final = {
    key: re.compile(b'"%b"' % b"".join(rb"(?:%c|\\u00(?i:%02x))" % (letter, letter) for letter in key[1:-1]))
    for key in (*_KEYS, _SOURCE)
}
_COLON: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_QUOTE: Final = ord('"')
_BRACE: Final = ord("{")
_BACKSLASH: Final = ord("\\")
# One search holds up all other threads for as long as it takes, so it goes on by windows.
_WINDOW: Final = 256 * 1024
_LONGEST_KEY: Final = 128  # each letter as six bytes


def names_media_url(body: bytes, path: str, *, escaped: bool) -> bool:
    """Whether some media part of `body` (valid JSON, a request to `path`) has a URL other than `data:`.

    escaped  what `may_hide_keys` says of it

    Raises ClientError 400 `invalid_request` for a body of more than MAX_PLACES, or of media inside media.
    """
    if path not in paths.ANTHROPIC:
        return (escaped or _find(body, b'_url"', 0) >= 0) and any(_fetched(body, _KEYS, escaped=escaped))
    keys = (*_KEYS, _SOURCE)
    fetched = sum(_fetched(body, keys, escaped=escaped))
    if not fetched or _find(body, b'"tool_use"', 0) < 0:
        return fetched > 0
    # A tool call given back is the own words of the model, and no media.
    return fetched > sum(sum(_fetched(bytes(call), keys, escaped=escaped)) for call in _tool_calls(body))


class _Media(msgspec.Struct, gc=False):
    url: Raw = Raw(b"null")


class _Part(msgspec.Struct, gc=False):
    type: Raw = Raw(b"null")
    input: Raw = Raw(b"null")


class _Message(msgspec.Struct, gc=False):
    content: Raw = Raw(b"null")


class _Body(msgspec.Struct):
    messages: list[_Message] = []


_MEDIA: Final = msgspec.json.Decoder(_Media)
_PARTS: Final = msgspec.json.Decoder(list[_Part])
_BODY: Final = msgspec.json.Decoder(_Body)
_TOOL_USE: Final = Raw(b'"tool_use"')
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)$")


def _fetched(body: bytes, keys: tuple[bytes, ...], *, escaped: bool) -> Iterator[bool]:
    """True for each URL that would be fetched."""
    view = memoryview(body)
    read = 0
    places = _escaped_places(body, keys) if escaped else _places(body, keys)
    for number, (start, end, key) in enumerate(places):
        if number == MAX_PLACES:
            raise _too_much()
        colon = _COLON.match(body, end)
        if colon is None or _is_escaped(body, start):
            continue
        at = colon.end()
        if body[at] == _QUOTE and key != _SOURCE:
            url = body[at : at + 6]
        elif body[at] == _BRACE:
            media, size = _object(view[at:])
            url = bytes(memoryview(media.url)[:6])
            read += size
            if read > MAX_TIMES * len(body):
                raise _too_much()
        else:
            continue
        if url[:1] == b'"' and url.lower() != b'"data:':
            yield True


def _places(body: bytes, keys: tuple[bytes, ...]) -> Iterator[tuple[int, int, bytes]]:
    """Where each of the keys begins and ends."""
    for key in keys:
        end = 0
        while (start := _find(body, key, end)) >= 0:
            end = start + len(key)
            yield start, end, key


def _find(body: bytes, what: bytes, start: int) -> int:
    """`body.find`, which takes 2.5 ns a byte where it does badly."""
    for window in range(start, len(body), _WINDOW):
        at = body.find(what, window, window + _WINDOW + len(what) - 1)
        if at >= 0:
            return at
    return -1


def _escaped_places(body: bytes, keys: tuple[bytes, ...]) -> Iterator[tuple[int, int, bytes]]:
    """Likewise, also where letters of a key are written as escapes."""
    for key in keys:
        pattern = _ESCAPED[key]
        for window in range(0, len(body), _WINDOW):
            for found in pattern.finditer(body, window, window + _WINDOW + _LONGEST_KEY):
                if found.start() < window + _WINDOW:
                    yield found.start(), found.end(), key


def _is_escaped(body: bytes, quote: int) -> bool:
    """Whether a text goes on there: behind one backslash, or three."""
    at = quote
    while body[at - 1] == _BACKSLASH:
        at -= 1
    return (quote - at) % 2 == 1


def _object(view: memoryview) -> tuple[_Media, int]:
    """The object that begins there, and its length. Only an error of msgspec's says where it ends."""
    try:
        return _MEDIA.decode(view), len(view)
    except UNREADABLE as error:
        behind = _TRAILING.search(str(error))
        if behind is None:
            raise unreadable(error) from None
    size = int(behind[1]) - 1
    return _MEDIA.decode(view[:size]), size


def _tool_calls(body: bytes) -> list[Raw]:
    """What a model said to its tools; nothing where the messages are not what they should be."""
    if body.count(b"{") > MAX_OBJECTS:
        raise _too_much()
    calls = []
    try:
        for message in _BODY.decode(body).messages:
            if bytes(memoryview(message.content)[:1]) == b"[":
                calls += [part.input for part in _PARTS.decode(message.content) if part.type == _TOOL_USE]
    except UNREADABLE:
        return []
    return calls


def _too_much() -> ClientError:
    return ClientError(400, "invalid_request", "The body holds too many values beside images, audio or video.")
