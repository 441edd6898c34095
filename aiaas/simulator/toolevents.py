"""Write streamed answers that call a tool, as vLLM 0.32 does: the call's name first, then its arguments by tokens.

Pure. These writers replace the text's events of `events.py`; `make_writer` chooses between them.
"""

from __future__ import annotations

from aiaas.simulator.answers import Json, Stamp, encode, response, response_call
from aiaas.simulator.events import (
    ChatWriter,
    CompletionsWriter,
    EventWriter,
    MessagesWriter,
    ResponsesWriter,
    named_event,
)
from aiaas.simulator.generate import SimulatedCall
from aiaas.simulator.requests import GenerationJob


class ChatCallWriter(ChatWriter):
    """POST /v1/chat/completions: `delta.tool_calls`."""

    def __init__(self, stamp: Stamp, job: GenerationJob, call: SimulatedCall) -> None:
        super().__init__(stamp, job)
        self._call = call

    def step(self, k: int) -> list[bytes]:
        """See EventWriter."""
        if k:
            return super().step(k)
        function = {"name": self._call.name, "arguments": ""}
        opening = {"id": self._call.id, "type": "function", "index": 0, "function": function}
        begun = [self._event(index, {"tool_calls": [opening]}, b"}\n\n") for index in range(len(self._job.choices))]
        return [*begun, *super().step(k)]

    def _token(self, index: int, text: str, finished: bool, tail: bytes) -> bytes:
        if finished:
            return super()._token(index, text, finished, tail)
        return self._event(index, {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}, tail)

    def _event(self, index: int, delta: Json, tail: bytes) -> bytes:
        form = b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null,"token_ids":null}]%b'
        return form % (self._head, index, encode(delta), tail)


class ResponsesCallWriter(ResponsesWriter):
    """POST /v1/responses: an output item of type `function_call`."""

    def __init__(self, stamp: Stamp, job: GenerationJob, item_id: str, call: SimulatedCall) -> None:
        super().__init__(stamp, job, item_id)
        self._call = call

    def first(self) -> list[bytes]:
        """See EventWriter."""
        opening = response(self._stamp, self._job.echo, self._message_id, self._job.prompt_tokens, None)
        item = {**response_call(self._message_id, self._call, ""), "status": "in_progress"}
        return [*self._opened(opening), self._event("response.output_item.added", {"item": item, "output_index": 0})]

    def step(self, k: int) -> list[bytes]:
        """See EventWriter."""
        text = self._job.choices[0].deltas[k]
        return [self._event("response.function_call_arguments.delta", self._within(delta=text))] if text else []

    def last(self) -> list[bytes]:
        """See EventWriter."""
        choice = self._job.choices[0]
        done = self._within(arguments=choice.text, name=self._call.name)
        item = response_call(self._message_id, self._call, choice.text)
        whole = response(self._stamp, self._job.echo, self._message_id, self._job.prompt_tokens, choice)
        return [
            self._event("response.function_call_arguments.done", done),
            self._event("response.output_item.done", {"item": item, "output_index": 0}),
            self._event("response.completed", {"response": whole}),
        ]

    def _within(self, **data: object) -> dict[str, object]:
        return {"item_id": self._message_id, "output_index": 0, **data}


class MessagesCallWriter(MessagesWriter):
    """POST /v1/messages: a block of type `tool_use`."""

    def __init__(self, stamp: Stamp, job: GenerationJob, call: SimulatedCall) -> None:
        super().__init__(stamp, job)
        self._block: Json = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}

    def step(self, k: int) -> list[bytes]:
        """See EventWriter."""
        text = self._job.choices[0].deltas[k]
        delta = {"type": "input_json_delta", "partial_json": text}
        event = {"type": "content_block_delta", "delta": delta, "index": 0}
        return [named_event("content_block_delta", event)] if text else []


def make_writer(stamp: Stamp, job: GenerationJob, message_id: str) -> EventWriter:
    """Make the writer for the job's family; `message_id` is the id of the output item of /v1/responses."""
    call = job.choices[0].call
    if job.family == "chat":
        return ChatWriter(stamp, job) if call is None else ChatCallWriter(stamp, job, call)
    if job.family == "completions":
        return CompletionsWriter(stamp, job)
    if job.family == "responses":
        if call is None:
            return ResponsesWriter(stamp, job, message_id)
        return ResponsesCallWriter(stamp, job, message_id, call)
    return MessagesWriter(stamp, job) if call is None else MessagesCallWriter(stamp, job, call)
