"""Read how loaded a vLLM is from its own `/metrics`. Pure: no clocks, no sockets.

Names as in vLLM 0.32. Engines of one server (`--data-parallel-size`) have a row each: their requests and tokens add up,
and the fullest cache counts. vLLM does not export `max_num_seqs`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec


class VllmLoad(msgspec.Struct, frozen=True):
    """One look at the metrics.

    running      sequences in the batch
    waiting      sequences in vLLM's own queue
    kv_usage     0..1, the used part of the KV cache
    preemptions  sequences that vLLM has thrown out of the batch since its start; they are computed again
    kv_tokens    LLM tokens that the KV cache holds; 0 if unknown
    started      when the server's process started, in seconds since the epoch; 0 if unknown
    """

    running: int
    waiting: int
    kv_usage: float
    preemptions: int
    kv_tokens: int
    started: float


def vllm_load(text: bytes) -> VllmLoad | None:
    """Read the text of `/metrics`; None if it is not vLLM's, or a number in it cannot be read."""
    sums = {b"num_requests_running": 0.0, b"num_requests_waiting": 0.0, b"num_preemptions_total": 0.0}
    kv_usage: float | None = None
    kv_tokens, seen = 0, set()
    try:
        for name, labels, value in _ROW.findall(text):
            seen.add(name)
            if name in sums:
                sums[name] += float(value)
            elif name == b"kv_cache_usage_perc":
                kv_usage = max(kv_usage or 0.0, float(value))
            else:
                size = _KV_TOKENS.search(labels)
                kv_tokens += int(size[1]) if size is not None else 0
        start = _STARTED.search(text)
        started = 0.0 if start is None else float(start[1])
        running, waiting, preemptions = (int(number) for number in sums.values())
    except (ValueError, OverflowError):
        return None
    if kv_usage is None or not sums.keys() <= seen:
        return None
    return VllmLoad(running, waiting, kv_usage, preemptions, kv_tokens, started)


_ROW: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|num_preemptions_total|kv_cache_usage_perc|cache_config_info)"
    rb"\{([^\n]*)\} (\S+)",
    re.MULTILINE,
)
_KV_TOKENS: Final = re.compile(rb'kv_cache_size_tokens="([0-9]+)"')
_STARTED: Final = re.compile(rb"^process_start_time_seconds (\S+)", re.MULTILINE)
