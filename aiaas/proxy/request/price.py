"""The price of a request when it ends, from its Record. Pure.

    vLLM reported usage                                    the reported tokens
    a stream without it: the client left, the backend or   the input, and the tokens that were streamed
    we cut it, or the engine does not report usage
    another answer without it: a proxy compressed it, it   the input, and the output that was reserved: all of it had
    broke off, or its counts cannot be true                been generated before its first byte came
    the same, of a path that generates nothing             the input
    a transcription that tells its seconds, or nothing     the input (TOKENS_A_SECOND; or from the bytes of the form),
                                                           and the tokens of its text
    the client left before the first byte, or it did not   the input
    come in time
    a path that only counts tokens                         one request, no tokens
    an error, vLLM's or ours, instead of an answer         one request, no tokens
    no backend saw it (also: the client left the queue)    nothing

All but the first are estimates. The input is the number that vLLM reported, if it did (`/v1/messages` first).
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from aiaas.openai import paths
from aiaas.openai.peek import estimate_input_tokens
from aiaas.proxy.telemetry.record import CLIENT_LEFT, Record

# Error codes of refusals by the gateway after the limits: the request reached no backend.
NEVER_RAN = frozenset({"no_healthy_backend", "overloaded"})


# vLLM's count for Whisper, in the usage of its streams: one for each 10 ms. Its other answers tell seconds at the most.
TOKENS_A_SECOND: Final = 100
# MP3 of 128 kbit/s: OpenAI's and vLLM's 25 MB are 26 minutes. WAV has twice as many and more, Opus a quarter.
BYTES_A_SECOND: Final = 16_000
# Bytes that compression packs into one, at the most: a bound of more tokens than that (some clients send 2^63 - 1 for
# "no bound") says nothing about an answer.
DENSEST = 1000


class Charge(msgspec.Struct, frozen=True, gc=False):
    """The charge to settle. Tokens are LLM tokens.

    estimated  the backend did not count all of them
    ran        False: it does not cost a request either
    """

    input_tokens: int
    output_tokens: int
    estimated: bool
    ran: bool


def price_of(record: Record, estimated_input: int, reserved_output: int, streamed: int) -> Charge:
    """The charge for an admitted request that has ended as `record` says. `streamed` is the known number of tokens in
    its stream."""
    if record.input_tokens is not None:
        if record.output_tokens is not None:
            return Charge(record.input_tokens, record.output_tokens, estimated=False, ran=True)
        estimated_input = record.input_tokens
    ran = record.upstream is not None and record.error_code not in NEVER_RAN
    if record.path in paths.CHEAP:
        return Charge(0, 0, estimated=False, ran=ran)
    if record.phase == "streaming" and record.status < 400:
        output = streamed if record.streamed else _unseen_output(record, reserved_output)
        return Charge(estimated_input, output, estimated=True, ran=True)
    left = record.status == CLIENT_LEFT and record.upstream is not None
    if left or (record.error_code == "upstream_timeout" and record.overhead is not None):
        return Charge(estimated_input, 0, estimated=True, ran=True)
    return Charge(0, 0, estimated=False, ran=ran)


def tokens_of_sound(seconds: float) -> int:
    """The input tokens of so many seconds of sound."""
    return math.ceil(seconds * TOKENS_A_SECOND)


def tokens_of_upload(size: int) -> int:
    """Estimate the input tokens of a form with a file, from the form's length in bytes."""
    return tokens_of_sound(size / BYTES_A_SECOND)


def used_by(record: Record, estimated_input: int, *, ended: bool) -> tuple[int, int | None]:
    """The tokens of the latest attempt at an endpoint, for its key's share there: input; output, or None if no answer
    began. `ended` is False if the client left."""
    if record.phase == "streaming":
        output = record.output_tokens
        if output is None:
            unseen = estimate_input_tokens(record.sent) if record.path in paths.OUTPUT else 0
            output = record.events if record.streamed else unseen
        return estimated_input if record.input_tokens is None else record.input_tokens, output
    if ended or record.overhead is None:
        return 0, None  # refused, or broken off: the engine has not run it, or lost it
    return estimated_input, None


def _unseen_output(record: Record, reserved: int) -> int:
    """The output tokens of an answer that is not a stream and did not report usage; at least 1."""
    if record.path not in paths.OUTPUT:
        return 0
    size = max(1, record.sent)
    return min(reserved, DENSEST * size) or estimate_input_tokens(size)
