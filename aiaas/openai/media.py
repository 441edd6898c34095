"""Does a request name an image, audio or video by a URL that vLLM would fetch, from inside the cluster? Where?

vLLM fetches what a content part names, and nothing else: a field of that name in a tool's schema, in `metadata` or in
the arguments of a tool call is data. The shapes (OpenAI chat, OpenAI responses, Anthropic):

    {"type": "image_url", "image_url": {"url": "https://..."}}    likewise audio_url, video_url, file_url
    {"type": "input_image", "image_url": "https://..."}
    {"type": "image", "source": {"type": "url", "url": "https://..."}}

Two steps, since a body may have 10 MiB:

1. The keys are searched in the bytes, wherever they stand, and nothing is decoded but the few bytes behind each. In
   valid JSON a text never holds `"image_url"` with a first quote that is not escaped, so what is found is the whole
   text of a key or of a value. Nearly every request ends here: it has no such key, or a `data:` URL behind each.
2. Where a URL was found, the fields that the path's request model reads content from (READ) are walked: through lists,
   and through `content` and `output` of each object, which is where all three shapes hold their parts. There each key
   counts, whatever the part's `type` is; so does a list whose items are neither objects nor texts.

A URL is only let through if it plainly begins with `data:`, in any case. Everything else counts: `file:`, an empty
string, a leading blank, an escape. Of equal keys in one object each counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from aiaas.errors import ClientError
from aiaas.openai import paths
from aiaas.openai.toplevel import UNREADABLE, JsonKey, top_level, unreadable

MEDIA_KEYS: Final = frozenset({"image_url", "audio_url", "video_url", "file_url"})
# The fields whose content vLLM 0.32 renders with the media in it.
_SCORED: Final = frozenset({"data_1", "data_2", "queries", "documents", "items", "text_1", "text_2", "query"})
READ: Final = {
    paths.CHAT: frozenset({"messages"}),
    paths.COMPLETIONS: frozenset[str](),
    paths.RESPONSES: frozenset({"input", "previous_input_messages"}),
    paths.MESSAGES: frozenset({"messages", "system"}),
    paths.EMBEDDINGS: frozenset({"messages", "input"}),
    paths.SCORE: _SCORED,
    paths.RERANK: _SCORED,
    paths.TOKENIZE: frozenset({"messages"}),
    paths.DETOKENIZE: frozenset[str](),
}
_INSIDE: Final = frozenset({"content", "output"})
# Of the first step: places where one of the keys stands, as a key or as a value (`"type": "image_url"`): half of them
# images. Each costs 2 microseconds.
MAX_PLACES: Final = 10_000
# Of the first step: how often the body may be read in sum. Media inside media inside media is read again for each; no
# client writes that.
MAX_TIMES: Final = 2
# Of the second step: lists and objects of a field, fields of its messages and parts, and quotes of its texts.
MAX_OBJECTS: Final = 100_000
MAX_QUOTES: Final = 400_000
# Of the second step: messages, their parts, the parts of a tool's result, and a list around them all.
MAX_DEPTH: Final = 4

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
_CONTAINERS: Final = b"[{"
# One search holds up all other threads for as long as it takes, so it goes on by windows.
_WINDOW: Final = 256 * 1024
_LONGEST_KEY: Final = 128  # each letter as six bytes


def media_url(body: bytes, path: str, *, escaped: bool) -> str | None:
    """Where in `body` (valid JSON, a request to `path`) a media part has a URL other than `data:`, None if nowhere.

        messages[3].content[1].image_url

    escaped  what `may_hide_keys` says of it

    Raises ClientError 400 `invalid_request` for a body of more than MAX_PLACES, of media inside media, or of a URL
    among more than MAX_OBJECTS.
    """
    fields = READ[path]
    keys = (*_KEYS, _SOURCE) if path in paths.ANTHROPIC else _KEYS
    if not fields or not _may_hold(body, keys, escaped=escaped) or not any(_fetched(body, keys, escaped=escaped)):
        return None
    walk = _Walk(keys, escaped)
    for name, value in top_level(body):
        if name in fields and (place := walk.find(bytes(value), name)) is not None:
            return place
    return None


class _Walk:
    """The second step. `keys` are those of the first."""

    def __init__(self, keys: tuple[bytes, ...], escaped: bool) -> None:
        self._keys = keys
        self._escaped = escaped
        self._names = frozenset(key[1:-1].decode() for key in keys)
        self._seen = 0
        self._list = msgspec.json.Decoder(list[_Item | list[_Item]], dec_hook=self._key)
        self._object = msgspec.json.Decoder(_Object, dec_hook=self._key)

    def _key(self, _: type, name: Any) -> JsonKey:
        self._seen += 1
        if self._seen > MAX_OBJECTS:
            raise _too_much()
        return JsonKey(name)

    def find(self, written: bytes, name: str, depth: int = 1) -> str | None:
        """Where in a field's value, `written`, such a URL stands; `name` is the field."""
        if written[0] not in _CONTAINERS or not _may_hold(written, self._keys, escaped=self._escaped):
            return None
        if depth > MAX_DEPTH:
            return name
        _refuse_very_many(written)
        try:
            if written[0] == _BRACE:
                return self._in_object(self._object.decode(written), name, depth)
            return self._in_list(self._list.decode(written), name, depth)
        except UNREADABLE:  # vLLM refuses such a list
            return name

    def _in_list(self, items: Sequence[_Item | list[_Item]], name: str, depth: int) -> str | None:
        for number, item in enumerate(items):
            place = None
            if isinstance(item, list):
                place = self._in_list(item, f"{name}[{number}]", depth)
            elif isinstance(item, dict):
                place = self._in_object(item, f"{name}[{number}]", depth)
            if place is not None:
                return place
        return None

    def _in_object(self, fields: _Object, name: str, depth: int) -> str | None:
        for key, value in fields.items():
            if key.name in self._names:
                if self._is_fetched(value, key.name):
                    return f"{name}.{key.name}"
            elif key.name in _INSIDE:
                place = self.find(bytes(value), f"{name}.{key.name}", depth + 1)
                if place is not None:
                    return place
        return None

    def _is_fetched(self, value: Raw, key: str) -> bool:
        first = memoryview(value)[0]
        if first == _QUOTE:
            return key != "source" and _is_address(value)
        if first != _BRACE:
            return False
        return any(inner.name == "url" and _is_address(url) for inner, url in self._object.decode(value).items())


def _refuse_very_many(written: bytes) -> None:
    """Decoding them would hold up everybody else."""
    if written.count(b"{") + written.count(b"[") > MAX_OBJECTS:
        raise _too_much()
    if written.count(b'"') - written.count(b'\\"') > MAX_QUOTES:
        raise _too_much()


def _is_address(url: Raw) -> bool:
    begin = bytes(memoryview(url)[:6])
    return begin[:1] == b'"' and begin.lower() != b'"data:'


def _may_hold(written: bytes, keys: tuple[bytes, ...], *, escaped: bool) -> bool:
    return escaped or _find(written, b'_url"', 0) >= 0 or (_SOURCE in keys and _find(written, _SOURCE, 0) >= 0)


class _Media(msgspec.Struct, gc=False):
    url: Raw = Raw(b"null")


_Object = dict[JsonKey, Raw]
_Item = _Object | str

_MEDIA: Final = msgspec.json.Decoder(_Media)
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)$")


def _fetched(body: bytes, keys: tuple[bytes, ...], *, escaped: bool) -> Iterator[bool]:
    """True for each URL that is not `data:`, wherever it stands."""
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
            if body.count(b'"url"', at, at + size) > 1 or (escaped and body.find(b"\\u00", at, at + size) >= 0):
                yield True  # perhaps two URLs, of which the first is another
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


def _too_much() -> ClientError:
    return ClientError(400, "invalid_request", "The body holds too many values beside images, audio or video.")
