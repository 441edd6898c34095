"""Why load generators differ, as read in the tools' own code; the cross-check's page shows it beside the figures."""

from __future__ import annotations

from typing import Final

# The versions that were read; a newer one has to be read again, which tests/bench/test_crosscheck.py asks for.
READ: Final = {"vllm bench serve": "0.32.0", "guidellm": "0.8.1"}

REASONS: Final = """\
**TTFT begins**
- aiaas: when the request was due.
- vLLM: when the request's task has its turn, behind `--max-concurrency`, before the body is encoded and a connection
  found (`st` in `async_request_openai_chat_completions`, benchmarks/lib/endpoint_request_func.py). The wait
  before stands apart, in `queue_times`, and is in no latency. 20 tasks that begin at once encode their bodies in turn,
  and the last one's TTFT holds all of it.
- guidellm: with the first byte of the head, on a connection that is there (`_trace_request_start`,
  backends/openai/http.py). The wait before stands apart, in `request_dispatch_delay`, and only for rates.

**The first token is**
- aiaas, guidellm: the first event that adds text, reasoning or a tool call (`_adds`, aiaas/httpclient/answer.py;
  `ChatCompletionsRequestHandler.add_streaming_line`, backends/openai/request_handlers.py).
- vLLM: the first event that has `choices`, so the role event, too. vLLM sends that together with the first token, and
  the TTFT is the same; behind a server that sends it at once it would be next to nothing.

**ITL is**
- aiaas: every gap between two output events, of all requests.
- vLLM: every gap between two events with `choices`. The one between role and first token is one more, near 0, in each
  request: N gaps for N tokens, and a mean that is lower by 1/N.
- guidellm: one mean for each request, (last - first) / (tokens - 1), weighted by its tokens (`inter_token_latency_ms`,
  schemas/base/request_stats.py). Others call that TPOT. Its p99 does not show how long a single gap was: see the uneven
  script.

**TPOT is**
- aiaas, vLLM: (E2E - TTFT) / (tokens - 1), one for each request (`calculate_metrics`, benchmarks/serve.py).
- guidellm: (last token - start) / tokens, so the time to the first token is in it (`time_per_output_token_ms`). The
  same server has a TPOT of about TTFT / tokens more there.

**E2E ends**
- aiaas: when the body is whole, `[DONE]` and the end of the chunks included.
- vLLM: with the last event that has `choices`, before usage and `[DONE]`.
- guidellm: when `[DONE]` was read and the stream was closed (`request_end`).

**The clock is read**
- aiaas: when the socket gives bytes, before anything is parsed. Monotonic.
- vLLM: for each event, after aiohttp has parsed and queued it and the request's task has its turn. Monotonic. All
  of that takes is in the figures; it grows with the load.
- guidellm: for each line, after httpx has decoded it, by `time.time()`, a clock that may be set while it runs.

**Rates are divided by**
- aiaas: the time from the first request to the end of the last answer.
- vLLM: the same, from before the first task is made. At a rate its first request is sent one interval late
  (`get_request` sleeps before it, too).
- guidellm: the time from the first request's start to the last one's end (`finalized_measure_start`,
  benchmark/schemas/accumulator.py). Its closed loop has lower rates at the same E2E: the rest is the time between an
  answer and the next request, which its processes have to hand to one another.

**Percentiles are**
- aiaas: nearest rank, so always a value that was measured.
- vLLM: `numpy.percentile`, between two values.
- guidellm: nearest rank, by weight (`Percentiles.from_pdf`, schemas/base/statistics.py).

**What else is sent**
- aiaas: `GET /v1/models` where no model is named, and one look at the path before the load.
- vLLM: `/tokenize` and `/detokenize` for each prompt, to fit it to the server
  (`_align_prompts_to_server_tokenizer`). No warm-up unless `--num-warmups` says so: the first request of each
  connection opens it, and that is measured.
- guidellm: `GET /health`. It asks for the usage on **every** event (`continuous_usage_stats`), which makes events
  larger and the server's work more.

**It runs in**
- aiaas, vLLM: one process.
- guidellm: up to ten (`max_worker_processes`, settings.py) and a scheduler, which pass messages by queues that they
  poll (utils/messaging.py); here they share one core.

None of them leaves out requests of an open loop: each sends on schedule, whatever the answers do. But with
`--max-concurrency` beside `--request-rate`, what waits in vLLM's client is in no latency of its table.

When a tool is itself the bottleneck, `aiaas loadtest` says so in its remarks (`bottleneck` in
aiaas/loadtest/summary.py: its CPU, its event loop's lag, late sends). vLLM looks at nothing of its own. guidellm warns
of slow generation of data and of late starts (`default_warning_rules`, schemas/benchmark/warnings.py), not of slow
reading.
"""
