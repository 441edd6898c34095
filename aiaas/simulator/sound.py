"""Transcriptions and translations of a simulator that hears nothing: its text is the file's size and SHA-256.

So a test sees whether each byte of a file came through a gateway. The forms and answers are those of vLLM 0.32's
`vllm/entrypoints/speech_to_text`: JSON for every `response_format` that it has, and events whose fields that are not
set are left out. One second of sound is WAV_BYTES_A_SECOND of the file. Pure.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Final, Literal

from aiaas.simulator import errors
from aiaas.simulator.answers import Json, SimulatedUsage, Stamp, encode
from aiaas.simulator.checks import check_model
from aiaas.simulator.events import DONE
from aiaas.simulator.generate import SimulatedChoice, tokenize
from aiaas.simulator.http import WireRequest
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.requests import GenerationJob

Task = Literal["transcribe", "translate"]
SOUND_PATHS: Final[dict[str, Task]] = {
    "/v1/audio/transcriptions": "transcribe",
    "/v1/audio/translations": "translate",
}
WAV_BYTES_A_SECOND: Final = 32_000  # WAV, 16 kHz, 16 bits, one channel
_TOKENS_A_SECOND: Final = 100  # Whisper's
LARGEST_FILE: Final = 25 * 1024**2  # VLLM_MAX_AUDIO_CLIP_FILESIZE_MB
_OBJECTS: Final = {"transcribe": "transcription.chunk", "translate": "translation.chunk"}
_TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
_FORMATS: Final = frozenset({"text", "json", "verbose_json"})
_UNKNOWN_FORMAT: Final = "Currently only support response_format: `text`, `json`, `verbose_json` or `diarized_json`"


@dataclass(frozen=True, slots=True)
class HeardSound:
    """A request about a sound, with its complete answer.

    job      the tokens of the sound and of the text
    seconds  of the sound
    usage    whether its stream ends with its usage
    """

    task: Task
    job: GenerationJob
    seconds: float
    verbose: bool
    language: str | None
    usage: bool

    def whole(self) -> Json:
        """The answer that is not a stream. vLLM 0.32 tells the usage of transcriptions only."""
        text = self.job.choices[0].text
        if self.verbose:
            return {"duration": self.seconds, "language": self.language or "en", "text": text, "segments": [],
                    "words": None}  # fmt: skip
        if self.task == "translate":
            return {"text": text}
        return {"text": text, "usage": {"type": "duration", "seconds": math.ceil(self.seconds)}}


def hear(task: Task, request: WireRequest, options: SimulatorOptions) -> HeardSound:
    """Read a form.

    Raises:
        WireError: with vLLM's message.
    """
    fields, content = _read_form(request.headers.get("content-type", ""), request.body)
    if content is None:
        raise errors.invalid([{"type": "missing", "loc": ("body", "file"), "msg": "Field required", "input": None}])
    if len(content) > LARGEST_FILE:
        raise errors.bad_request("Maximum file size exceeded", "audio_filesize_mb", len(content) / 1024**2)
    check_model(fields.get("model"), options)
    stream, usage = _is_true(fields, "stream"), _is_true(fields, "stream_include_usage")
    if usage and not stream:
        raise errors.bad_request("Stream options can only be defined when `stream=True`.", "stream_include_usage")
    form = fields.get("response_format") or "json"
    if form not in _FORMATS:
        raise errors.bad_request(_UNKNOWN_FORMAT)
    if form == "verbose_json" and stream:
        raise errors.bad_request("verbose_json format doesn't support streaming case")
    seconds = len(content) / WAV_BYTES_A_SECOND
    tokens = tokenize(f"{len(content)} bytes with SHA-256 {hashlib.sha256(content).hexdigest()}")
    choice = SimulatedChoice((*tokens, ""), "stop")
    prompt = math.ceil(seconds * _TOKENS_A_SECOND) + 4
    job = GenerationJob("chat", stream, (prompt,), (choice,), options.seed)
    return HeardSound(task, job, seconds, form == "verbose_json", fields.get("language"), usage)


class SoundWriter:
    """The events of a stream; as `EventWriter`."""

    def __init__(self, stamp: Stamp, heard: HeardSound) -> None:
        self._deltas = heard.job.choices[0].deltas
        self._usage = SimulatedUsage(heard.job.prompt_tokens, len(self._deltas)).openai() if heard.usage else None
        self._head: Json = {
            "id": stamp.id, "object": _OBJECTS[heard.task], "created": stamp.created, "model": stamp.model
        }  # fmt: skip

    def first(self) -> list[bytes]:
        """Return no event: the first one has text."""
        return []

    def step(self, k: int) -> list[bytes]:
        """Return the event of token k."""
        choice: Json = {"delta": {"content": self._deltas[k]}}
        if k == len(self._deltas) - 1:
            choice |= {"finish_reason": "stop", "stop_reason": None}
        return [self._event({"choices": [choice]})]

    def last(self) -> list[bytes]:
        """Return the usage, if it was asked for, and the end."""
        return [DONE] if self._usage is None else [self._event({"choices": [], "usage": self._usage}), DONE]

    def error(self) -> list[bytes] | None:
        """Return the events of an engine that died."""
        told = json.dumps(errors.error_object(errors.ENGINE_DEAD, "InternalServerError", None, 500))
        return [b"data: %b\n\n" % told.encode(), DONE]

    def abort(self, k: int) -> list[bytes] | None:  # noqa: ARG002  (EventWriter's)
        """Return None: the connection is closed there."""
        return None

    def _event(self, more: Json) -> bytes:
        return b"data: %b\n\n" % encode({**self._head, **more})


def _read_form(content_type: str, body: bytes) -> tuple[dict[str, str], bytes | None]:
    """Its fields, the last of each name, and its file. Simple on purpose: a gateway's reader is checked against it."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    fields: dict[str, str] = {}
    content: bytes | None = None
    if found is None:
        return fields, content
    for part in (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1"))[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'[ ;]name="?([^";\r\n]+)', head)
        if name is None:
            continue
        if b"filename=" not in head:
            fields[name[1].decode("latin-1")] = value.decode("utf-8", "replace")
        elif name[1] == b"file":
            content = value
    return fields, content


def _is_true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "").lower() in _TRUE
