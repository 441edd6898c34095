"""Check values in vLLM's order and with vLLM's messages (transcripts 50 to 59, and the wire tests).

Pure. The first violated rule decides the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiaas.simulator import errors
from aiaas.simulator.options import SimulatorOptions

MAX_N = 16384  # VLLM_MAX_N_SEQUENCES


@dataclass(frozen=True, slots=True)
class Values:
    """The sampling values of a request; None if not given. OpenAI's and vLLM's references explain meaning and units."""

    n: int = 1
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    logit_bias: dict[str, float] | None = None


def check_length(max_tokens: int | None, name: str, prompt_tokens: int, max_model_len: int) -> None:
    """Check that the prompt leaves room for an answer, and that the request does not ask for more than the context.

    Raises:
        WireError: 400. Prompt and answer together may exceed the context without an error (71).
    """
    if max_tokens is not None and max_tokens > max_model_len:
        raise errors.bad_request(
            f"{name}={max_tokens} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            name,
            max_tokens,
        )
    if prompt_tokens >= max_model_len:
        raise errors.too_long(max_model_len)


def check_values(values: Values) -> None:
    """Check that every sampling value is within its bounds.

    Raises:
        WireError: 400, for the first value out of bounds.
    """
    _check_logit_bias(values.logit_bias)
    if values.n < 1:
        raise errors.bad_request(f"n must be at least 1, got {values.n}.")
    if values.n > MAX_N:
        raise errors.bad_request(
            f"n must be at most {MAX_N}, got {values.n}. To increase this limit, "
            "set the VLLM_MAX_N_SEQUENCES environment variable."
        )
    for name, penalty in (("presence", values.presence_penalty), ("frequency", values.frequency_penalty)):
        if penalty is not None and not -2 <= penalty <= 2:
            raise errors.bad_request(f"{name}_penalty must be in [-2, 2], got {penalty}.")
    _check_sampling(values)
    _check_tokens(values)
    if any(not stop for stop in values.stop):
        raise errors.bad_request("stop cannot contain an empty string.")
    if values.temperature == 0 and values.n > 1:
        raise errors.bad_request(f"n must be 1 when using greedy sampling, got {values.n}.")


def _check_logit_bias(logit_bias: dict[str, float] | None) -> None:
    wrong = [key for key in logit_bias or {} if not key.lstrip("-").isdecimal()]
    if wrong:
        message = f"logit_bias contains key(s) that cannot be converted to integer token IDs: {wrong}"
        raise errors.bad_request(message, "logit_bias", wrong)


def _check_sampling(values: Values) -> None:
    temperature, top_p = values.temperature, values.top_p
    if temperature is not None and temperature < 0:
        raise errors.bad_request(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if temperature is not None and not temperature <= 2:
        raise errors.bad_request(f"temperature must be in [0, 2], got {temperature}.", "temperature", temperature)
    if top_p is not None and not 0 < top_p <= 1:
        raise errors.bad_request(f"top_p must be in (0, 1], got {top_p}.", "top_p", top_p)
    if values.top_k is not None and values.top_k < -1:
        raise errors.bad_request(f"top_k must be 0 (disable), or at least 1, got {values.top_k}.")
    if values.min_p is not None and not 0 <= values.min_p <= 1:
        raise errors.bad_request(f"min_p must be in [0, 1], got {values.min_p}.")


def _check_tokens(values: Values) -> None:
    max_tokens = values.max_tokens
    if max_tokens is not None and max_tokens < 1:
        raise errors.bad_request(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    if values.min_tokens < 0:
        raise errors.bad_request(f"min_tokens must be greater than or equal to 0, got {values.min_tokens}.")
    if max_tokens is not None and values.min_tokens > max_tokens:
        raise errors.bad_request(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {values.min_tokens}."
        )


def check_model(name: str | None, options: SimulatorOptions, *, pooling: bool = False) -> None:
    """Refuse a model that is not served; without a name the first model counts (17). Pooling paths have a shorter
    message (157)."""
    if name and name not in options.models:
        raise errors.unknown_model(name, options.models, pooling=pooling)
