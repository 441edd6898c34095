"""From a request's body to a Job: what to generate and how to answer, or a refusal in vLLM's words.

Pure. Forms are pydantic models, since vLLM's are too: the problems they find are then worded alike. Rules on values
follow in vLLM's order: form, values, conversation, model, context. Fields that nothing here depends on are ignored,
known to vLLM or not (18); logprobs, tools that are really called, response_format and images are not simulated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from aiaas.engines.simulator import errors
from aiaas.engines.simulator.generate import (
    TOKENS_PER_MESSAGE,
    TOKENS_TO_OPEN_ANSWER,
    Ask,
    Choice,
    count_tokens,
    make_choice,
    seed_of,
    tokenize,
)
from aiaas.engines.simulator.options import SimulatorOptions

Family = Literal["chat", "completions", "responses", "messages"]

_EOS_TOKEN_ID = "2"  # `logit_bias: {"2": 100}` ends an answer at once, as with the tiny Llama of transcript 161
_COMPLETIONS_MAX_TOKENS = 16  # OpenAI's default, and vLLM's


@dataclass(frozen=True, slots=True)
class Job:
    """One request that generates, decided in full.

    prompt_tokens  of all prompts
    choices        what will be answered, in order of index
    usage          "none", "end" or "every" event of a stream
    echo           fields of the request that /v1/responses repeats
    """

    family: Family
    stream: bool
    prompt_tokens: int
    choices: tuple[Choice, ...]
    seed: int
    usage: Literal["none", "end", "every"] = "none"
    max_tokens: int | None = None
    n: int = 1
    echo: dict[str, Any] = field(default_factory=dict)


class _StreamOptions(BaseModel):
    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False


class _Sampling(BaseModel):
    model: str | None = None
    n: int | None = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop_str_in_output: bool = False


class _Chat(_Sampling):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None


class _Completions(_Sampling):
    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    max_tokens: int | None = _COMPLETIONS_MAX_TOKENS


class _Responses(BaseModel):
    input: str | list[Any]
    instructions: str | None = None
    metadata: dict[str, Any] | None = None
    model: str | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    ignore_eos: bool = False


class _Messages(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    max_tokens: int
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None


class _CountTokens(BaseModel):
    model: str
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None


class TokenizeForm(BaseModel):
    """POST /tokenize, of a prompt or of messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = False


class DetokenizeForm(BaseModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class EmbeddingsForm(BaseModel):
    """POST /v1/embeddings and /pooling."""

    model: str | None = None
    input: list[int] | list[list[int]] | str | list[str]
    encoding_format: Literal["float", "base64"] = "float"


class ScoreForm(BaseModel):
    """POST /score."""

    model: str | None = None
    text_1: str | list[str]
    text_2: str | list[str]


class RerankForm(BaseModel):
    """POST /rerank."""

    model: str | None = None
    query: str
    documents: list[str]
    top_n: int = Field(default=0)


Form = TypeVar("Form", bound=BaseModel)


def parse_json(content_type: str, body: bytes) -> object:
    """The decoded body.

    Raises:
        WireError: not application/json (43), not text (86), not JSON (40), empty (41).
    """
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise errors.unsupported_media_type()
    if not body:
        raise errors.invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}
        raise errors.invalid([{**problem, "ctx": {"error": error.msg}}]) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise errors.unreadable() from error


def fill_form(form: type[Form], data: object) -> Form:
    """The body as a form.

    Raises:
        WireError: fields are missing or mistyped (41 to 60).
    """
    if data is None:
        raise errors.invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return form.model_validate(data, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise errors.invalid([{**problem, "loc": ("body", *problem["loc"])} for problem in found]) from error


def parse_job(family: Family, data: object, options: SimulatorOptions) -> Job:
    """The job that a decoded body asks for.

    Raises:
        WireError: in vLLM's words, see `errors`.
    """
    return _PARSERS[family](data, options)


def check_model(name: str | None, options: SimulatorOptions) -> None:
    """Refuse a model that is not served; none given means the first (17)."""
    if name and name not in options.models:
        raise errors.unknown_model(name, options.models, pooling=options.runner == "pooling")


def _parse_chat(data: object, options: SimulatorOptions) -> Job:
    form = fill_form(_Chat, data)
    _check_stream_options(form)
    if form.tools and form.tool_choice in (None, "auto"):
        raise errors.bad_request(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    check_model(form.model, options)
    if not form.messages:
        raise errors.bad_request("Cannot apply chat template to an empty conversation. Provide at least one message.")
    max_tokens = form.max_completion_tokens if form.max_completion_tokens is not None else form.max_tokens
    prompt_tokens = count_chat_tokens(form.messages, options)
    return _sampled_job("chat", form, max_tokens, [(json.dumps(form.messages), prompt_tokens)], options)


def _parse_completions(data: object, options: SimulatorOptions) -> Job:
    form = fill_form(_Completions, data)
    _check_stream_options(form)
    prompts = _prompts(form.prompt)
    if not prompts:
        message = "Either prompt or prompt_embeds must be provided and non-empty."
        raise errors.bad_request(message, "prompt")
    check_model(form.model, options)
    return _sampled_job("completions", form, form.max_tokens, prompts, options)


def _parse_responses(data: object, options: SimulatorOptions) -> Job:
    form = fill_form(_Responses, data)
    check_model(form.model, options)
    messages = (
        [{"content": form.input}] if isinstance(form.input, str) else [m for m in form.input if isinstance(m, dict)]
    )
    if form.instructions:
        messages.insert(0, {"content": form.instructions})
    prompt_tokens = count_chat_tokens(messages, options)
    left = _context_left(prompt_tokens, options)
    seed = seed_of(options.seed, json.dumps(messages))
    choice = make_choice(Ask(form.max_output_tokens, left, ignore_eos=form.ignore_eos), seed, options.answer_tokens)
    echo = {
        "instructions": form.instructions,
        "metadata": form.metadata,
        "temperature": 1.0 if form.temperature is None else form.temperature,
        "top_p": 1.0 if form.top_p is None else form.top_p,
        "max_output_tokens": left if form.max_output_tokens is None else form.max_output_tokens,
        "user": form.user,
    }
    return Job(
        "responses", bool(form.stream), prompt_tokens, (choice,), seed, max_tokens=form.max_output_tokens, echo=echo
    )


def _parse_messages(data: object, options: SimulatorOptions) -> Job:
    form = fill_form(_Messages, data)
    check_model(form.model, options)
    messages = _with_system(form.messages, form.system)
    prompt_tokens = count_chat_tokens(messages, options)
    left = _context_left(prompt_tokens, options)
    seed = seed_of(options.seed, json.dumps(messages))
    ask = Ask(form.max_tokens, left, stop=tuple(form.stop_sequences or ()))
    choice = make_choice(ask, seed, options.answer_tokens)
    return Job("messages", bool(form.stream), prompt_tokens, (choice,), seed, max_tokens=form.max_tokens)


_PARSERS: dict[Family, Callable[[object, SimulatorOptions], Job]] = {
    "chat": _parse_chat,
    "completions": _parse_completions,
    "responses": _parse_responses,
    "messages": _parse_messages,
}


def count_messages_tokens(data: object, options: SimulatorOptions) -> int:
    """POST /v1/messages/count_tokens (26)."""
    form = fill_form(_CountTokens, data)
    check_model(form.model, options)
    return count_chat_tokens(_with_system(form.messages, form.system), options)


def count_chat_tokens(messages: list[dict[str, Any]], options: SimulatorOptions) -> int:
    """Tokens of a conversation, by the rule of `generate`."""
    pieces = sum(TOKENS_PER_MESSAGE + count_tokens(_text_of(message, options)) for message in messages)
    return pieces + TOKENS_TO_OPEN_ANSWER


def chat_pieces(messages: list[dict[str, Any]], options: SimulatorOptions) -> list[str]:
    """The tokens that `count_chat_tokens` counts, for /tokenize; the template's own are shown as markers."""
    pieces: list[str] = []
    for message in messages:
        pieces += [
            "<|start|>",
            str(message.get("role", "")),
            "<|text|>",
            *tokenize(_text_of(message, options)),
            "<|end|>",
        ]
    return [*pieces, "<|start|>", "assistant", "<|text|>"]


def prompt_texts(value: list[int] | list[list[int]] | str | list[str] | None) -> list[str]:
    """The texts to embed; token ids stand for themselves."""
    return [text for text, _ in _prompts(value)]


def _with_system(messages: list[dict[str, Any]], system: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, *messages] if system else messages


def _text_of(message: dict[str, Any], options: SimulatorOptions) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            if part.get("type") in ("image_url", "input_audio", "video_url", "audio_url"):
                raise errors.bad_request(f"{options.models[0]} is not a multimodal model")
            texts.append(str(part.get("text", "")))
    return "\n".join(texts)


def _prompts(value: list[int] | list[list[int]] | str | list[str] | None) -> list[tuple[str, int]]:
    """Each prompt with its token count; ids count one each."""
    if not value:
        return []
    if isinstance(value, str):
        return [(value, count_tokens(value))]
    if all(isinstance(item, int) for item in value):
        return [(repr(value), len(value))]
    return [(item, count_tokens(item)) if isinstance(item, str) else (repr(item), len(item)) for item in value]  # type: ignore[arg-type]


def _check_stream_options(form: _Sampling) -> None:
    if form.stream_options is not None and not form.stream:
        raise errors.bad_request("Stream options can only be defined when `stream=True`.", "stream_options")


def _sampled_job(
    family: Family, form: _Sampling, max_tokens: int | None, prompts: list[tuple[str, int]], options: SimulatorOptions
) -> Job:
    """Check the sampling values, then make every choice: n for each prompt."""
    n = 1 if form.n is None else form.n
    _check_values(n, form.temperature, max_tokens, options)
    stop = (form.stop,) if isinstance(form.stop, str) else tuple(form.stop or ())
    greedy = form.temperature == 0
    choices = []
    for text, tokens in prompts:
        ask = Ask(
            max_tokens,
            _context_left(tokens, options),
            min_tokens=form.min_tokens,
            ignore_eos=form.ignore_eos,
            eos_first=(form.logit_bias or {}).get(_EOS_TOKEN_ID, 0) >= 100,
            stop=tuple(word for word in stop if word),
            include_stop=form.include_stop_str_in_output,
        )
        for index in range(n):
            seed = seed_of(options.seed, form.seed, text, 0 if greedy else index)
            choices.append(make_choice(ask, seed, options.answer_tokens))
    return Job(
        family,
        bool(form.stream),
        sum(tokens for _, tokens in prompts),
        tuple(choices),
        seed_of(options.seed, form.seed, prompts),
        usage=_usage_mode(form, options),
        max_tokens=max_tokens,
        n=n,
    )


def _check_values(n: int, temperature: float | None, max_tokens: int | None, options: SimulatorOptions) -> None:
    if max_tokens is not None and max_tokens > options.max_model_len:
        raise errors.bad_request(
            f"max_tokens={max_tokens} cannot be greater than max_model_len={options.max_model_len}. "
            "Please request fewer output tokens.",
            "max_tokens",
            max_tokens,
        )
    if n < 1:
        raise errors.bad_request(f"n must be at least 1, got {n}.")
    if temperature is not None and temperature < 0:
        raise errors.bad_request(f"temperature must be non-negative, got {temperature}.", "temperature", temperature)
    if max_tokens is not None and max_tokens < 1:
        raise errors.bad_request(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)


def _usage_mode(form: _Sampling, options: SimulatorOptions) -> Literal["none", "end", "every"]:
    if options.force_include_usage:
        return "every"
    asked = form.stream_options
    if asked is None or not asked.include_usage:
        return "none"
    return "every" if asked.continuous_usage_stats else "end"


def _context_left(prompt_tokens: int, options: SimulatorOptions) -> int:
    """Tokens left for the answer. Raises WireError when the prompt leaves none (54)."""
    if prompt_tokens >= options.max_model_len:
        raise errors.too_long(options.max_model_len)
    return options.max_model_len - prompt_tokens
