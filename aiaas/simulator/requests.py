"""Parse a request's body into a Job, which says what to generate and how to answer, or raise vLLM's error.

Pure. The order of the checks is vLLM's: form, contradicting fields, model, tools, conversation, length, values. Not
simulated: logprobs, actual tool calls, response_format, echo, images (refused, 62).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from aiaas.simulator import errors
from aiaas.simulator.checks import Values, check_length, check_model, check_values
from aiaas.simulator.conversation import ChatMessage, ChatPrompt, chat_prompt, check_arguments
from aiaas.simulator.errors import WireError
from aiaas.simulator.forms import (
    ChatForm,
    CompletionPrompt,
    CompletionsForm,
    CountTokensForm,
    MessagesForm,
    ResponsesForm,
    Sampling,
    TokenizeForm,
    fill_form,
)
from aiaas.simulator.generate import (
    Ask,
    SimulatedChoice,
    count_tokens,
    make_choice,
    seed_of,
    tokenize,
)
from aiaas.simulator.options import SimulatorOptions

ApiFamily = Literal["chat", "completions", "responses", "messages"]

_EOS_TOKEN_ID = "2"  # `logit_bias: {"2": 100}` ends an answer at once, as with the tiny Llama of transcript 161


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """One request that generates, with its complete answers.

    prompts     tokens of each prompt; choice i answers prompt i // n
    choices     the answers, in order of index
    seed        decides the pace's jitter
    usage       which events of a stream have usage: "none", "end" or "every"
    request_id  from the body, or None
    priority    the engine's order of waiting requests, if it schedules by priority; the lowest goes first
    echo        fields of the request that /v1/responses repeats
    opened      the beginning of the answer, if the request has it (`continue_final_message`)
    """

    family: ApiFamily
    stream: bool
    prompts: tuple[int, ...]
    choices: tuple[SimulatedChoice, ...]
    seed: int
    usage: Literal["none", "end", "every"] = "none"
    n: int = 1
    request_id: str | None = None
    priority: int = 0
    echo: dict[str, Any] = field(default_factory=dict)
    opened: str = ""

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(self.prompts)


def parse_job(family: ApiFamily, data: object, options: SimulatorOptions) -> GenerationJob:
    """Parse a decoded body.

    Raises:
        WireError: with vLLM's message, see `errors`.
    """
    return _PARSERS[family](data, options)


def parse_invocation(data: object, options: SimulatorOptions) -> GenerationJob:
    """Parse a body sent to /invocations: as chat if it has that form, else as completions. The model is ignored."""
    if not isinstance(data, dict):
        raise errors.bad_request("list indices must be integers or slices, not str")
    data = {**data, "model": None}
    try:
        ChatForm.model_validate(data)
    except ValidationError:
        return _parse_completions(data, options)
    return _parse_chat(data, options)


def count_messages_tokens(data: object, options: SimulatorOptions) -> int:
    """POST /v1/messages/count_tokens (26)."""
    form = fill_form(CountTokensForm, data)
    try:
        check_model(form.model, options)
    except WireError as error:
        raise errors.anthropic(error) from error
    return _count(_with_system(form), options)


def pieces_to_tokenize(data: object, options: SimulatorOptions) -> tuple[list[str], bool]:
    """Return the tokens of a /tokenize request (27, 28), and whether it asks for their texts. Markers stand for a
    conversation's template."""
    form = fill_form(TokenizeForm, data)
    check_model(form.model, options)
    if form.messages is None and form.prompt is None:
        missing = [
            {"type": "missing", "loc": ("body", name), "msg": "Field required"} for name in ("prompt", "messages")
        ]
        raise errors.invalid([{**problem, "input": data} for problem in missing])
    if form.messages is None:
        return tokenize(form.prompt or ""), bool(form.return_token_strs)
    _check_opening(data)
    prompt = chat_prompt(options.models[0], _plain(form.messages), form.tools, form)
    return prompt.pieces(), bool(form.return_token_strs)


def prompt_texts(value: CompletionPrompt) -> list[str]:
    """Return the texts to embed; a list of token ids becomes its `repr`."""
    return [text for text, _ in _prompts(value)]


def _parse_chat(data: object, options: SimulatorOptions) -> GenerationJob:
    form = fill_form(ChatForm, data)
    _check_opening(data)
    _check_contradictions(form)
    check_model(form.model, options)
    _check_tools(form.tools, form.tool_choice, options)
    if form.tool_choice == "required" and not options.auto_tool_choice:
        raise errors.bad_request('tool_choice="required" requires --tool-call-parser to be set')
    prompt = chat_prompt(options.models[0], _plain(form.messages), form.tools, form)
    prompt_tokens = len(prompt.pieces())
    newer = form.max_completion_tokens is not None
    asked = form.max_completion_tokens if newer else form.max_tokens
    name = "max_completion_tokens" if newer else "max_tokens"
    check_length(asked, name, prompt_tokens, options.max_model_len)
    answered = [(json.dumps(prompt.answered), prompt_tokens)]
    return _sampled_job("chat", form, asked, answered, options, prompt.beginning)


def _parse_completions(data: object, options: SimulatorOptions) -> GenerationJob:
    form = fill_form(CompletionsForm, data)
    _check_stream_options(form)
    if form.prompt is None or form.prompt == "":
        raise errors.bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    check_model(form.model, options)
    prompts = _prompts(form.prompt)
    if not prompts:
        raise errors.bad_request("You must pass at least one prompt")
    for _, tokens in prompts:
        if not tokens:
            raise errors.bad_request("The decoder prompt cannot be empty")
        check_length(form.max_tokens, "max_tokens", tokens, options.max_model_len)
    return _sampled_job("completions", form, form.max_tokens, prompts, options)


def _parse_responses(data: object, options: SimulatorOptions) -> GenerationJob:
    form = fill_form(ResponsesForm, data)
    check_model(form.model, options)
    if isinstance(form.input, str):
        messages: list[ChatMessage] = [{"content": form.input}]
    else:
        messages = [item for item in form.input if isinstance(item, dict)]
        check_arguments(messages)
    if form.instructions:
        messages.insert(0, {"content": form.instructions})
    if not messages:
        raise errors.empty_conversation()
    prompt_tokens = _count(messages, options)
    asked = form.max_output_tokens
    check_length(asked, "max_output_tokens", prompt_tokens, options.max_model_len)
    check_values(Values(max_tokens=asked, temperature=form.temperature, top_p=form.top_p, logit_bias=form.logit_bias))
    left = options.max_model_len - prompt_tokens
    seed = seed_of(options.seed, json.dumps(messages))
    ask = Ask(asked, left, ignore_eos=form.ignore_eos, eos_first=_ends_at_once(form.logit_bias))
    echo = {
        "instructions": form.instructions,
        "metadata": form.metadata,
        "temperature": 1.0 if form.temperature is None else form.temperature,
        "top_p": 1.0 if form.top_p is None else form.top_p,
        "max_output_tokens": left if asked is None else asked,
        "user": form.user,
    }
    choice = make_choice(ask, seed, options.answer_tokens)
    return GenerationJob(
        "responses",
        bool(form.stream),
        (prompt_tokens,),
        (choice,),
        seed,
        request_id=form.request_id,
        priority=form.priority,
        echo=echo,
    )


def _parse_messages(data: object, options: SimulatorOptions) -> GenerationJob:
    form = fill_form(MessagesForm, data)
    try:
        return _messages_job(form, options)
    except WireError as error:
        raise errors.anthropic(error) from error


def _messages_job(form: MessagesForm, options: SimulatorOptions) -> GenerationJob:
    check_model(form.model, options)
    _check_tools(form.tools, (form.tool_choice or {}).get("type"), options)
    if not form.messages:
        raise errors.empty_conversation()
    messages = _with_system(form)
    prompt_tokens = _count(messages, options)
    # vLLM first converts the request to a chat completion, so its message names the field of a chat completion.
    check_length(form.max_tokens, "max_completion_tokens", prompt_tokens, options.max_model_len)
    stop = tuple(form.stop_sequences or ())
    check_values(Values(max_tokens=form.max_tokens, temperature=form.temperature, top_p=form.top_p, stop=stop))
    seed = seed_of(options.seed, json.dumps(messages))
    ask = Ask(form.max_tokens, options.max_model_len - prompt_tokens, stop=stop)
    choice = make_choice(ask, seed, options.answer_tokens)
    return GenerationJob("messages", bool(form.stream), (prompt_tokens,), (choice,), seed)


_PARSERS: dict[ApiFamily, Callable[[object, SimulatorOptions], GenerationJob]] = {
    "chat": _parse_chat,
    "completions": _parse_completions,
    "responses": _parse_responses,
    "messages": _parse_messages,
}


def _sampled_job(
    family: ApiFamily,
    form: Sampling,
    max_tokens: int | None,
    prompts: list[tuple[str, int]],
    options: SimulatorOptions,
    opened: str = "",
) -> GenerationJob:
    """Check the sampling values, then make every choice: n for each prompt; `opened` is the beginning of each."""
    n = 1 if form.n is None else form.n
    stop = (form.stop,) if isinstance(form.stop, str) else tuple(form.stop or ())
    values = Values(
        n=n,
        presence_penalty=form.presence_penalty,
        frequency_penalty=form.frequency_penalty,
        temperature=form.temperature,
        top_p=form.top_p,
        top_k=form.top_k,
        min_p=form.min_p,
        max_tokens=max_tokens,
        min_tokens=form.min_tokens,
        stop=stop,
        logit_bias=form.logit_bias,
    )
    check_values(values)
    choices = []
    for text, tokens in prompts:
        ask = Ask(
            max_tokens,
            options.max_model_len - tokens,
            min_tokens=form.min_tokens,
            ignore_eos=form.ignore_eos,
            eos_first=_ends_at_once(form.logit_bias),
            stop=stop,
            include_stop=form.include_stop_str_in_output,
            opened=opened,
        )
        seeds = (seed_of(options.seed, form.seed, text, index) for index in range(n))
        choices += [make_choice(ask, seed, options.answer_tokens) for seed in seeds]
    return GenerationJob(
        family,
        bool(form.stream),
        tuple(tokens for _, tokens in prompts),
        tuple(choices),
        seed_of(options.seed, form.seed, prompts),
        usage=_usage_mode(form, options),
        n=n,
        request_id=form.request_id,
        priority=form.priority,
        opened=opened,
    )


def _check_opening(data: object) -> None:
    if isinstance(data, dict) and data.get("continue_final_message") and data.get("add_generation_prompt"):
        raise errors.both_openings_asked()


def _check_contradictions(form: ChatForm) -> None:
    """Check fields of a chat request that depend on each other."""
    _check_stream_options(form)
    if form.tools is not None and not form.tools:
        raise errors.bad_request(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.", "tools"
        )
    if form.tool_choice not in (None, "none") and not form.tools:
        raise errors.bad_request("When using `tool_choice`, `tools` must be set.", "tool_choice")
    if form.top_logprobs is not None:
        if form.top_logprobs < -1:
            message = "`top_logprobs` must be a positive value or -1."
            raise errors.bad_request(message, "top_logprobs", form.top_logprobs)
        if form.top_logprobs and not form.logprobs:
            message = "when using `top_logprobs`, `logprobs` must be set to true."
            raise errors.bad_request(message, "top_logprobs")


def _check_tools(tools: Sequence[object] | None, choice: object, options: SimulatorOptions) -> None:
    """Refuse tools that the model may choose, without a parser for its calls (61)."""
    if tools and choice in (None, "auto") and not options.auto_tool_choice:
        raise errors.bad_request(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )


def _check_stream_options(form: Sampling) -> None:
    # vLLM accepts an empty object without a stream.
    if form.stream_options is not None and form.stream_options.model_fields_set and not form.stream:
        raise errors.bad_request("Stream options can only be defined when `stream=True`.", "stream_options")


def _usage_mode(form: Sampling, options: SimulatorOptions) -> Literal["none", "end", "every"]:
    if options.force_include_usage:
        return "every"
    asked = form.stream_options
    if asked is None or not asked.include_usage:
        return "none"
    return "every" if asked.continuous_usage_stats else "end"


def _ends_at_once(logit_bias: dict[str, float] | None) -> bool:
    return (logit_bias or {}).get(_EOS_TOKEN_ID, 0) >= 100


def _plain(messages: Sequence[BaseModel]) -> list[ChatMessage]:
    return [message.model_dump() for message in messages]


def _with_system(form: CountTokensForm) -> list[ChatMessage]:
    messages = _plain(form.messages)
    return [{"role": "system", "content": form.system}, *messages] if form.system else messages


def _count(messages: Sequence[ChatMessage], options: SimulatorOptions) -> int:
    """Count the tokens of a conversation with the opening of its answer."""
    return len(ChatPrompt(options.models[0], messages).pieces())


def _prompts(value: CompletionPrompt) -> list[tuple[str, int]]:
    """Return each prompt with its token count; each id counts as one token."""
    if isinstance(value, str):
        return [(value, count_tokens(value))]
    ids = [item for item in value if isinstance(item, int)]
    if ids:
        return [(repr(ids), len(ids))]
    return [
        (item, count_tokens(item)) if isinstance(item, str) else (repr(item), len(item))
        for item in value
        if not isinstance(item, int)
    ]
