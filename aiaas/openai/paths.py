"""The paths of the API and their properties for a gateway.

This is an allow-list: vLLM has more routes, some of them dangerous (`/scale_elastic_ep`), so the gateway never forwards
by prefix. Source: the routes of a real vLLM 0.32 (transcript 00).
"""

from __future__ import annotations

from typing import Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
COUNT_TOKENS: Final = "/v1/messages/count_tokens"
EMBEDDINGS: Final = "/v1/embeddings"
SCORE: Final = "/v1/score"
PLAIN_SCORE: Final = "/score"
RERANK: Final = "/v1/rerank"
PLAIN_RERANK: Final = "/rerank"
V2_RERANK: Final = "/v2/rerank"
V2_EMBED: Final = "/v2/embed"
CLASSIFY: Final = "/classify"
POOLING: Final = "/pooling"
TOKENIZE: Final = "/tokenize"
DETOKENIZE: Final = "/detokenize"
TRANSCRIPTIONS: Final = "/v1/audio/transcriptions"
TRANSLATIONS: Final = "/v1/audio/translations"

MODELS: Final = "/v1/models"
HEALTH: Final = "/health"
READY: Final = "/ready"
METRICS: Final = "/metrics"  # of the gateway on a port of its own
OPENAPI: Final = "/openapi.json"  # of an engine: the paths that it has

# Paths whose requests are forms with a file. Their answers are text, generated from sound.
UPLOADS: Final = frozenset({TRANSCRIPTIONS, TRANSLATIONS})

# All paths whose POST requests go to a backend.
GENERATE: Final = (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    MESSAGES,
    COUNT_TOKENS,
    EMBEDDINGS,
    V2_EMBED,
    SCORE,
    PLAIN_SCORE,
    RERANK,
    PLAIN_RERANK,
    V2_RERANK,
    CLASSIFY,
    POOLING,
    TOKENIZE,
    DETOKENIZE,
    TRANSCRIPTIONS,
    TRANSLATIONS,
)

# The paths of a backend without `endpoints` in its config. The gateway learns from the engine which ones it lacks.
DEFAULT_ENDPOINTS: Final = (*GENERATE, MODELS)

# Paths that answer with generated tokens: they reserve output, and the model's output bound is spliced in.
OUTPUT: Final = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES, *UPLOADS})

# Paths that only count tokens, in vLLM's API server and not in its engine: they cost no tokens, and have a bucket of
# their own.
CHEAP: Final = frozenset({COUNT_TOKENS, TOKENIZE, DETOKENIZE})

# Paths whose streams report usage only if `stream_options.include_usage` asks for it. Responses and messages always
# report usage (transcripts 23, 25).
USAGE_ON_REQUEST: Final = frozenset({CHAT, COMPLETIONS})

# Paths where one request may hold several prompts, and where it may ask for several choices.
MANY_PROMPTS: Final = frozenset({COMPLETIONS, EMBEDDINGS, CLASSIFY, POOLING})
MANY_CHOICES: Final = frozenset({CHAT, COMPLETIONS})

# Paths whose request models have vLLM's field `priority`.
PRIORITIZED: Final = frozenset({CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, V2_EMBED, CLASSIFY, POOLING})

# Paths of the Anthropic shape: the key may come in `x-api-key` (as for the list of models), and an error in a stream is
# `event: error`.
ANTHROPIC: Final = frozenset({MESSAGES, COUNT_TOKENS})

# The field to splice in if a request does not bound its output. vLLM's `/v1/completions` does not know
# `max_completion_tokens`; its chat path knows both, and every version understands `max_tokens`.
OUTPUT_FIELD: Final = {
    CHAT: "max_tokens",
    COMPLETIONS: "max_tokens",
    RESPONSES: "max_output_tokens",
    MESSAGES: "max_tokens",
    TRANSCRIPTIONS: "max_completion_tokens",
    TRANSLATIONS: "max_completion_tokens",
}


def is_models_path(path: str) -> bool:
    """Whether `path` (without its query) is the list of models or one model."""
    return path == MODELS or path.startswith(MODELS + "/")


def meant(path: str) -> str | None:
    """The path that a client meant which asks for `path`: its base URL lacks `/v1`, or has it twice. None if there is
    no such path.

        /chat/completions    /v1/chat/completions    OpenAI's SDKs add `/chat/completions` to their base URL
        /v1/v1/messages      /v1/messages            Anthropic's SDKs add `/v1/messages` to theirs
    """
    found = path.removeprefix("/v1") if path.startswith("/v1/v1/") else f"/v1{path}"
    return found if found in GENERATE or is_models_path(found) else None
