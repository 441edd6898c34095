"""Find an image, audio or video URL in a request that vLLM would fetch from inside the cluster.

vLLM fetches the URLs of content parts only: a field of the same name in a tool's schema, in `metadata` or in the
arguments of a tool call is data. The shapes of a part (OpenAI chat, OpenAI responses, Anthropic):

    {"type": "image_url", "image_url": {"url": "https://..."}}    likewise audio_url, video_url, file_url
    {"type": "input_image", "image_url": "https://..."}
    {"type": "image", "source": {"type": "url", "url": "https://..."}}

On `/v2/embed` the entries of the list `images` are URLs themselves.

The check has two steps, since a body may have 10 MiB:

1. Search the bytes for the keys, anywhere in the body, and decode only the few bytes after each key. In valid JSON a
   string never contains `"image_url"` with an unescaped first quote, so each match is a whole key or a whole value.
   Nearly every request ends here: it has no such key, or only `data:` URLs.
2. If step 1 found a URL, walk the fields from which the path's request model reads content (READ): through lists, and
   through `content` and `output` of each object, where all three shapes hold their parts. Every key in there counts,
   whatever the part's `type`; so does a list whose items are neither objects nor strings.

Only a URL that plainly begins with `data:` (upper or lower case) is allowed. Anything else is reported: `file:`, an
empty string, a leading blank, an escape. If an object repeats a key, each occurrence counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from aiaas.errors import ClientError
from aiaas.openai import paths, windows
from aiaas.openai.toplevel import UNREADABLE, JsonKey, top_level, unreadable
from aiaas.openai.windows import WINDOW

MEDIA_KEYS: Final = frozenset({"image_url", "audio_url", "video_url", "file_url"})
# The fields whose content vLLM 0.32 renders with the media in it.
_SCORED: Final = frozenset({"data_1", "data_2", "queries", "documents", "items", "text_1", "text_2", "query"})
READ: Final = {
    paths.CHAT: frozenset({"messages"}),
    paths.COMPLETIONS: frozenset[str](),
    paths.RESPONSES: frozenset({"input", "previous_input_messages"}),
    paths.MESSAGES: frozenset({"messages", "system"}),
    paths.COUNT_TOKENS: frozenset({"messages", "system"}),
    paths.EMBEDDINGS: frozenset({"messages", "input"}),
    paths.V2_EMBED: frozenset({"inputs"}),
    paths.SCORE: _SCORED,
    paths.PLAIN_SCORE: _SCORED,
    paths.RERANK: _SCORED,
    paths.PLAIN_RERANK: _SCORED,
    paths.V2_RERANK: _SCORED,
    paths.CLASSIFY: frozenset({"messages", "input"}),
    paths.POOLING: frozenset({"messages", "input"}),
    paths.TOKENIZE: frozenset({"messages"}),
    paths.DETOKENIZE: frozenset[str](),
    **dict.fromkeys(paths.UPLOADS, frozenset[str]()),  # forms: the file is inside
}
_INSIDE: Final = frozenset({"content", "output"})
# First step: occurrences of the keys, as a key or as a value (`"type": "image_url"`), so half as many images. Each
# costs 2 microseconds.
MAX_PLACES: Final = 10_000
# First step: how many times the body may be read in total. Each level of media inside media is read again; real clients
# do not nest them.
MAX_TIMES: Final = 2
# Second step: lists and objects of a field plus fields of its messages and parts; quotes of its strings.
MAX_OBJECTS: Final = 100_000
MAX_QUOTES: Final = 400_000
# Second step: levels of nesting: messages, their parts, the parts of a tool's result, and a list around them all.
MAX_DEPTH: Final = 4

# The keys without escapes, as nearly every client writes them; _ESCAPED matches the other spellings.
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
_LONGEST_KEY: Final = 128  # bytes; an escaped letter has six


def media_url(body: bytes, path: str, *, escaped: bool) -> str | None:
    """The place of a media part's URL other than `data:` in `body` (valid JSON, a request to `path`), None if absent.

        messages[3].content[1].image_url

    escaped  the result of `may_hide_keys(body)`

    Raises ClientError 400 `invalid_request` for a body that exceeds MAX_PLACES or MAX_TIMES or, if it holds such a URL,
    MAX_OBJECTS or MAX_QUOTES.
    """
    anthropic = path in paths.ANTHROPIC
    if path == paths.V2_EMBED and (place := _listed_image(body)) is not None:
        return place
    if not escaped and not anthropic and len(body) <= WINDOW and body.find(b'_url"') < 0:
        return None  # nearly every request
    fields = READ[path]
    keys = (*_KEYS, _SOURCE) if anthropic else _KEYS
    if not fields or not _may_hold(body, keys, escaped=escaped) or not any(_fetched(body, keys, escaped=escaped)):
        return None
    walk = _Walk(keys, escaped)
    for name, value in top_level(body):
        if name in fields and (place := walk.find(bytes(value), name)) is not None:
            return place
    return None


def _listed_image(body: bytes) -> str | None:
    """The place of such a URL in the list `images` of Cohere's API, whose entries are URLs and nothing else."""
    for name, value in top_level(body):
        if name == "images" and bytes(value) != b"null":
            _refuse_very_many(bytes(value))
            try:
                images = _IMAGES.decode(value)
            except UNREADABLE:  # not a list of texts: vLLM refuses it
                return name
            for number, image in enumerate(images):
                if image[:5].lower() != "data:":
                    return f"{name}[{number}]"
    return None


class _Walk:
    """The second step, for the same `keys` as the first."""

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
        """The place of a URL other than `data:` in `written`, the value of the field `name`; None if absent."""
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
    """Refuse a value of too many parts, since decoding it would block the event loop."""
    if written.count(b"{") + written.count(b"[") > MAX_OBJECTS:
        raise _too_much()
    if written.count(b'"') - written.count(b'\\"') > MAX_QUOTES:
        raise _too_much()


def _is_address(url: Raw) -> bool:
    begin = bytes(memoryview(url)[:6])
    return begin[:1] == b'"' and begin.lower() != b'"data:'


def _may_hold(written: bytes, keys: tuple[bytes, ...], *, escaped: bool) -> bool:
    return (
        escaped
        or windows.find_in(written, b'_url"') >= 0
        or (_SOURCE in keys and windows.find_in(written, _SOURCE) >= 0)
    )


class _Media(msgspec.Struct, gc=False):
    url: Raw = Raw(b"null")


_Object = dict[JsonKey, Raw]
_Item = _Object | str

_MEDIA: Final = msgspec.json.Decoder(_Media)
_IMAGES: Final = msgspec.json.Decoder(list[str])
_TRAILING: Final = re.compile(r"trailing characters \(byte (\d+)\)$")


def _fetched(body: bytes, keys: tuple[bytes, ...], *, escaped: bool) -> Iterator[bool]:
    """Yield True for each URL other than `data:`, anywhere in the body."""
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
            if _holds_two(body, b'"url"', at, at + size) or (escaped and body.find(b"\\u00", at, at + size) >= 0):
                yield True  # perhaps two URLs: the decoder keeps only the last
        else:
            continue
        if url[:1] == b'"' and url.lower() != b'"data:':
            yield True


def _places(body: bytes, keys: tuple[bytes, ...]) -> Iterator[tuple[int, int, bytes]]:
    """Begin and end of each occurrence of a key, with the key."""
    for key in keys:
        end = 0
        while (start := windows.find_in(body, key, end)) >= 0:
            end = start + len(key)
            yield start, end, key


def _holds_two(body: bytes, what: bytes, start: int, end: int) -> bool:
    """Whether `what` occurs more than once from `start` to `end`."""
    first = windows.find_in(body, what, start, end)
    return first >= 0 and windows.find_in(body, what, first + len(what), end) >= 0


def _escaped_places(body: bytes, keys: tuple[bytes, ...]) -> Iterator[tuple[int, int, bytes]]:
    """As `_places`, and also with letters of a key written as escapes."""
    for key in keys:
        pattern = _ESCAPED[key]
        for window in range(0, len(body), WINDOW):
            for found in pattern.finditer(body, window, window + WINDOW + _LONGEST_KEY):
                if found.start() < window + WINDOW:
                    yield found.start(), found.end(), key


def _is_escaped(body: bytes, quote: int) -> bool:
    """Whether the quote is escaped, by an odd number of backslashes before it."""
    at = quote
    while body[at - 1] == _BACKSLASH:
        at -= 1
    return (quote - at) % 2 == 1


def _object(view: memoryview) -> tuple[_Media, int]:
    """The object at the beginning of `view`, and its length. Only msgspec's error message gives the length."""
    try:
        return _MEDIA.decode(view), len(view)
    except UNREADABLE as error:
        behind = _TRAILING.search(str(error))
        if behind is None:
            raise unreadable(error) from None
    size = int(behind[1]) - 1
    return _MEDIA.decode(view[:size]), size


def _too_much() -> ClientError:
    return ClientError(400, "invalid_request", "The body holds too many values besides images, audio or video.")
