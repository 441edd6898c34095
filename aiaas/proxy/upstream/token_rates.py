"""Estimate the LLM tokens of a stream that ended before its usage came, from its events and from the tokens that
earlier streams of the same kind had in each event.

vLLM puts one token into an event by default, several with `--stream-interval` or speculative decoding, and none of its
own into some (a reasoning parser swallows a tag). So learn the number from each stream that ends with usage. For a
stream of T tokens in e events, c choices:

    the first event of a choice holds one token      vLLM sends that at once
    its last one is on average half full             the answer ends wherever it ends
    hence tokens in each other event                 (T - 1.5 c) / (e - 1.5 c)

and a cut stream of e events has streamed c + r (e - c) tokens. At one token an event all of that is exact.

Rules:
1. Kept by the names of backend, model and path, so that a reload does not forget it; where a kind is new, what was
   learnt about its backend counts, since these options are the server's. Bounded: MOST_KINDS, the oldest go.
2. Of the last REMEMBERED streams those count whose events had about as much text as this one's (within ALIKE), by their
   median. A vLLM whose HTTP side is busy puts several tokens together, now more and now fewer, and on some paths tokens
   without text have no events. Where none was alike, all of them count. Under steady conditions all have the same rate,
   and whatever the texts are, this changes nothing.
3. Short streams teach nothing: an end-of-sequence token has no event on some paths, and would count for much.
4. A request with a `stream_interval` of its own teaches nothing about others, and is charged at least that.
5. Before anything was learnt, the size of the text shows whether events hold many tokens: SURELY_MANY bytes of text in
   each of SEVERAL events, since a token of some languages has a dozen bytes, and one of indented code twenty. Then they
   hold one for BYTES_PER_TOKEN. Else an event is one token: better a few tokens too few than four times as many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from aiaas.openai.peek import Peek
from aiaas.proxy.telemetry.record import Record

MOST_KINDS: Final = 1000
REMEMBERED: Final = 31  # streams
ALIKE: Final = 1.25  # times as much text in an event
LEAST_TOKENS: Final = 16  # of a choice; below, a stream teaches nothing
BYTES_PER_TOKEN: Final = 5
SURELY_MANY: Final = 24  # bytes of text in an event, on average
SEVERAL: Final = 8  # events

# Backend, model, path.
Kind = tuple[str, str, str]


class EventRates:
    """The learnt rates. One for each gateway."""

    def __init__(self) -> None:
        self._rates: dict[Kind, deque[tuple[float, float]]] = {}  # tokens and bytes of text in an event

    def streamed(self, record: Record, peek: Peek, model: str) -> int:
        """The estimated tokens of a stream that did not report usage, 0 without a stream; else learn from its usage."""
        if not record.streamed or record.backend is None:
            return 0
        kind, choices = (record.backend, model, record.path), peek.choices * peek.prompts
        if record.output_tokens is None:
            tokens = self.tokens(kind, record.events, choices, least=peek.stream_interval, text=record.event_text)
            return tokens if peek.max_output is None else min(tokens, peek.max_output * choices)
        if peek.stream_interval == 1:
            self.learn(kind, record.output_tokens, record.events, choices, text=record.event_text)
        return 0

    def learn(self, kind: Kind, tokens: int, events: int, choices: int, *, text: float) -> None:
        """A stream ended with usage: `tokens` in `events`, each event with `text` bytes of text."""
        ends = 1.5 * choices
        if tokens < LEAST_TOKENS * choices or events <= ends:
            return
        rate = max(1.0, (tokens - ends) / (events - ends))
        for known in (kind, (kind[0], "", "")):
            rates = self._rates.get(known)
            if rates is None:
                if len(self._rates) >= MOST_KINDS:
                    del self._rates[next(iter(self._rates))]
                rates = self._rates[known] = deque(maxlen=REMEMBERED)
            rates.append((rate, text))

    def tokens(self, kind: Kind, events: int, choices: int, *, least: int, text: float) -> int:
        """The tokens of a stream that was cut after `events`. `least`: the request's own `stream_interval`."""
        first = min(events, choices)
        known = self._rates.get(kind) or self._rates.get((kind[0], "", ""))
        if events < SEVERAL:
            text = 0.0  # too few to tell
        rate = _rate_of(known or (), text)
        return first + round(max(rate, least) * (events - first))


def _rate_of(known: Sequence[tuple[float, float]], text: float) -> float:
    """Tokens in an event with `text` bytes of text; 0 bytes if the text is too short to judge by."""
    if not known:
        return text / BYTES_PER_TOKEN if text >= SURELY_MANY else 1.0
    alike = [rate for rate, other in known if text / ALIKE <= other <= text * ALIKE]
    rates = sorted(alike or [rate for rate, _ in known])
    return rates[(len(rates) - 1) // 2]  # the lower median; the module `statistics` takes 0.3 MiB
