"""Prompts and request bodies: generated prompts of a given length, with or without a shared prefix, or those of a file.

Generated prompts are common English words of about one LLM token each; the report shows the server's token counts. Each
prompt begins with a unique word, so that it does not hit another prompt's prefix in the engine's cache. To measure that
cache, put `shared_prefix` words in front of every prompt. The same seed makes the same prompts.

A file of prompts is JSON lines if its first line begins with `{` or `"`, otherwise text with one prompt a line:

    {"prompt": "..."}                             also "messages": [...], and "max_tokens": 50
    "a prompt by itself"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from aiaas.errors import CheckFailed, UsageError
from aiaas.loadtest.pacer import Draw

_TEXT: Final = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea kid body information
"""
WORDS: Final = tuple(_TEXT.split())
PATHS: Final = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
LONGEST_PROMPT: Final = 1_000_000  # tokens; longer than any model's context

Length = tuple[int, int]


class Prompt(msgspec.Struct, frozen=True):
    """One prompt; `messages` are raw JSON and take precedence over `text`."""

    text: str = ""
    messages: list[msgspec.Raw] | None = None
    max_tokens: int | None = None


class Asking(msgspec.Struct, frozen=True):
    """The settings that all requests of a run share, except the model.

    endpoint      "chat" or "completions"
    prompt_tokens, output_tokens   shortest and longest, drawn evenly; None leaves it to the server or the prompt
    shared_prefix words at the beginning of every prompt, the same in all prompts
    prompts       the prompts of a file, in turn; empty to generate prompts
    """

    endpoint: str = "chat"
    stream: bool = True
    prompt_tokens: Length = (100, 100)
    output_tokens: Length | None = (100, 100)
    shared_prefix: int = 0
    prompts: tuple[Prompt, ...] = ()


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    messages: list[msgspec.Raw] | None = None
    max_tokens: int | None = None


_LINE: Final[msgspec.json.Decoder[_Line | str]] = msgspec.json.Decoder(_Line | str)


def parse_length(option: str, text: str) -> Length:
    """Parse `100`, or `50-200` for lengths drawn evenly between the two. Raises UsageError naming the option."""
    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()):
        raise UsageError(f"{option}: {text!r} is not a length; write 100, or 50-200 for lengths between the two")
    length = (int(low), int(high) if dash else int(low))
    if not 1 <= length[0] <= length[1] <= LONGEST_PROMPT:
        raise UsageError(f"{option}: {text} must be ascending and between 1 and {LONGEST_PROMPT}")
    return length


def parse_prompts(name: str, lines: Sequence[bytes]) -> tuple[Prompt, ...]:
    """Parse a file of prompts. Raises CheckFailed naming file and line."""
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise CheckFailed(f"{name}: does not contain a prompt")
    read = _json_line if filled[0][1][:1] in (b"{", b'"') else _text_line
    return tuple(read(f"{name}:{number}", line) for number, line in filled)


def check_asking(asking: Asking) -> None:
    """Raises UsageError if the settings contradict each other."""
    if asking.endpoint == "completions" and any(prompt.messages is not None for prompt in asking.prompts):
        raise UsageError("the file of prompts contains messages, which need --endpoint chat")
    if not asking.prompts and asking.shared_prefix >= asking.prompt_tokens[0]:
        raise UsageError(
            "--shared-prefix must be shorter than --prompt-tokens, so that each prompt also has unique words"
        )


def _text_line(place: str, line: bytes) -> Prompt:
    try:
        return Prompt(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CheckFailed(f"{place}: is not UTF-8") from error


def _json_line(place: str, line: bytes) -> Prompt:
    try:
        read = _LINE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckFailed(f'{place}: {error}; write {{"prompt": "..."}} or {{"messages": [...]}}') from error
    if isinstance(read, str):
        return Prompt(read)
    if (read.prompt is None) == (read.messages is None):
        raise CheckFailed(f"{place}: needs either prompt or messages")
    if read.max_tokens is not None and read.max_tokens < 1:
        raise CheckFailed(f"{place}: max_tokens must be 1 or more")
    return Prompt(read.prompt or "", read.messages, read.max_tokens)


def next_body(asking: Asking, model: str, number: int, turn: int, draw: Draw, sizes: Draw) -> bytes:
    """Return the body of request `number`, which belongs to `turn`.

    draw   random numbers for the words. The words differ within a turn, or the engine's prefix cache would speed up
           the second request
    sizes  random numbers for the lengths, the same for all requests of a turn: two requests sent two ways can only be
           compared if they ask for answers of the same length
    """
    given = asking.prompts
    prompt = given[turn % len(given)] if given else Prompt(_made(asking, number, draw, sizes))
    fields: dict[str, object] = {"model": model}
    if asking.endpoint == "chat":
        fields["messages"] = prompt.messages or [{"role": "user", "content": prompt.text}]
    else:
        fields["prompt"] = prompt.text
    if prompt.max_tokens is not None:
        fields["max_tokens"] = prompt.max_tokens
    elif asking.output_tokens is not None:
        # ignore_eos makes vLLM generate exactly max_tokens: answers of different lengths could not be compared.
        fields |= {"max_tokens": _drawn(asking.output_tokens, sizes), "ignore_eos": True}
    if asking.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(fields)


def _made(asking: Asking, number: int, draw: Draw, sizes: Draw) -> str:
    length = max(_drawn(asking.prompt_tokens, sizes) - asking.shared_prefix, 1)
    prefix = [WORDS[position % len(WORDS)] for position in range(asking.shared_prefix)]
    own = [str(number), *(WORDS[int(draw() * len(WORDS))] for _ in range(length - 1))]
    return " ".join([*prefix, *own])


def _drawn(length: Length, draw: Draw) -> int:
    low, high = length
    return low if low == high else low + int(draw() * (high - low + 1))
