"""The fields of vLLM's requests, by path: which of them a client may set, and why not.

A field passes unless it reaches beyond its own request: the order of other requests, the data of other keys, another
host, files and code at the server, or work that everybody waits for. Such a field belongs to the operator (`reject`),
or has a bound (`bound`). `request.fields` of the config changes the rule of a field. docs/engine-fields.md is made from
this table (`python -m tests.openai.engine_fields_page`), and `tests/e2e/test_vllm_fields.py` compares it with the
request models of the installed vLLM.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from aiaas.openai.paths import (
    CHAT,
    CLASSIFY,
    COMPLETIONS,
    COUNT_TOKENS,
    DETOKENIZE,
    EMBEDDINGS,
    GENERATE,
    MESSAGES,
    PLAIN_RERANK,
    PLAIN_SCORE,
    POOLING,
    RERANK,
    RESPONSES,
    SCORE,
    TOKENIZE,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    V2_EMBED,
    V2_RERANK,
)

# pass    the client may set it
# strip   remove it from the request
# reject  refuse the request
# bound   refuse the request if the value is above a bound
# false   write false, whatever the client asks for
Action = Literal["pass", "strip", "reject", "bound", "false"]

# Values that `reject` and `strip` do not count as a use, besides null.
#   zero      the number 0, in every form that vLLM reads as 0
#   empty     an empty object or list
Harmless = Literal["", "zero", "empty"]

# The measure of a bound.
#   number    the value itself; a negative number means "all" to vLLM, and is above every bound
#   entries   entries of a list or an object
#   members   each number in an object
#   grammar   bytes of a grammar; `grammar.py` has further bounds on its parts
#   tools     as `grammar`, where vLLM makes a grammar of the tools
Unit = Literal["number", "entries", "members", "grammar", "tools"]


@dataclass(frozen=True, slots=True)
class EngineField:
    """A field on some paths, with its default rule.

    most   the bound, where `action` is `bound`
    known  vLLM 0.32's request models have it; otherwise older or newer versions do
    """

    name: str
    paths: tuple[str, ...]
    action: Action
    why: str
    harmless: Harmless = ""
    unit: Unit | None = None
    most: int | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class FieldRule:
    """The operator's rule for a field, in place of the table's. `most` is the bound where `action` is `bound`."""

    action: Literal["pass", "strip", "reject", "bound"]
    most: int | None = None


_SAMPLED: Final = (CHAT, COMPLETIONS, RESPONSES)
_GENERATED: Final = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
_SCORES: Final = (SCORE, PLAIN_SCORE)
_RERANKS: Final = (RERANK, PLAIN_RERANK, V2_RERANK)
_CONVERSED: Final = (EMBEDDINGS, CLASSIFY, POOLING)  # of a text or of a conversation
_POOLED: Final = (*_CONVERSED, *_SCORES, *_RERANKS)
_LEGACY: Final = (CHAT, COMPLETIONS)
_AUDIO: Final = (TRANSCRIPTIONS, TRANSLATIONS)
_TEMPLATED: Final = (CHAT, *_CONVERSED, TOKENIZE)

LARGEST_GRAMMAR: Final = 64 * 1024  # bytes
MOST_LOGPROBS: Final = 20  # OpenAI's own bound, and vLLM's default `--max-logprobs`

_QUEUE: Final = "Moves the request ahead of everybody else's in an engine with priority scheduling."
_TRANSFER: Final = "Names hosts and blocks from which a connector of the engine fetches, and token ids for the prompt."
_SALT: Final = "Decides with whom the prefix cache is shared: a foreign salt finds what another key asked."
_ID: Final = "The engine's own id of the request: a second request with an id that is in use disturbs the first."
_PROCESSOR: Final = "Arguments of the image processor's code: sizes that take the engine's memory."
_MEDIA_IO: Final = "Arguments of the media decoder, such as the number of frames: they take the server's memory."
_PLUGIN: Final = "Arguments of the operator's own plug-ins and logits processors."
_EMBEDS: Final = "Tensors that the engine loads unchecked; a broken one can end the engine."
_TEMPLATE: Final = "A Jinja program that runs in the API server, where one loop holds up everybody."
_IO_PROCESSOR: Final = "Input of the operator's own IO processor plug-in, which may name hosts and files."
_LOGPROBS: Final = "A large number means a sort of the vocabulary and megabytes for each token."
_GRAMMAR: Final = "The engine compiles grammars for all requests; a large one holds up everybody's."
_LISTED: Final = "Long lists are read again for each token."


def _rejected() -> Iterator[EngineField]:
    everywhere = (*_SAMPLED, *_POOLED)
    yield EngineField("priority", (*everywhere, V2_EMBED), "reject", _QUEUE, "zero")
    yield EngineField("priority", (MESSAGES,), "reject", _QUEUE, "zero", known=False)
    yield EngineField("data_parallel_rank", _GENERATED, "reject", "Chooses the engine's replica.", known=False)
    yield EngineField("kv_transfer_params", _GENERATED, "reject", _TRANSFER, "empty")
    yield EngineField("ec_transfer_params", _GENERATED, "reject", _TRANSFER, "empty")
    yield EngineField("cache_salt", (*_GENERATED, *_POOLED), "reject", _SALT)
    yield EngineField("request_id", everywhere, "reject", _ID)
    yield EngineField("mm_processor_kwargs", (CHAT, RESPONSES, *_POOLED, TOKENIZE), "reject", _PROCESSOR, "empty")
    yield EngineField("media_io_kwargs", (CHAT, RESPONSES, *_CONVERSED, TOKENIZE), "reject", _MEDIA_IO, "empty")
    yield EngineField("vllm_xargs", (*_GENERATED, *_AUDIO), "reject", _PLUGIN, "empty")
    yield EngineField("logits_processors", _LEGACY, "reject", "Names code to run.", "empty", known=False)
    yield EngineField("prompt_embeds", (COMPLETIONS,), "reject", _EMBEDS)
    yield EngineField("data", (POOLING,), "reject", _IO_PROCESSOR)
    yield EngineField("chat_template", _TEMPLATED, "reject", _TEMPLATE)
    yield EngineField(
        "previous_response_id", (RESPONSES,), "reject", "The engine has one store of answers for all keys."
    )
    yield EngineField("store", (RESPONSES,), "false", "The engine has one store of answers for all keys, in memory.")
    yield EngineField("guided_decoding_backend", _LEGACY, "reject", "Chooses the grammar compiler.", known=False)


def _bounded() -> Iterator[EngineField]:
    number = MOST_LOGPROBS
    yield EngineField("top_logprobs", (CHAT, RESPONSES), "bound", _LOGPROBS, unit="number", most=number)
    yield EngineField("logprobs", (COMPLETIONS,), "bound", _LOGPROBS, unit="number", most=number)
    yield EngineField("prompt_logprobs", _LEGACY, "bound", _LOGPROBS, unit="number", most=number)
    for name, most in (("logprob_token_ids", 256), ("bad_words", 1000)):
        yield EngineField(name, _LEGACY, "bound", _LISTED, unit="entries", most=most)
    yield EngineField("allowed_token_ids", _LEGACY, "bound", _LISTED, unit="entries", most=10_000)
    yield EngineField("logit_bias", _SAMPLED, "bound", _LISTED, unit="entries", most=10_000)
    yield EngineField("stop_token_ids", _SAMPLED, "bound", _LISTED, unit="entries", most=1000)
    yield EngineField(
        "repetition_detection", _LEGACY, "bound", "The scheduler looks for patterns up to this size after each token.",
        unit="members", most=100,
    )  # fmt: skip
    grammar = LARGEST_GRAMMAR
    yield EngineField("response_format", _LEGACY, "bound", _GRAMMAR, unit="grammar", most=grammar)
    yield EngineField("structured_outputs", _SAMPLED, "bound", _GRAMMAR, unit="grammar", most=grammar)
    yield EngineField("text", (RESPONSES,), "bound", _GRAMMAR, unit="grammar", most=grammar)
    yield EngineField("output_config", (MESSAGES,), "bound", _GRAMMAR, unit="grammar", most=grammar)
    for name in ("json", "regex", "choice", "grammar", "whitespace_pattern"):
        yield EngineField(
            f"guided_{name}", _LEGACY, "bound", _GRAMMAR, unit="grammar", most=grammar, known=False
        )  # fmt: skip
    tools = "Where a tool is required, the engine compiles the tools' schemas to a grammar."
    yield EngineField("tools", (CHAT, RESPONSES, MESSAGES), "bound", tools, unit="tools", most=grammar)


_GROUPS: Final[tuple[tuple[str, dict[tuple[str, ...], str]], ...]] = (
    (
        "The request itself; aiaas bounds the number of answers, their length, and media by address.",
        {
            GENERATE: "model",
            (CHAT, MESSAGES, COUNT_TOKENS, *_CONVERSED, TOKENIZE): "messages",
            (COMPLETIONS, RESPONSES, TOKENIZE): "prompt",
            (RESPONSES, *_CONVERSED): "input",
            (V2_EMBED,): "texts images inputs",
            (RESPONSES,): "instructions previous_input_messages max_output_tokens max_tool_calls",
            (MESSAGES, COUNT_TOKENS): "system",
            (CHAT, COMPLETIONS, MESSAGES, V2_EMBED): "max_tokens",
            (CHAT,): "max_completion_tokens",
            _LEGACY: "n stream_options",
            _GENERATED: "stream",
            (CHAT, *_SCORES, *_RERANKS): "documents",
            _SCORES: "queries items data_1 data_2 text_1 text_2",
            _RERANKS: "query top_n",
            (DETOKENIZE,): "tokens",
            (TOKENIZE, COUNT_TOKENS): "tools",
            (COMPLETIONS,): "suffix",
            _AUDIO: "file prompt language to_language hotwords stream_include_usage stream_continuous_usage_stats "
            "max_completion_tokens n stream",
        },
    ),
    (
        "How the engine chooses the tokens of this answer.",
        {
            _SAMPLED: "frequency_penalty presence_penalty seed stop repetition_penalty ignore_eos min_p "
            "include_stop_str_in_output skip_special_tokens",
            _GENERATED: "temperature top_p top_k watermarking",
            _LEGACY: "length_penalty min_tokens spaces_between_special_tokens thinking_token_budget",
            (MESSAGES,): "stop_sequences",
            (MESSAGES, COUNT_TOKENS): "thinking",
            (COUNT_TOKENS,): "output_config",
            (CHAT,): "reasoning_effort",
            _AUDIO: "temperature top_p top_k min_p seed frequency_penalty presence_penalty repetition_penalty "
            "length_penalty include_stop_str_in_output watermarking",
            (RESPONSES,): "reasoning",
        },
    ),
    ("The beam's width is `n`, which `request.max_choices` bounds.", {(*_LEGACY, *_AUDIO): "use_beam_search"}),
    (
        "Which tools the model may call; the caller runs them.",
        {(CHAT, RESPONSES, MESSAGES, COUNT_TOKENS): "tool_choice", (CHAT, RESPONSES): "parallel_tool_calls"},
    ),
    (
        "How the prompt is made of the request.",
        {
            _TEMPLATED: "add_generation_prompt continue_final_message",
            (CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, *_POOLED, TOKENIZE): "chat_template_kwargs",
            (CHAT, COMPLETIONS, *_CONVERSED, TOKENIZE): "add_special_tokens",
            (V2_EMBED,): "input_type truncate",
            (*_LEGACY, *_POOLED): "truncate_prompt_tokens truncation_side",
            (RESPONSES,): "truncation",
            (*_SCORES, *_RERANKS): "max_tokens_per_query max_tokens_per_doc instruction",
            _POOLED: "padding",
        },
    ),
    (
        "The content of this answer, and its form.",
        {
            (CHAT,): "logprobs return_prompt_text",
            _LEGACY: "echo return_tokens_as_token_ids return_token_ids routed_experts_prompt_start stream_interval",
            (CHAT, RESPONSES): "include_reasoning",
            (RESPONSES,): "include enable_response_messages",
            (EMBEDDINGS, POOLING): "encoding_format embed_dtype endianness dimensions",
            (V2_EMBED,): "output_dimension embedding_types",
            (POOLING,): "task",
            _POOLED: "use_activation",
            (TOKENIZE,): "return_token_strs",
            _AUDIO: "response_format",
            (TRANSCRIPTIONS,): "timestamp_granularities[]",
        },
    ),
    (
        "vLLM's paths here ignore it.",
        {
            (*_SAMPLED, *_POOLED): "user",
            (RESPONSES, MESSAGES): "metadata",
            (RESPONSES,): "prompt_cache_key service_tier",
            _GENERATED: "mm_payload return_mm_kwargs",
            _LEGACY: "return_token_offsets",
        },
    ),
    ("Names the conversation for the engine's cache; it does not share anything.", {_SAMPLED: "session_id"}),
    ("aiaas refuses true: such a request would outlive its limits.", {(RESPONSES,): "background"}),
)


def _passed() -> Iterator[EngineField]:
    for why, names in _GROUPS:
        for on, listed in names.items():
            for name in listed.split():
                yield EngineField(name, on, "pass", why)


ENGINE_FIELDS: Final = (*_rejected(), *_bounded(), *_passed())

# Fields inside a message's parts, and inside an object of the body: refused alike, by these names in `request.fields`.
PARTS: Final = {
    "image_embeds": _EMBEDS,
    "audio_embeds": _EMBEDS,
    "video_embeds": _EMBEDS,
    "uuid": "Names a picture or sound in the engine's cache, which all keys share: another key's, or in place of it.",
}
MCP: Final = "mcp_servers"
MCP_WHY: Final = "An MCP tool with `server_url`, `connector_id`, `headers` or `authorization` names a host to call."

# The fields that the gateway itself reads or writes: their rule cannot be changed.
FIXED: Final = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options", "n", "max_tokens",
                          "max_completion_tokens", "max_output_tokens", "background", "file",
                          "stream_include_usage"})  # fmt: skip

RULED_NAMES: Final = frozenset(field.name for field in ENGINE_FIELDS) | PARTS.keys() | {MCP}
# The fields with a rule on some path, and two that a rule looks into: `peek` reads them besides those that it needs.
GUARDED: Final = (
    *dict.fromkeys(field.name for field in ENGINE_FIELDS if field.action != "pass"),
    "tool_choice",
    "chat_template_kwargs",
)


def why_not_allowed(name: str, ruled: frozenset[str]) -> str | None:
    """Why no key can be allowed the field `name`; None if one can.

    ruled  further fields for which the operator has a rule
    """
    if name in FIXED:
        return "the gateway itself reads this field, so all keys may set it"
    if name in RULED_NAMES or name in ruled:
        return None
    close = difflib.get_close_matches(name, RULED_NAMES | ruled, n=1)
    hint = f"did you mean {close[0]}?" if close else "docs/engine-fields.md lists those that have one"
    return f"is not a field that has a rule; {hint}"


def on_path(path: str) -> dict[str, EngineField]:
    """The fields of the request model of `path`, by name."""
    return {field.name: field for field in ENGINE_FIELDS if path in field.paths}
