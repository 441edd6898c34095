"""Generate answers and their pace: pure functions of the prompt, the options and the seed.

Tokens. One token is one piece of text: the whitespace before a word and up to 16 characters of the word itself (longer
words are several tokens, whitespace at the end is one token). A chat prompt costs the pieces of all its texts, 4 tokens
for each message and 3 for the answer's opening, as much as real chat templates cost. An answer that ends by itself
has one more token without text (vLLM counts the EOS token, transcript 161).

Text. An answer begins with a sentence that identifies the simulator, repeats it every 64 tokens, and otherwise consists
of words drawn by a generator seeded with prompt, seed and choice. The same request has the same answer on any machine.

Continuations. A request may hold the beginning of its own answer as an open message (`continue_final_message`). It gets
the rest of the answer that it would have got without that message, also where the beginning ends inside a token. After
any other beginning the same number of tokens is left out.

Stop strings. As in vLLM, text that could still become part of a stop string is held back: the last max(len(stop)) - 1
characters wait for the next token. If a stop string matches, the answer ends before it (transcript 162).
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from dataclasses import dataclass
from typing import Literal

NOTICE = "This is the aiaas simulator, not a model."
NOTICE_EVERY = 64  # tokens

_PIECE = re.compile(r"\s*\S{1,16}|\s+")
_TEXT = """
a amber an and back basin before brings by cedar clock counts delta each ember engine fjord for front gateway
grove harbor has how in island it its jungle kernel lagoon long machine meadow nectar nobody of one orchard
prairie quartz real request river sends so stands summit testing that the they to took tundra upland valley
wait what while willow words yonder zephyr
"""

NOTICE_TOKENS: tuple[str, ...] = tuple(_PIECE.findall(NOTICE))
WORD_TOKENS: tuple[str, ...] = tuple(" " + word for word in _TEXT.split())


def tokenize(text: str) -> list[str]:
    """Split a text into tokens; joined, the tokens are the text."""
    return _PIECE.findall(text)


def count_tokens(text: str) -> int:
    """Return the number of tokens."""
    return len(_PIECE.findall(text))


@dataclass(frozen=True, slots=True)
class Ask:
    """The parts of a request that decide its answer's length and end.

    max_tokens    the request's own, or None
    context_left  tokens between the prompt and the context's end, where vLLM cuts the answer silently (transcript 71)
    opened        the beginning of the answer, if the prompt has it; the limits count only the tokens after it
    """

    max_tokens: int | None
    context_left: int
    min_tokens: int = 0
    ignore_eos: bool = False
    eos_first: bool = False
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    opened: str = ""


@dataclass(frozen=True, slots=True)
class SimulatedCall:
    """The tool that an answer calls."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class SimulatedChoice:
    """One answer, complete before its first token is sent: deltas[k] is the text that token k adds.

    call  the answer calls this tool, and its text is the call's arguments
    """

    deltas: tuple[str, ...]
    finish_reason: Literal["stop", "length", "abort"]
    stop_reason: str | None = None
    call: SimulatedCall | None = None

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.deltas)

    @property
    def chat_reason(self) -> str:
        """The finish reason of a chat, which has a name of its own for a call; the engine's is "stop"."""
        return self.finish_reason if self.call is None or self.finish_reason == "abort" else "tool_calls"


def seed_of(*parts: object) -> int:
    """Hash all parts to a number that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())


def make_choice(ask: Ask, seed: int, answer_tokens: int) -> SimulatedChoice:
    """Make the answer to `ask`: its tokens and its finish reason.

    Args:
        ask: the request's limits and stop strings.
        seed: from `seed_of`; decides the words and the natural length.
        answer_tokens: the largest natural length.
    """
    rng = random.Random(seed)
    said = count_tokens(ask.opened)
    most = min(ask.context_left, ask.max_tokens if ask.max_tokens is not None else ask.context_left)
    natural = rng.randint((answer_tokens + 1) // 2, answer_tokens) if not ask.eos_first else 1
    natural = max(natural, said + ask.min_tokens + 1)  # its last token has no text
    length = said + most if ask.ignore_eos else min(natural - 1, said + most)
    tokens = rest_of(_tokens(rng, length), ask.opened)
    finish: Literal["stop", "length"] = "length"
    if not ask.ignore_eos and len(tokens) < most:
        tokens, finish = [*tokens, ""], "stop"
    tokens = tokens[:most]
    if ask.stop:
        return _cut_at_stop(tokens, finish, ask)
    return SimulatedChoice(tuple(tokens), finish)


def rest_of(tokens: list[str], opened: str) -> list[str]:
    """Return the tokens of an answer after its beginning `opened`; the first one is a part of a token if the beginning
    ends inside it."""
    if not opened:
        return tokens
    if not "".join(tokens).startswith(opened):
        return tokens[count_tokens(opened) :]
    position = 0
    for number, token in enumerate(tokens):
        position += len(token)
        if position > len(opened):
            return [token[len(opened) - position :], *tokens[number + 1 :]]
    return []


def _tokens(rng: random.Random, count: int) -> list[str]:
    """Return `count` tokens: the notice and words, with the notice again every NOTICE_EVERY tokens."""
    tokens: list[str] = []
    lead = ""
    while len(tokens) < count:
        tokens.append(lead + NOTICE_TOKENS[0])
        tokens.extend(NOTICE_TOKENS[1:])
        tokens.extend(rng.choices(WORD_TOKENS, k=NOTICE_EVERY - len(NOTICE_TOKENS) - 1))
        tokens.append(rng.choice(WORD_TOKENS) + ".")
        lead = " "
    return tokens[:count]


def _cut_at_stop(tokens: list[str], finish: Literal["stop", "length"], ask: Ask) -> SimulatedChoice:
    held_back = max(len(stop) for stop in ask.stop) - 1
    text, sent = "", 0
    deltas: list[str] = []
    for position, token in enumerate(tokens):
        # A new match must include text of this token.
        search_from = max(0, len(text) - held_back)
        text += token
        found = [(at, stop) for stop in ask.stop if stop and (at := text.find(stop, search_from)) >= 0]
        if found and position + 1 > ask.min_tokens:
            at, stop = min(found)
            end = at + len(stop) if ask.include_stop else at
            deltas.append(text[sent : max(end, sent)])
            return SimulatedChoice(tuple(deltas), "stop", stop)
        upto = max(sent, len(text) - (0 if ask.include_stop else held_back))
        deltas.append(text[sent:upto])
        sent = upto
    if deltas:
        deltas[-1] += text[sent:]
    return SimulatedChoice(tuple(deltas), finish)


@dataclass(frozen=True, slots=True)
class Pace:
    """When each token is due, in seconds after the generation began; absolute, so that delays do not accumulate.

    jittered  the offsets with jitter, or None without jitter
    """

    ttft: float
    itl: float
    jittered: tuple[float, ...] | None = None

    def due(self, k: int) -> float:
        """Return the seconds after the beginning at which token k (from 0) is due."""
        if self.jittered is not None:
            return self.jittered[k]
        return self.ttft + k * self.itl


def make_pace(tokens: int, ttft: float, itl: float, jitter: float, seed: int) -> Pace:
    """Make the pace of an answer of `tokens` tokens; `SimulatorOptions` explains the other arguments."""
    if jitter == 0:
        return Pace(ttft, itl)
    rng = random.Random(seed ^ 0x7061_6365)
    gaps = [gap * rng.uniform(1 - jitter, 1 + jitter) for gap in (ttft, *itertools.repeat(itl, max(tokens - 1, 0)))]
    return Pace(ttft, itl, tuple(itertools.accumulate(gaps)))
