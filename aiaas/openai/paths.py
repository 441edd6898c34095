"""The paths of the API, and what each of them means for a gateway.

An allow-list: vLLM has more routes than these, some of them dangerous (`/scale_elastic_ep`), so
nothing is forwarded because of a prefix. Sources: the routes of a real vLLM 0.32 (transcript 00).
"""

from __future__ import annotations

from typing import Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
EMBEDDINGS: Final = "/v1/embeddings"
SCORE: Final = "/v1/score"
RERANK: Final = "/v1/rerank"
TOKENIZE: Final = "/tokenize"
DETOKENIZE: Final = "/detokenize"

MODELS: Final = "/v1/models"
HEALTH: Final = "/health"
READY: Final = "/ready"

# Every path whose requests go to a backend, by POST.
GENERATE: Final = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, SCORE, RERANK, TOKENIZE, DETOKENIZE)

# What a backend serves whose config does not say (`endpoints`).
DEFAULT_ENDPOINTS: Final = (CHAT, COMPLETIONS, MODELS)

# Those whose answers are generated tokens: they reserve output, and the bound of a model is spliced in there.
OUTPUT: Final = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})

# Those whose streams tell usage only when asked by `stream_options.include_usage`. Responses and messages always tell
# it (transcripts 23, 25).
USAGE_ON_REQUEST: Final = frozenset({CHAT, COMPLETIONS})

# Where one request may hold several prompts, and where it may ask for several choices.
MANY_PROMPTS: Final = frozenset({COMPLETIONS, EMBEDDINGS})
MANY_CHOICES: Final = frozenset({CHAT, COMPLETIONS})

# The Anthropic shape: the key may come in `x-api-key` (at the list of models, too), and errors in a stream are
# `event: error`.
ANTHROPIC: Final = frozenset({MESSAGES})

# The field that bounds the output, to be spliced in where a request has none. vLLM's `/v1/completions` does not know
# `max_completion_tokens`; the chat path knows both, and `max_tokens` is understood by every version.
OUTPUT_FIELD: Final = {
    CHAT: "max_tokens",
    COMPLETIONS: "max_tokens",
    RESPONSES: "max_output_tokens",
    MESSAGES: "max_tokens",
}


def is_models_path(path: str) -> bool:
    """Whether `path` (without its query) is the list or one model."""
    return path == MODELS or path.startswith(MODELS + "/")
