"""The options of one simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiaas.errors import UsageError
from aiaas.simulator.faults import NO_FAULT, Fault

DEFAULT_MODEL = "aiaas-simulator"


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """How a simulator behaves. All durations in seconds.

    models             served names; answers carry the first one, as in vLLM (transcript 109)
    seed               mixed into every generated word and gap
    ttft               from the start of a generation (not its arrival: queueing comes on top) to its first token
    itl                gap between two tokens
    jitter             0..1: each gap is multiplied by a factor drawn evenly from 1-jitter..1+jitter
    answer_tokens      length of an answer that ends by itself; varies by the prompt between half of this and this
    max_model_len      the limit on the tokens of prompt and answer together
    max_num_seqs       sequences generated at once; further ones wait
    max_num_queued_reqs  running and waiting sequences together, beyond which requests get 503; None: unlimited, as vLLM
    scheduling_policy  "fcfs" ignores the requests' `priority`, like vLLM; with "priority" the lowest goes first
    runner             "text" answers the generate paths, "pooling" embedding, score and rerank paths, "classify" those
                       of a classifier, "audio" those of transcriptions and translations; others are 404
    api_key            required below /v1, /v2 and /inference only, like vLLM's (transcripts 100 to 104b)
    keep_alive         time after its last response when an idle connection is closed (VLLM_HTTP_TIMEOUT_KEEP_ALIVE)
    shutdown_timeout   time after SIGTERM for requests in flight to finish. None is vLLM's default: requests in flight
                       stop sending, and their connections stay open until the clients leave
    request_id_headers    send x-request-id back (vLLM's --enable-request-id-headers)
    force_include_usage   usage on every event of every stream (vLLM's --enable-force-include-usage)
    auto_tool_choice      accept tools, and call those that a prompt names (`directions.py`)
    fault              how the simulator misbehaves, see `aiaas.simulator.faults`
    """

    models: tuple[str, ...] = (DEFAULT_MODEL,)
    seed: int = 0
    ttft: float = 0.05
    itl: float = 0.01
    jitter: float = 0.0
    answer_tokens: int = 64
    max_model_len: int = 8192
    max_num_seqs: int = 256
    max_num_queued_reqs: int | None = None
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    runner: Literal["text", "pooling", "classify", "audio"] = "text"
    api_key: str | None = None
    keep_alive: float = 5.0
    shutdown_timeout: float | None = None
    request_id_headers: bool = False
    force_include_usage: bool = False
    auto_tool_choice: bool = False
    fault: Fault = NO_FAULT

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid value."""
        checks = (
            (bool(self.models) and all(self.models), "give at least one served model name; names must not be empty"),
            (self.ttft >= 0, "ttft must be 0 or more seconds"),
            (self.itl >= 0, "itl must be 0 or more seconds"),
            (0 <= self.jitter <= 1, "jitter must be between 0 and 1"),
            (self.answer_tokens >= 1, "answer-tokens must be 1 or more"),
            (self.max_model_len >= 2, "max-model-len must be 2 or more tokens"),
            (self.max_num_seqs >= 1, "max-num-seqs must be 1 or more"),
            (
                self.max_num_queued_reqs is None or self.max_num_queued_reqs >= 1,
                "max-num-queued-reqs must be 1 or more",
            ),
            (self.scheduling_policy in ("fcfs", "priority"), "scheduling-policy must be fcfs or priority"),
            (
                self.runner in ("text", "pooling", "classify", "audio"),
                "runner: text, pooling, classify or audio",
            ),
            (self.keep_alive > 0, "keep-alive must be more than 0 seconds"),
            (self.shutdown_timeout is None or self.shutdown_timeout >= 0, "shutdown-timeout must be 0 or more seconds"),
        )
        for holds, message in checks:
            if not holds:
                raise UsageError(message)
