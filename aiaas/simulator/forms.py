"""The forms of request bodies: their fields and types, and the errors for a body of the wrong form.

The forms are pydantic models, like vLLM's, so the error messages have the same wording. Fields that the simulator does
not use are ignored, whether vLLM knows them or not (18). One error is shorter than vLLM's: a message of the wrong form
is one problem here and up to twenty in vLLM, one for each class that vLLM tries.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aiaas.simulator import errors

COMPLETIONS_MAX_TOKENS = 16  # OpenAI's default, and vLLM's
_INT64 = 2**63

CompletionPrompt = list[int] | list[list[int]] | str | list[str]


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = ""

    @field_validator("content", mode="before")
    @classmethod
    def _no_null(cls, value: object, info: Any) -> object:
        if value is None and info.data.get("role") != "assistant":
            raise ValueError("content may be null in an assistant's message only")
        return value


class Opening(BaseModel):
    """Whether the prompt ends with the opening of an answer, or inside its last message."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False


class _HasMessages(BaseModel):
    messages: list[_Message]


class Sampling(BaseModel):
    """The common fields of chat and completions."""

    model: str | None = None
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = 1
    presence_penalty: float | None = 0.0
    seed: int | None = Field(default=None, ge=-_INT64, le=_INT64 - 1)
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop_str_in_output: bool = False
    request_id: str | None = None
    priority: int = Field(default=0, ge=-_INT64, le=_INT64 - 1)


class StreamOptions(BaseModel):
    """The usage that a stream reports in addition to its text. An empty object requests nothing."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class ChatForm(Sampling, _HasMessages, Opening):
    """POST /v1/chat/completions."""

    max_completion_tokens: int | None = None
    top_logprobs: int | None = None
    logprobs: bool | None = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None


class CompletionsForm(Sampling):
    """POST /v1/completions."""

    prompt: CompletionPrompt | None = None
    max_tokens: int | None = COMPLETIONS_MAX_TOKENS


class ResponsesForm(BaseModel):
    """POST /v1/responses."""

    input: str | list[Any]
    instructions: str | None = None
    logit_bias: dict[str, float] | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    model: str | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    ignore_eos: bool = False
    request_id: str | None = None
    priority: int = Field(default=0, ge=-_INT64, le=_INT64 - 1)


class _AnthropicMessage(BaseModel):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountTokensForm(BaseModel):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: list[_AnthropicMessage]
    system: str | list[dict[str, Any]] | None = None


class MessagesForm(CountTokensForm):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value <= 0:
            raise ValueError("max_tokens must be positive")
        return value


class TokenizeForm(Opening):
    """POST /tokenize, with a prompt or with messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[_Message] | None = None
    return_token_strs: bool | None = False
    tools: list[dict[str, Any]] | None = None


class DetokenizeForm(BaseModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class EmbeddingsForm(BaseModel):
    """POST /v1/embeddings and /pooling."""

    model: str | None = None
    input: CompletionPrompt
    encoding_format: Literal["float", "base64"] = "float"


class _CoherePart(BaseModel):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: dict[str, str] | None = None


class _CohereInput(BaseModel):
    content: list[_CoherePart]


class CohereForm(BaseModel):
    """POST /v2/embed."""

    model: str | None = None
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[_CohereInput] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> CohereForm:
        given = [field for field in (self.texts, self.images, self.inputs) if field is not None]
        if len(given) != 1 or not given[0]:
            raise ValueError("Exactly one of texts, images, or inputs must be provided, and it must be non-empty")
        return self


class ClassifyForm(BaseModel):
    """POST /classify."""

    model: str | None = None
    input: CompletionPrompt


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
    top_n: int = 0


Form = TypeVar("Form", bound=BaseModel)


def parse_json(content_type: str, body: bytes) -> object:
    """Decode a JSON body.

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
        raise errors.wire_unreadable() from error


def fill_form(form: type[Form], data: object) -> Form:
    """Validate the body as a form.

    Raises:
        WireError: fields are missing or have the wrong type (41 to 60).
    """
    if data is None:
        raise errors.invalid([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    try:
        return form.model_validate(data, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise errors.invalid([{**problem, "loc": ("body", *problem["loc"])} for problem in found]) from error
