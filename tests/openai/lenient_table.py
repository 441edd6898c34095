r"""Fields that are accepted although they are not written as their type says, and fields that are not: one table.

`test_lenient.py` holds the gateway to it, `tests/e2e/test_vllm_lenient.py` holds vLLM's own request models to it (`nox
-s vllm`), and docs/accepted.md is made from it (`lenient_page.py`).

The rule: what vLLM takes and what cannot hurt others goes through, read as vLLM reads it. A row whose `why` is not
empty is refused although vLLM takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiaas.openai import paths

REFUSED: Final = "refused"
Reading = int | bool | str | None


@dataclass(frozen=True, slots=True)
class Values:
    """Ways to write a value, each with what vLLM 0.32 reads."""

    what: str
    written: Mapping[str, Reading]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """A body; `taken` says whether vLLM 0.32 accepts it, `reads` the values that the gateway reads from it."""

    what: str
    path: str
    body: bytes
    taken: bool
    why: str = ""
    shown: str = ""
    reads: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A request target: vLLM 0.32's status for it, and the path that the gateway serves (None: 404)."""

    method: str
    target: str
    vllm: str
    served: str | None
    why: str = ""


SERVES: Final = "serves it"
REDIRECTS: Final = "redirects to the path without the slash (307)"
NOT_FOUND: Final = "404"

WHOLE_FIELDS: Final = (
    (paths.CHAT, "n"),
    (paths.CHAT, "max_tokens"),
    (paths.CHAT, "max_completion_tokens"),
    (paths.COMPLETIONS, "n"),
    (paths.COMPLETIONS, "max_tokens"),
    (paths.RESPONSES, "max_output_tokens"),
    (paths.MESSAGES, "max_tokens"),
)
TRUTH_FIELDS: Final = (
    (paths.CHAT, "stream"),
    (paths.CHAT, "stream_options.include_usage"),
    (paths.COMPLETIONS, "stream"),
    (paths.RESPONSES, "stream"),
    (paths.RESPONSES, "background"),
    (paths.MESSAGES, "stream"),
)

WHOLE: Final = (
    Values("a whole number", {"50": 50, "9223372036854775807": 2**63 - 1}),
    Values(
        "with a fraction of zeros or an exponent, as long as it is whole as a double",
        {
            "50.0": 50, "5e1": 50, "5E+1": 50, "500e-1": 50, "0.5e2": 50, "50.000000000000000000001": 50,
            "49.9999999999999999999": 50, "9007199254740993.0": 2**53,
        },
    ),
    Values(
        "in a text: digits, with a sign, zeros in front, a fraction of zeros, single underscores, blanks around them",
        {
            '"50"': 50, '"+50"': 50, '"050"': 50, '"0_5_0"': 50, '"5_0"': 50, '"50.0"': 50, '"5_0.00"': 50,
            '" 50"': 50, '"50 "': 50, '"\\t50\\r\\n"': 50, '"\\u000b50\\f"': 50, '"\\u008550"': 50,
            '"\\u00a050"': 50, '"\\u20035\\u0030\\u3000"': 50, '"9007199254740993.0"': 2**53 + 1,
            '"\\u0035\\u0030"': 50,
        },
    ),
    Values("a truth value, which is a number to Python", {"true": 1}),
    Values(
        "not whole, or not finite",
        {"50.5": REFUSED, "0.5": REFUSED, '"50.5"': REFUSED, "1e400": REFUSED, "1e19": REFUSED, "9.3e18": REFUSED},
    ),
    Values(
        "any other text",
        {
            '""': REFUSED, '" "': REFUSED, '"5 0"': REFUSED, '"1e2"': REFUSED, '"0x32"': REFUSED, '"5__0"': REFUSED,
            '"_50"': REFUSED, '"50_"': REFUSED, '"+_50"': REFUSED, '"50."': REFUSED, '".0"': REFUSED,
            '"+ 50"': REFUSED, '"+-50"': REFUSED, '"--50"': REFUSED, '"50.0_0"': REFUSED, '"50.0.0"': REFUSED,
            '"5,000"': REFUSED, '"fifty"': REFUSED, '"true"': REFUSED, '"nan"': REFUSED, '"\\u0665\\u0660"': REFUSED,
            '"\\uff15\\uff10"': REFUSED, '"\\u001c50"': REFUSED, '"50\\u0000"': REFUSED, '"\\ufeff50"': REFUSED,
            '"\\u200b50"': REFUSED,
        },
    ),
    Values("a list or an object", {"[]": REFUSED, "[50]": REFUSED, "{}": REFUSED}),
    Values(
        "below the least (0 of `max_tokens`, else 1), however it is written",
        {"-50": -50, '"-50"': -50, "-50.0": -50, '"-5_0.0"': -50},
        "vLLM refuses it behind its request model",
    ),
    Values(
        "above 2^63 - 1",
        {"9223372036854775808": 2**63, '"9223372036854775808"': 2**63, "1" + "0" * 400: 10**400},
        "vLLM refuses it behind its request model: no context is as long",
    ),
    Values("longer than 100 bytes", {'"' + "0" * 200 + '50"': 50}, "no client writes it, and it takes time to read"),
)  # fmt: skip

TRUTH: Final = (
    Values("true or false", {"true": True, "false": False}),
    Values(
        "one or zero, as any number",
        {
            "1": True, "0": False, "-0": False, "1.0": True, "0.0": False, "-0.0": False, "1e0": True, "10e-1": True,
            "1.0000000000000000000001": True,
        },
    ),
    Values(
        "a text, in any case: 1, true, t, yes, y, on; 0, false, f, no, n, off",
        {
            '"1"': True, '"true"': True, '"TRUE"': True, '"tRuE"': True, '"t"': True, '"T"': True, '"yes"': True,
            '"Yes"': True, '"y"': True, '"on"': True, '"oN"': True, '"\\u0074rue"': True, '"0"': False,
            '"false"': False, '"False"': False, '"f"': False, '"no"': False, '"NO"': False, '"n"': False,
            '"off"': False, '"Off"': False,
        },
    ),
    Values(
        "any other number",
        {"2": REFUSED, "-1": REFUSED, "0.5": REFUSED, "1e400": REFUSED, "9223372036854775809": REFUSED},
    ),
    Values(
        "any other text, one with blanks included",
        {
            '""': REFUSED, '" true"': REFUSED, '"true "': REFUSED, '"1.0"': REFUSED, '"01"': REFUSED,
            '"+1"': REFUSED, '"null"': REFUSED, '"None"': REFUSED, '"enabled"': REFUSED, '"ok"': REFUSED,
            '"tru\\u0435"': REFUSED, '"\\uff54rue"': REFUSED, '"ye\\u017f"': REFUSED,
        },
    ),
    Values("a list or an object", {"[]": REFUSED, "[1]": REFUSED, "{}": REFUSED}),
)  # fmt: skip

_MESSAGES: Final = b'"messages":[{"role":"user","content":"a"}]'


def chat(fields: bytes) -> bytes:
    """A chat request with these fields, too; the smallest that vLLM takes."""
    return b'{"model":"m",%b,%b}' % (_MESSAGES, fields)


_SMALL: Final = chat(b'"max_tokens":5')
_SEEN: Final = {"model": "m", "max_output": 5}

BODIES: Final = (
    Body("`null` counts as absent", paths.CHAT, chat(b'"n":null,"max_tokens":null,"stream":null'), True,
         reads={"choices": 1, "max_output": None, "stream": False}),
    Body("a byte order mark in front", paths.CHAT, b"\xef\xbb\xbf" + _SMALL, True, shown="EF BB BF", reads=_SEEN),
    Body("and blanks behind it", paths.CHAT, b"\xef\xbb\xbf\r\n " + _SMALL, True, shown="EF BB BF", reads=_SEEN),
    Body("UTF-16 with a byte order mark; goes on in UTF-8", paths.CHAT,
         b"\xff\xfe" + _SMALL.decode().encode("utf-16-le"), True, shown="FF FE", reads=_SEEN),
    Body("the same, the other byte first", paths.CHAT, b"\xfe\xff" + _SMALL.decode().encode("utf-16-be"), True,
         shown="FE FF", reads=_SEEN),
    Body("UTF-16 without a mark", paths.CHAT, _SMALL.decode().encode("utf-16-le"), True, shown="7B 00", reads=_SEEN),
    Body("the same, the other byte first", paths.CHAT, _SMALL.decode().encode("utf-16-be"), True, shown="00 7B",
         reads=_SEEN),
    Body("UTF-32, with a mark or without", paths.CHAT, _SMALL.decode().encode("utf-32"), True, shown="FF FE 00 00",
         reads=_SEEN),
    Body("the same without", paths.CHAT, _SMALL.decode().encode("utf-32-be"), True, shown="00 00 00 7B", reads=_SEEN),
    Body("two byte order marks", paths.CHAT, b"\xef\xbb\xbf" * 2 + _SMALL, False, shown="EF BB BF EF BB BF"),
    Body("a byte order mark behind blanks", paths.CHAT, b" \xef\xbb\xbf" + _SMALL, False, shown="20 EF BB BF"),
    Body("UTF-16 that ends within a character", paths.CHAT, b"\xff\xfe" + _SMALL.decode().encode("utf-16-le") + b"{",
         False, shown="FF FE .. 7B"),
    Body("text that is not UTF-8, in a field that is read", paths.CHAT, chat(b'"max_tokens":"\xff"'), False,
         shown='"max_tokens": FF'),
    Body("NaN, Infinity", paths.CHAT, chat(b'"temperature":NaN'), True,
         "it is not JSON, and what an engine makes of it is not known"),
    Body("half a character (a lone surrogate)", paths.CHAT, _SMALL.replace(b'"a"', b'"a\\ud83d"'), True,
         "vLLM's tokenizer refuses it, behind the request model"),
    Body("a field that we read, twice", paths.CHAT, chat(b'"n":1,"n":2'), True,
         "vLLM takes the last one; another reader may take the first"),
    Body("twice, once with escapes", paths.CHAT, chat(b'"n":1,"\\u006e":2'), True, "as above"),
    Body("twice, once in a form that is converted", paths.CHAT, chat(b'"n":1,"n":"2"'), True, "as above"),
    Body("one that the path does not know, too", paths.MESSAGES,
         b'{"model":"m",%b,"max_tokens":"5","n":1,"n":2}' % _MESSAGES, True, "as above"),
    Body("a field that nobody knows", paths.CHAT, chat(b'"foo":{"bar":[]},"max_tokens":5'), True, reads=_SEEN),
    Body("`model` as a number", paths.CHAT, _SMALL.replace(b'"m"', b"5"), False),
    Body("`model` empty, null or missing", paths.CHAT, _SMALL.replace(b'"m"', b'""'), True,
         "vLLM takes its first model; here the name decides on the backend and on what the key may use"),
    Body("`stream_options` with fields that nobody knows", paths.CHAT,
         chat(b'"stream":1,"stream_options":{"include_usage":"yes","x":1}'), True,
         reads={"stream": True, "include_usage": True}),
    Body("`stream_options` null", paths.CHAT, chat(b'"stream":"on","stream_options":null'), True,
         reads={"stream": True, "include_usage": False, "has_stream_options": False}),
    Body("`stream_options` that is not an object", paths.CHAT, chat(b'"stream":true,"stream_options":[]'), False),
    Body("`stream_options` that is not an object", paths.CHAT, chat(b'"stream":true,"stream_options":true'), False),
    Body("`max_tokens` of no sense beside `max_completion_tokens`", paths.CHAT,
         chat(b'"max_tokens":-1,"max_completion_tokens":"5"'), True,
         reads={"max_output": 5, "max_output_field": "max_completion_tokens"}),
    Body("`best_of` is not known to vLLM 0.32; a number counts, since older ones obey it", paths.CHAT,
         chat(b'"best_of":"x","n":"2"'), True, reads={"choices": 2}),
    Body("the same", paths.CHAT, chat(b'"best_of":"4","n":2'), True, reads={"choices": 4}),
    Body("`stream_interval`", paths.CHAT, chat(b'"stream_interval":"8.0","stream":1'), True,
         reads={"stream_interval": 8}),
    Body("fields that the path does not know, of any type", paths.COMPLETIONS,
         b'{"model":"m","prompt":"a","max_tokens":"5","max_completion_tokens":[],"max_output_tokens":{},"background":1}',
         True, reads=_SEEN | {"background": False}),
    Body("the same", paths.RESPONSES,
         b'{"model":"m","input":"a","max_output_tokens":5.0,"max_tokens":"x","n":{},"stream_options":5}',
         True, reads=_SEEN | {"choices": 1}),
    Body("the same", paths.MESSAGES,
         b'{"model":"m",%b,"max_tokens":"5","n":"x","stream_options":5,"max_completion_tokens":-1}' % _MESSAGES,
         True, reads=_SEEN | {"choices": 1}),
    Body("the same", paths.EMBEDDINGS, b'{"model":"m","input":["a","b"],"stream":"x","n":[],"max_tokens":-1}', True,
         reads={"model": "m", "prompts": 2, "stream": False, "max_output": None}),
    Body("the same", paths.CHAT, chat(b'"background":true,"max_tokens":5'), True, reads=_SEEN | {"background": False}),
    Body("the same", paths.CHAT, chat(b'"background":"x","max_output_tokens":-1,"max_tokens":5'), True, reads=_SEEN),
)  # fmt: skip

TARGETS: Final = (
    Target("POST", "/v1/chat/completions/", REDIRECTS, paths.CHAT),
    Target("POST", "/v1/completions/?a=b", REDIRECTS, paths.COMPLETIONS),
    Target("POST", "/v1/messages//", REDIRECTS, paths.MESSAGES),
    Target("POST", "/v1/responses/", REDIRECTS, paths.RESPONSES),
    Target("POST", "/tokenize/", REDIRECTS, paths.TOKENIZE),
    Target("GET", "/v1/models/", REDIRECTS, paths.MODELS),
    Target("GET", "/health/", REDIRECTS, paths.HEALTH),
    Target("GET", "/ready/", NOT_FOUND, paths.READY),
    Target("POST", "//v1/chat/completions", NOT_FOUND, None),
    Target("POST", "/v1//chat/completions", NOT_FOUND, None),
    Target("POST", "/V1/chat/completions", NOT_FOUND, None),
    Target(
        "POST",
        "/v1/chat%2Fcompletions",
        SERVES,
        None,
        "a proxy in front that lets some paths pass may read another one",
    ),
)
