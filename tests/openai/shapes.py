"""Bodies that are slow to read for their size, each a function of about how many bytes it shall have.

Most were found by a search over shapes; they are what `test_slow_bodies` holds a bound to, and `python -m
tests.bench.bodies` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

IMAGE: Final = b'{"type":"image_url","image_url":{"url":"data:,x"}}'
_URL: Final = b'{"type":"image_url","image_url":{"url":"https:"}}'
_CALL: Final = b'{"type":"tool_use","input":{"image_url":"x"}}'


def chat(content: bytes) -> bytes:
    """A chat request with this content."""
    return b'{"model":"m","stream":true,"messages":[{"role":"user","content":%b}]}' % content


def listed(item: bytes, first: bytes = b"1") -> Callable[[int], bytes]:
    """A list of equal items behind another."""
    return lambda size: chat(b"[%b,%b]" % (first, b",".join([item] * (size // (len(item) + 1)))))


def messages(item: bytes, first: bytes) -> Callable[[int], bytes]:
    """Equal messages behind another."""
    return lambda size: b'{"model":"m","messages":[%b,%b]}' % (first, b",".join([item] * (size // (len(item) + 1))))


def text(unit: bytes, first: bytes = b"") -> Callable[[int], bytes]:
    """A text of equal units; with `first`, in a list behind it."""
    return lambda size: chat((b'[%b,"%b"]' if first else b'%b"%b"') % (first, unit * (size // len(unit))))


def field(name: str, unit: bytes, around: bytes = b"%b") -> Callable[[int], bytes]:
    """A top-level field of equal units."""
    return lambda size: b'{"model":"m","messages":[],"%b":%b}' % (name.encode(), around % (unit * (size // len(unit))))


SHAPES: Final[dict[str, Callable[[int], bytes]]] = {
    "plain text": text(b"a word or two. "),
    "commas": text(b","),
    "escapes": text(b"\\n"),
    "backslashes": text(b"\\\\"),
    "escaped letters": text(b"\\u0061"),
    "escaped letters beside an image": text(b"\\u0061", IMAGE),
    "surrogates beside an image": text(b"\\ud83d\\ude00", IMAGE),
    "empty texts": listed(b'""'),
    "empty objects": listed(b"{}"),
    "small objects beside an image": listed(b'{"a":{"b":{"c":[]}}}', IMAGE),
    "objects beside an image": listed(b'{"a":1}', IMAGE),
    "one-digit numbers": listed(b"1"),
    "floats beside an image": listed(b"1e-300", IMAGE),
    "4,000-digit numbers": listed(b"9" * 4000),
    "4,000-digit numbers beside an image": listed(b"9" * 4000, IMAGE),
    "4,000-digit fractions beside an image": listed(b"0." + b"9" * 4000, IMAGE),
    "one number": field("seed", b"9"),
    "one number beside an image": field("seed", b"9", b"[%b," + IMAGE + b"]"),
    "deep lists": listed(b"[" * 400 + b"]" * 400),
    "deep lists beside an image": listed(b"[" * 400 + b"]" * 400, IMAGE),
    "deep objects beside an image": listed(b'{"a":' * 100 + b"1" + b"}" * 100, IMAGE),
    "images": listed(IMAGE),
    "sources": listed(b'{"source":{}}'),
    "names of media": listed(b'"image_url"'),
    "names of media, beside an escape": listed(b'"image_ur\\u006d"'),
    "media in media": listed(b'{"image_url":' * 100 + b"1" + b"}" * 100),
    "media with a long list": lambda size: chat(b'[{"image_url":{"a":%b}}]' % listed(b"{}")(size)),
    "tool calls": listed(_CALL),
    "tool calls without media": listed(b'{"type":"tool_use","input":1}', _CALL),
    "texts beside a URL": listed(b'"ab"', _URL),
    "empty texts beside a URL": listed(b'""', _URL),
    "objects beside a URL": listed(b"{}", _URL),
    "lists beside a URL": listed(b"[]", _URL),
    "small objects beside a URL": listed(
        b'{"a":1}', b"{}," + _URL.replace(b"https", b"data") + b',{"image_url":{"x":"https:"}}'
    ),
    "escapes beside a URL": text(b"\\n", _URL),
    "escaped letters beside a URL": text(b"\\u0061", _URL),
    "surrogates beside a URL": text(b"\\ud83d\\ude00", _URL),
    "numbers in lists beside a URL": listed(b"[1]", _URL),
    "a list of numbers beside a URL": lambda size: chat(b"[%b,[%b]]" % (_URL, b"1," * (size // 2) + b"1")),
    "messages beside a URL": lambda size: messages(b'{"content":["_url"]}', _CALL)(size),
    "objects in messages beside a URL": lambda size: messages(b'{"content":[{"a":"_url"}]}', _CALL)(size),
    "objects as content beside a URL": lambda size: messages(b'{"content":{"_url":1}}', _CALL)(size),
    "escaped messages beside a URL": lambda size: messages(b'{"content":[]}', b'{"\\u0061":1},' + _CALL)(size),
    "content in content": lambda size: chat(
        b'[{"content":[%b]}]' % b",".join([b'{"content":[{"_url":1}]}'] * (size // 25)) + b""
    ),
    "fields of an image": lambda size: chat(
        b'[{"image_url":{"url":"data:","url":"data:"%b}}]' % (b',"":1' * (size // 5))
    ),
    "two URLs of each image": listed(b'{"image_url":{"url":"data:","url":"data:"}}'),
    "names of fields beside an escape": listed(b'{"model":1}', b'"\\u0061"'),
    "many fields": lambda size: chat(b"1")[:-1] + b"".join(b',"%07d":1' % n for n in range(size // 12)) + b"}",
    "many keys": lambda size: chat(b"{%b}" % b",".join(b'"%08d":1' % n for n in range(size // 13))),
    "a long name": lambda size: b'{"%b":1,"model":"m","stream":true}' % (b"\\n" * (size // 2)),
    "a long model": lambda size: b'{"model":"%b"}' % (b"\\u0061" * (size // 6)),
    "blanks": lambda size: b'{"model"%b:"m","stream":true}' % (b" " * size),
    "a converted field": lambda size: text(b"a word or two. ")(size).replace(b"true", b"1"),
    "a converted field beside many": lambda size: SHAPES["many fields"](size).replace(b"true", b"1"),
    "a long number": lambda size: b'{"model":"m","stream":true,"max_tokens":"%b1"}' % (b"0" * size),
    "a long fraction": lambda size: b'{"model":"m","stream":true,"max_tokens":1.%b}' % (b"0" * size),
    "UTF-16": lambda size: text(b"a word or two. ")(size // 2).decode().encode("utf-16"),
    "Chinese in UTF-16": lambda size: text("\u4f60".encode())(size // 2 * 3).decode().encode("utf-16"),
    "prompts": field("prompt", b'"",', b'[%b""]'),
    "token lists": field("prompt", b"[1],", b"[%b[1]]"),
}
