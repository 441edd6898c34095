"""The bytes on the wire: cases that hold against a real vLLM 0.32 and against the simulator, word for word.

A case compares status lines, header names, bodies' keys in order with their types, the sequence of events, framing,
timing, and errors to the letter; never generated text. Where a server differs from a case, vLLM is right and the
simulator is fixed. `test_wire_simulator.py` and `test_wire_vllm.py` run the same tables:

    REFUSALS     (wire_refusals) a request and the exact refusal
    WHOLE        (wire_shapes) a request and the shape of its answer
    STREAMS      (wire_shapes) a request and the shapes of its events
    BEHAVIOURS   functions of a Target with default options; SLOW ones among them take seconds
    CROWDED      functions of a Target with --max-num-seqs 1 --max-num-queued-reqs 3 --api-key KEY
                 --enable-request-id-headers
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from tests.e2e.wire_client import (
    CHAT,
    COMPLETIONS,
    JSON_HEADERS,
    MESSAGES,
    STREAM_HEADERS,
    Answer,
    Target,
    Wire,
    ask,
    chat,
    completion,
    metric,
    render,
)

Case = Callable[[Target], None]

# s, from a client's leaving to num_requests_running 0: a real one takes 0.04 to 0.07, and LONG takes more than 3.
GONE_WITHIN = 2.5
CLOSED_WITHIN = 4.0  # s, from an answer that ends the connection to its end: an idle one would stay for 5
LONG = 1500  # tokens: seconds of generation on either


def _wait_for(target: Target, name: str, wanted: float, timeout: float) -> None:
    """Until a metric is `wanted`. The time of asking for a scrape counts: a busy vLLM needs seconds to answer."""
    begun = asked = time.monotonic()
    while (value := metric(target, name)) != wanted:
        assert asked - begun < timeout, f"{name} is {value} after {timeout} s, not {wanted}"
        time.sleep(0.02)
        asked = time.monotonic()


def _wait_for_running(target: Target, wanted: float, timeout: float) -> None:
    _wait_for(target, "vllm:num_requests_running", wanted, timeout)


def _wait_for_waiting(target: Target, wanted: float, timeout: float) -> None:
    _wait_for(target, "vllm:num_requests_waiting", wanted, timeout)


def _text(answer: Answer, index: int = 0) -> str:
    """The text of a chat stream's choice."""
    choices = [data["choices"] for _, data in answer.events() if isinstance(data, dict)]
    return "".join(c["delta"].get("content", "") for cs in choices for c in cs if c["index"] == index)


# --- default options ----------------------------------------------------------------------------------------------


def health_and_ping_are_empty_200s(target: Target) -> None:
    """/health and /ping answer 200 without body and content-type."""
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        answer = ask(target, method, path)
        assert (answer.status, answer.reason, answer.body) == (200, "OK", b"")
        assert answer.header_names == ["date", "server", "content-length", "vary"]


def usage_adds_up(target: Target) -> None:
    """With ignore_eos an answer has max_tokens tokens, and the total is the sum."""
    body = ask(target, "POST", CHAT, chat(max_tokens=7)).json()
    usage = body["usage"]
    assert usage["completion_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7
    assert body["choices"][0]["finish_reason"] == "length"
    assert (body["object"], body["model"]) == ("chat.completion", target.model)
    assert body["choices"][0]["message"]["role"] == "assistant"


def tokenize_counts_what_usage_counts(target: Target) -> None:
    """/tokenize, count_tokens and a prompt's usage agree on a conversation."""
    messages = chat()["messages"]
    counted = ask(target, "POST", "/tokenize", {"messages": messages}).json()
    assert counted["count"] == len(counted["tokens"])
    asked = {"model": target.model, "messages": messages}
    assert ask(target, "POST", f"{MESSAGES}/count_tokens", asked).json()["input_tokens"] == counted["count"]
    assert ask(target, "POST", CHAT, chat()).json()["usage"]["prompt_tokens"] == counted["count"]


def detokenize_undoes_tokenize(target: Target) -> None:
    """The tokens of a text are that text again."""
    text = "hello world, said the gateway"
    tokens = ask(target, "POST", "/tokenize", {"prompt": text}).json()["tokens"]
    assert ask(target, "POST", "/detokenize", {"tokens": tokens}).json() == {"prompt": text}


def the_same_request_has_the_same_answer(target: Target) -> None:
    """Without randomness an answer repeats, and its stream has the same text as its whole."""
    one = ask(target, "POST", CHAT, chat(max_tokens=20)).json()["choices"][0]["message"]["content"]
    two = ask(target, "POST", CHAT, chat(max_tokens=20)).json()["choices"][0]["message"]["content"]
    assert one == two
    assert _text(ask(target, "POST", CHAT, chat(max_tokens=20, stream=True))) == one


def a_token_is_an_event(target: Target) -> None:
    """The role comes alone, then each of 20 tokens, the last one with the reason; then [DONE]."""
    events = ask(target, "POST", CHAT, chat(max_tokens=20, stream=True)).events()
    assert events[0][1]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1][1] == "[DONE]"
    tokens = [data["choices"][0] for _, data in events[1:-1]]
    # A busy engine may merge two tokens into one event; it never splits one.
    assert 10 <= len(tokens) <= 20
    assert [choice["finish_reason"] for choice in tokens] == [None] * (len(tokens) - 1) + ["length"]
    assert len({data["id"] for _, data in events[:-1]}) == 1


def two_choices_share_a_stream(target: Target) -> None:
    """n=2: two roles first, then both choices' tokens, each ending by itself; usage sums both."""
    options = {"include_usage": True}
    body = chat(n=2, temperature=1, stream=True, stream_options=options)
    events = [data for _, data in ask(target, "POST", CHAT, body).events() if isinstance(data, dict)]
    assert [event["choices"][0]["delta"].get("role") for event in events[:2]] == ["assistant", "assistant"]
    choices = [event["choices"][0] for event in events[:-1]]
    assert [choice["index"] for choice in choices[:2]] == [0, 1]
    assert sorted(choice["index"] for choice in choices if choice["finish_reason"]) == [0, 1]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 10


def a_choice_of_two_signs_its_end(target: Target) -> None:
    """n=2 without usage: the fingerprint is on each choice's last event and nowhere else."""
    body = chat(n=2, temperature=1, stream=True)
    events = [data for _, data in ask(target, "POST", CHAT, body).events() if isinstance(data, dict)]
    signed = [bool(event.get("system_fingerprint")) for event in events]
    assert signed == [event["choices"][0]["finish_reason"] is not None for event in events]
    assert sum(signed) == 2


def running_usage_is_each_choices_own(target: Target) -> None:
    """continuous_usage_stats counts the tokens of the event's own choice."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat(n=2, temperature=1, stream=True, stream_options=options)
    events = [data for _, data in ask(target, "POST", CHAT, body).events() if isinstance(data, dict)]
    ends = [event["usage"]["completion_tokens"] for event in events[:-1] if event["choices"][0]["finish_reason"]]
    assert ends == [5, 5]
    assert events[0]["usage"]["completion_tokens"] == 0
    assert events[-1]["usage"]["completion_tokens"] == 10


def several_prompts_number_their_choices(target: Target) -> None:
    """Two prompts with n=2 give choices 0 to 3."""
    body = completion(prompt=["a", "b"], n=2, temperature=1)
    answer = ask(target, "POST", COMPLETIONS, body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 20


def a_stop_string_ends_before_itself(target: Target) -> None:
    """The text ends before the stop string, with its reason and the string named; streamed or not."""
    text = ask(target, "POST", CHAT, chat(max_tokens=30)).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:1]
    choice = ask(target, "POST", CHAT, chat(max_tokens=30, stop=[stop])).json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    stream = ask(target, "POST", CHAT, chat(max_tokens=30, stop=stop, stream=True))
    assert _text(stream) == text[: text.index(stop)]
    last = stream.events()[-2][1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def the_context_cuts_silently(target: Target) -> None:
    """A prompt that fits with max_tokens that do not: 200, cut at the context, finish_reason length."""
    prompt = [5] * (target.max_model_len - 10)
    body = ask(target, "POST", COMPLETIONS, completion(prompt=prompt, max_tokens=100)).json()
    assert body["usage"] == {
        "prompt_tokens": target.max_model_len - 10,
        "total_tokens": target.max_model_len,
        "completion_tokens": 10,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    assert body["choices"][0]["finish_reason"] == "length"


def the_end_counts_as_a_token(target: Target) -> None:
    """An answer that ends at once is one token of no text."""
    body = ask(target, "POST", CHAT, chat(ignore_eos=False, logit_bias={"2": 100})).json()
    assert body["usage"]["completion_tokens"] == 1
    assert body["choices"][0]["message"]["content"] == ""
    assert body["choices"][0]["finish_reason"] == "stop"


def a_request_id_becomes_the_bodys_id(target: Target) -> None:
    """X-Request-Id is in the body's id and comes back in no header; /v1/responses does not look at it."""
    headers = {"X-Request-Id": "gw-abc-123"}
    answer = ask(target, "POST", CHAT, chat(), headers)
    assert answer.json()["id"] == "chatcmpl-gw-abc-123"
    assert answer.header_names == JSON_HEADERS
    assert ask(target, "POST", COMPLETIONS, completion(), headers).json()["id"] == "cmpl-gw-abc-123"
    assert ask(target, "POST", CHAT, chat(request_id="mine")).json()["id"] == "chatcmpl-mine"
    made = ask(target, "POST", CHAT, chat()).json()["id"]
    assert len(made) == len("chatcmpl-") + 16


def authorization_is_ignored_without_a_key(target: Target) -> None:
    """Any key is accepted where none is asked for."""
    assert ask(target, "POST", CHAT, chat(), {"Authorization": "Bearer x"}).status == 200


def a_trailing_slash_redirects(target: Target) -> None:
    """307 with an absolute location that names the Host asked for."""
    answer = ask(target, "POST", CHAT + "/", chat(), {"Host": "example.org"})
    assert (answer.status, answer.reason) == (307, "Temporary Redirect")
    assert answer.header("location") == f"http://example.org{CHAT}"
    assert answer.header_names == ["date", "server", "content-length", "location", "vary"]


def head_of_health_is_405(target: Target) -> None:
    """/health does not support HEAD; the answer has a length and no body."""
    answer = ask(target, "HEAD", "/health")
    assert (answer.status, answer.header("allow"), answer.header("content-length")) == (405, "GET", "31")


def a_preflight_is_refused(target: Target) -> None:
    """CORS allows no origin."""
    headers = {"Origin": "http://example.com", "Access-Control-Request-Method": "POST"}
    answer = ask(target, "OPTIONS", CHAT, None, headers)
    assert (answer.status, answer.body) == (400, b"Disallowed CORS origin")
    assert answer.header_names[2:] == [
        "vary",
        "access-control-allow-methods",
        "access-control-max-age",
        "content-length",
        "content-type",
    ]


def connection_close_is_honoured(target: Target) -> None:
    """The header comes back and the connection is closed, streamed or not."""
    for body, names in ((chat(), JSON_HEADERS), (chat(stream=True), STREAM_HEADERS)):
        with Wire(target) as wire:
            wire.send("POST", CHAT, body, {"Connection": "close"})
            answer = wire.receive()
            assert answer.header("connection") == "close"
            assert sorted(answer.header_names) == sorted([*names, "connection"])
            assert wire.read_until_closed(timeout=CLOSED_WITHIN) == b""


def http_1_0_is_answered_and_closed(target: Target) -> None:
    """An old client gets its answer and the end of the connection."""
    with Wire(target) as wire:
        wire.send_raw(b"GET /health HTTP/1.0\r\nHost: x\r\n\r\n")
        assert wire.receive().header("connection") == "close"
        assert wire.read_until_closed(timeout=CLOSED_WITHIN) == b""


def pipelined_requests_are_answered_in_order(target: Target) -> None:
    """Three requests in one packet, three answers in order."""
    with Wire(target) as wire:
        paths = ("/v1/models", "/version", "/load")
        wire.send_raw(b"".join(render(target, "GET", path) for path in paths))
        keys = [next(iter(wire.receive().json())) for _ in paths]
    assert keys == ["object", "version", "server_load"]


def expect_100_is_told_to_continue(target: Target) -> None:
    """100 Continue comes before the body is sent."""
    request = render(target, "POST", CHAT, chat(), {"Expect": "100-continue"})
    head, _, body = request.partition(b"\r\n\r\n")
    with Wire(target) as wire:
        wire.send_raw(head + b"\r\n\r\n")
        assert wire.receive_head().status == 100
        wire.send_raw(body)
        assert wire.receive().status == 200


def a_chunked_upload_is_read(target: Target) -> None:
    """A body without content-length, in pieces."""
    body = json.dumps(chat()).encode()
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    request = render(target, "POST", CHAT, b"", {"Content-Length": "", "Transfer-Encoding": "chunked"})
    with Wire(target) as wire:
        wire.send_raw(request + pieces)
        assert wire.receive().status == 200


def a_large_header_is_accepted(target: Target) -> None:
    """70 kB of headers are not refused."""
    assert ask(target, "GET", "/health", None, {"X-Big": "a" * 70_000}).status == 200


def what_is_no_http_is_refused(target: Target) -> None:
    """400 as text, and the connection is closed."""
    with Wire(target) as wire:
        wire.send_raw(b"G@T /hea lth HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = wire.receive()
        assert (answer.status, answer.body) == (400, b"Invalid HTTP request received.")
        assert answer.header_names == ["date", "server", "content-type", "content-length", "connection"]
        assert wire.read_until_closed(timeout=CLOSED_WITHIN) == b""


def a_client_that_leaves_ends_the_generation(target: Target) -> None:
    """FIN or RST, streamed or not, n of 1 or 3: nothing runs a moment later, and the token count stands still."""
    for how, body in (
        ("close", chat(max_tokens=LONG, stream=True)),
        ("reset", chat(max_tokens=LONG, stream=True)),
        ("close", chat(max_tokens=LONG)),
        ("reset", chat(max_tokens=LONG)),
        ("close", chat(max_tokens=LONG, stream=True, n=3, temperature=1)),
    ):
        _wait_for_running(target, 0, timeout=10)
        successes = metric(target, "vllm:request_success_total")
        with Wire(target) as wire:
            wire.send("POST", CHAT, body)
            if body.get("stream"):
                answer = wire.receive_head()
                for _ in range(5):
                    assert wire.receive_chunk(answer)
            else:
                time.sleep(0.1)  # it has begun, and is far from its end
            if how == "reset":
                wire.reset()
        _wait_for_running(target, 0, timeout=GONE_WITHIN)
        tokens = metric(target, "vllm:generation_tokens_total")
        time.sleep(0.1)
        assert metric(target, "vllm:generation_tokens_total") == tokens
        assert metric(target, "vllm:request_success_total") == successes, "it went on to its end"


def a_half_close_counts_as_leaving(target: Target) -> None:
    """shutdown(SHUT_WR) right after the request: no byte of a whole answer comes back, and nothing runs."""
    with Wire(target) as wire:
        wire.send("POST", CHAT, chat(max_tokens=LONG))
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.read_until_closed(timeout=GONE_WITHIN) == b""
    _wait_for_running(target, 0, timeout=GONE_WITHIN)


def a_slow_reader_slows_nothing(target: Target) -> None:
    """A client that does not read: the generation ends all the same, and the whole answer waits for it."""
    before = metric(target, "vllm:generation_tokens_total")
    with Wire(target, receive_buffer=4096) as wire:
        wire.send("POST", CHAT, chat(max_tokens=400, stream=True))
        answer = wire.receive_head()
        deadline = time.monotonic() + 20
        while metric(target, "vllm:generation_tokens_total") < before + 400:
            assert time.monotonic() < deadline, "the generation waits for its reader"
            time.sleep(0.05)
        while wire.receive_chunk(answer):
            pass
    assert answer.events()[-1][1] == "[DONE]"


def one_request_id_may_run_twice(target: Target) -> None:
    """Two streams at a time with the same X-Request-Id both end well."""
    headers = {"X-Request-Id": "dup"}
    with Wire(target) as one, Wire(target) as two:
        for wire in (one, two):
            wire.send("POST", CHAT, chat(max_tokens=50, stream=True), headers)
        for wire in (one, two):
            answer = wire.receive()
            assert answer.events()[-1][1] == "[DONE]"
            assert answer.events()[0][1]["id"] == "chatcmpl-dup"


def metrics_have_the_names_a_router_reads(target: Target) -> None:
    """Each with vLLM's labels, in the text format 1.0.0."""
    engine = {"engine": "0", "model_name": target.model}
    answer = ask(target, "GET", "/metrics")
    assert answer.header("content-type") == "text/plain; version=1.0.0; charset=utf-8"
    assert answer.header_names == JSON_HEADERS
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
        "prompt_tokens_total",
        "generation_tokens_total",
    ):
        metric(target, f"vllm:{name}", **engine)
    for reason in ("stop", "length", "abort", "error", "repetition"):
        metric(target, "vllm:request_success_total", finished_reason=reason, **engine)
    for reason in ("capacity", "deferred"):
        metric(target, "vllm:num_requests_waiting_by_reason", reason=reason, **engine)
    metric(target, "vllm:admission_rejections_total", reason="max_num_queued_reqs", model_name=target.model)
    metric(target, "vllm:engine_sleep_state", sleep_state="awake", **engine)
    for name in (
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    ):
        metric(target, f"vllm:{name}_bucket", le="+Inf", **engine)


def metrics_count_what_was_done(target: Target) -> None:
    """Prompt tokens, generated tokens and the reason of the end."""
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [metric(target, name) for name in names]
    ends = metric(target, "vllm:request_success_total", finished_reason="length")
    usage = ask(target, "POST", CHAT, chat(max_tokens=9)).json()["usage"]
    assert [metric(target, name) for name in names] == [before[0] + usage["prompt_tokens"], before[1] + 9]
    assert metric(target, "vllm:request_success_total", finished_reason="length") == ends + 1


def an_unhandled_exception_closes_unannounced(target: Target) -> None:
    """A 500 without `connection: close`, and then the end: FIN, or RST where the next request had been sent already."""
    function = {"name": "f", "arguments": "[" * 5000}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    body = chat(messages=[called, *chat()["messages"]])
    for pipelined in (False, True):
        with Wire(target) as wire:
            wire.send("POST", CHAT, body)
            answer = wire.receive()
            assert (answer.status, answer.header_names) == (500, [name for name in JSON_HEADERS if name != "vary"])
            assert answer.json()["error"] == {
                "message": "maximum recursion depth exceeded while decoding a JSON array from a unicode string",
                "type": "InternalServerError",
                "param": None,
                "code": 500,
            }
            with suppress(ConnectionResetError, BrokenPipeError):
                if pipelined:
                    wire.send("POST", CHAT, chat())
                assert wire.read_until_closed(timeout=CLOSED_WITHIN) == b""


def an_idle_connection_is_closed_after_5_s(target: Target) -> None:
    """5 s after the last response, counted anew with each; one that has sent nothing stays open."""
    with Wire(target) as silent, Wire(target) as wire:
        wire.send("GET", "/health")
        wire.receive()
        time.sleep(2.5)
        begun = time.monotonic()  # before the response: the machine may take its time until it is read
        wire.send("GET", "/health")
        wire.receive()
        assert wire.read_until_closed(timeout=8) == b""
        assert time.monotonic() - begun > 4.9
        silent.send("GET", "/health")
        assert silent.receive().status == 200


BEHAVIOURS: tuple[Case, ...] = (
    health_and_ping_are_empty_200s,
    usage_adds_up,
    tokenize_counts_what_usage_counts,
    detokenize_undoes_tokenize,
    the_same_request_has_the_same_answer,
    a_token_is_an_event,
    two_choices_share_a_stream,
    a_choice_of_two_signs_its_end,
    running_usage_is_each_choices_own,
    several_prompts_number_their_choices,
    a_stop_string_ends_before_itself,
    the_context_cuts_silently,
    the_end_counts_as_a_token,
    a_request_id_becomes_the_bodys_id,
    authorization_is_ignored_without_a_key,
    a_trailing_slash_redirects,
    head_of_health_is_405,
    a_preflight_is_refused,
    connection_close_is_honoured,
    http_1_0_is_answered_and_closed,
    pipelined_requests_are_answered_in_order,
    expect_100_is_told_to_continue,
    a_chunked_upload_is_read,
    a_large_header_is_accepted,
    what_is_no_http_is_refused,
    an_unhandled_exception_closes_unannounced,
    a_client_that_leaves_ends_the_generation,
    a_half_close_counts_as_leaving,
    a_slow_reader_slows_nothing,
    one_request_id_may_run_twice,
    metrics_have_the_names_a_router_reads,
    metrics_count_what_was_done,
    an_idle_connection_is_closed_after_5_s,
)


# --- a crowded server ---------------------------------------------------------------------------------------------


def a_queued_stream_has_its_200_at_once(target: Target) -> None:
    """Behind a running one: status and headers come at once, no event before its turn."""
    with Wire(target) as first, Wire(target) as second:
        first.send("POST", CHAT, chat(max_tokens=LONG, stream=True))
        running = first.receive_head()
        first.receive_chunk(running)
        second.send("POST", CHAT, chat(stream=True))
        answer = second.receive_head()
        assert answer.status == 200
        assert answer.first_byte < 0.5
        while first.receive_chunk(running):
            pass
        end_of_first = time.monotonic()
        second.receive_chunk(answer)
        assert answer.first_chunk + second.sent_at >= end_of_first - 0.05


def a_full_queue_is_503(target: Target) -> None:
    """One runs, two wait; the next is refused, streamed or not, and health stays 200; leaving frees the places."""
    rejected = metric(target, "vllm:admission_rejections_total")
    wires = [Wire(target) for _ in range(3)]
    try:
        for wire in wires:
            wire.send("POST", CHAT, chat(max_tokens=LONG, stream=True))
            assert wire.receive_head().status == 200
        for stream in (False, True):
            answer = ask(target, "POST", CHAT, chat(stream=stream))
            assert (answer.status, answer.reason) == (503, "Service Unavailable")
            assert answer.json() == {
                "error": {
                    "message": "The engine is currently busy and cannot accept new requests. "
                    "Please try again later or on a different instance.",
                    "type": "Service Unavailable",
                    "param": None,
                    "code": 503,
                }
            }
            assert answer.header("retry-after") is None
        assert ask(target, "GET", "/health").status == 200
        assert metric(target, "vllm:admission_rejections_total") == rejected + 2
    finally:
        for wire in wires:
            wire.socket.close()
    _wait_for_running(target, 0, timeout=GONE_WITHIN)
    _wait_for_waiting(target, 0, timeout=GONE_WITHIN)
    assert ask(target, "POST", CHAT, chat()).status == 200


def a_client_that_leaves_the_queue_never_runs(target: Target) -> None:
    """Nothing is generated for a request whose client left while it waited."""
    prompts = metric(target, "vllm:prompt_tokens_total")
    with Wire(target) as first, Wire(target) as second:
        first.send("POST", CHAT, chat(max_tokens=LONG, stream=True, stream_options={"include_usage": True}))
        answer = first.receive_head()
        first.receive_chunk(answer)
        second.send("POST", CHAT, chat(max_tokens=LONG))
        time.sleep(0.2)  # a busy vLLM's metrics may come too late to wait for
        second.reset()
        _wait_for_waiting(target, 0, timeout=GONE_WITHIN)
        while first.receive_chunk(answer):
            pass
    usage = answer.events()[-2][1]["usage"]
    _wait_for_running(target, 0, timeout=GONE_WITHIN)
    assert metric(target, "vllm:prompt_tokens_total") == prompts + usage["prompt_tokens"]


def n_counts_in_the_queue(target: Target) -> None:
    """A request of four answers is more than the three places there are."""
    assert ask(target, "POST", CHAT, chat(n=4, temperature=1)).status == 503


def a_key_guards_v1_only(target: Target) -> None:
    """Below /v1 the key is asked for, in any method; elsewhere not."""
    for key in ("", "Bearer nope", target.api_key or ""):
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/nope")):
            answer = ask(target, method, path, chat() if method == "POST" else None, {"Authorization": key})
            assert (answer.status, answer.body) == (401, b'{"error":"Unauthorized"}')
            assert answer.header_names == ["date", "server", "content-length", "content-type", "x-request-id"]
    for method, path, body in (
        ("GET", "/health", None),
        ("GET", "/metrics", None),
        ("POST", "/tokenize", {"prompt": "x"}),
    ):
        assert ask(target, method, path, body, {"Authorization": ""}).status == 200
    assert ask(target, "POST", "/invocations", chat(), {"Authorization": ""}).status == 200


def request_ids_come_back(target: Target) -> None:
    """With --enable-request-id-headers: the client's, or 32 hex digits; on errors and streams too."""
    echoed = ask(target, "POST", CHAT, chat(), {"X-Request-Id": "gw-1"})
    assert (echoed.header("x-request-id"), echoed.json()["id"]) == ("gw-1", "chatcmpl-gw-1")
    assert echoed.header_names == [*JSON_HEADERS, "x-request-id"]
    made = ask(target, "POST", CHAT, chat(stream=True))
    assert len(made.header("x-request-id") or "") == 32
    assert made.header_names == ["date", "server", "content-type", "vary", "x-request-id", "transfer-encoding"]
    refused = ask(target, "POST", CHAT, chat(model="nope"), {"X-Request-Id": "gw-2"})
    assert (refused.status, refused.header("x-request-id")) == (404, "gw-2")


def _goes_first(target: Target, *priorities: int) -> int:
    """Which of the streams with these priorities, sent in this order while all places are taken, begins first."""
    with ExitStack() as wires:
        for number in range(target.max_num_seqs):
            wire = wires.enter_context(Wire(target))
            tokens = LONG if number else LONG // 5  # one place comes free, the others later
            wire.send("POST", CHAT, chat(max_tokens=tokens, ignore_eos=True, stream=True))
            wire.receive_chunk(wire.receive_head())
        waiting = [wires.enter_context(Wire(target)) for _ in priorities]
        for wire, priority in zip(waiting, priorities, strict=True):
            wire.send("POST", CHAT, chat(max_tokens=LONG // 5, ignore_eos=True, stream=True, priority=priority))
            assert wire.receive_head().status == 200
        sockets = [wire.socket for wire in waiting]
        [first] = select.select(sockets, [], [], 60)[0]
    _wait_for_running(target, 0, timeout=GONE_WITHIN)
    return sockets.index(first)


def priorities_are_accepted_and_ignored(target: Target) -> None:
    """Without --scheduling-policy priority, whatever the field's description in vLLM says about an error."""
    for priority in (-1, 20, 2**63 - 1):
        assert ask(target, "POST", CHAT, chat(priority=priority)).status == 200
    assert _goes_first(target, 20, -1) == 0


def the_lowest_priority_goes_first(target: Target) -> None:
    """With --scheduling-policy priority; equals go in the order of their arrival."""
    assert _goes_first(target, 20, 0) == 1
    assert _goes_first(target, 10, 10) == 0


CROWDED: tuple[Case, ...] = (
    priorities_are_accepted_and_ignored,
    a_queued_stream_has_its_200_at_once,
    a_full_queue_is_503,
    a_client_that_leaves_the_queue_never_runs,
    n_counts_in_the_queue,
    a_key_guards_v1_only,
    request_ids_come_back,
)


def case_id(case: Any) -> str:
    """A test's id: the row's own, or the function's name in words."""
    return case.id if hasattr(case, "id") else case.__name__.replace("_", " ")
