"""A stand-in for the admin endpoint of a busy gateway: three backends, 500 live requests, refusals, keys near limits.

    with FakeAdmin() as fake:
        fake.status["store"]["up"] = False      # answers are plain JSON until then, and may be changed at any time
        ...                                     # GET fake.url, fake.url + "status", ...

Its answers have the form of docs/admin.md. With `moving`, each answer is a little later than the last one: counters and
tokens grow, so that rates can be seen.
"""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import sin
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from aiaas.proxy.admin.attention import attention
from aiaas.proxy.admin.model import Status
from aiaas.proxy.admin.page import PAGE_TYPE, read_page

Json = dict[str, Any]

NOW: Final = 1_800_000_000.0
MODELS: Final = ("llama-3.3-70b", "qwen3-coder-30b", "bge-m3")
USERS: Final = ("alice", "bob", "team-search", "ci-runner", "nightly-eval", "Dana O'Brien", "web", "notebook-7")


def endpoint(url: str, **other: Any) -> Json:
    """An endpoint that is up."""
    fields = {
        "url": url,
        "up": True,
        "reason": None,
        "since": NOW - 93_000,
        "in_flight": 64,
        "max_inflight": 64,
        "offered": [MODELS[0]],
        "missing": [],
        "problem": None,
        "lacks": [],
        "engine": None,
    }
    return fields | other


def backend(name: str, endpoints: list[Json], models: list[str], queued: int = 0) -> Json:
    """A backend, of which the queue is the only thing that waits."""
    return {
        "name": name,
        "balance": "auto",
        "queued": queued,
        "models": models,
        "endpoints": endpoints,
        "cached_tokens": {"hit": 81_000, "miss": 19_000},
        "turns": {"first": 41, "stayed": 377},
    }


def busy_status(*, live: int = 500, queued: int = 37) -> Json:
    """A gateway with something to say in each part of the page."""
    llama, coder, embed = MODELS
    return {
        "version": "0.1.0",
        "now": NOW,
        "started": NOW - 200_000,
        "workers": 2,
        "workers_up": 2,
        "draining": False,
        "address": "0.0.0.0:8000",
        "config": {
            "source": "/etc/aiaas/aiaas.yaml",
            "digest": "3f9a51c07be2",
            "since": NOW - 7_400,
            "restart_needed": ["server.workers"],
        },
        "reloads": [
            {"what": "config", "ok": True, "at": NOW - 7_400, "last_success": NOW - 7_400, "error": None},
            {
                "what": "keys",
                "ok": False,
                "at": NOW - 312,
                "last_success": NOW - 90_000,
                "error": "keys.yaml:14: id: the id 9f3c is used twice",
            },
        ],
        "keys": {"enabled": True, "loaded": 214, "expired": 3, "next_expiry": NOW + 400_000},
        "store": {"kind": "redis", "up": True, "on_failure": "local", "processes": 4},
        "usage_store": {"kind": "redis", "ok": True},
        "certificate": {"expires": NOW + 12 * 86_400 + 3_600, "file": "/etc/aiaas/tls.crt"},
        "backends": [
            backend(
                "chat",
                [
                    endpoint("http://10.0.0.11:8000", in_flight=128, max_inflight=128),
                    endpoint("http://10.0.0.12:8000", in_flight=128, max_inflight=128),
                    endpoint(
                        "http://10.0.0.13:8000", up=False, reason="connection refused", since=NOW - 75, in_flight=0
                    ),
                ],
                [llama],
                queued,
            ),
            backend("coder", [endpoint("http://10.0.1.21:8000", in_flight=207, max_inflight=256)], [coder]),
            backend(
                "embed",
                [endpoint("http://10.0.2.31:8000", max_inflight=None, in_flight=0, lacks=["/v1/chat/completions"])],
                [embed],
            ),
        ],
        "requests": {"in_flight": live, "queued": queued, "output_tokens": 1_200_000},
        "totals": {
            "requests": 1_204_117,
            "errors": 212,
            "refused": 3_408,
            "input_tokens": 812_334_090,
            "output_tokens": 304_118_322,
        },
        "models": [
            model(llama, requests=804_000, ttft_p50=0.21, ttft_p95=1.94, ttft_buckets=ttft_buckets(804_000)),
            model(coder, requests=399_000, ttft_p50=0.15, ttft_p95=0.61, ttft_buckets=ttft_buckets(399_000)),
            model(embed, requests=1_117, ttft_p50=None, ttft_p95=None),
        ],
        "keys_near": [
            near(3, "requests", 60, 60, 12.4),
            near(4, "tokens", 93_120, 100_000, 31.0),
            near(2, "concurrency", 15, 16, None),
            near(7, "quota", 982_000, 1_000_000, 41_000.0),
        ],
        "process": {
            "memory": 151 * 1024 * 1024,
            "descriptors": 1_080,
            "descriptors_max": 65_536,
            "cpu_seconds": 8_211.0,
            "loop_lag_p99": 0.004,
        },
    }


def ttft_buckets(count: int) -> list[Any]:
    """The cumulative buckets of so many requests, half of them within 250 ms."""
    shares = {0.1: 0.2, 0.25: 0.5, 0.5: 0.8, 1.0: 0.92, 2.5: 0.99, None: 1.0}
    return [[bound, int(share * count)] for bound, share in shares.items()]


def model(name: str, **other: Any) -> Json:
    """A model's sums since the start."""
    sums = {"requests": 0, "errors": 12, "input_tokens": 400_000, "output_tokens": 150_000}
    return {"model": name, **sums, "ttft_p50": None, "ttft_p95": None, "ttft_buckets": []} | other


def key_id(user: int) -> str:
    """The key of a user, by the user's place in USERS."""
    return f"{0x51D0BE13 + user * 7919:08x}"


def near(user: int, limit: str, used: int, of: int, resets_in: float | None) -> Json:
    """A key near one of its limits."""
    who = {"key_id": key_id(user), "user": USERS[user]}
    return who | {"limit": limit, "used": used, "of": of, "resets_in": resets_in}


def request(place: int, **other: Any) -> Json:
    """A live request, the older the smaller its place."""
    user = place % len(USERS)
    sent = 200 + 37 * (place % 90)
    fields = {
        "id": f"req-{place:05x}",
        "worker": place % 2,
        "at": NOW - 600 / (1 + place),
        "path": "/v1/chat/completions",
        "user": USERS[user],
        "key_id": key_id(user),
        "model": MODELS[place % 2],
        "backend": ("chat", "coder")[place % 2],
        "upstream": f"http://10.0.{place % 2}.{11 + place % 2 * 10}:8000",
        "class": "interactive",
        "stream": True,
        "phase": "streaming",
        "waiting_for": None,
        "status": 200,
        "error_code": None,
        "reason": None,
        "ended_by": None,
        "ended_in": None,
        "message": None,
        "duration": 600 / (1 + place),
        "body_seconds": 0.0,
        "ttft": 0.2 + place % 7 / 10,
        "overhead": None,
        "queue_seconds": 0.0,
        "queue_position": 0,
        "retries": 0,
        "turn": "stayed",
        "input_tokens": sent,
        "output_tokens": None,
        "cached_tokens": 0,
        "estimated": False,
        "events": 7 * (500 - place),
        "request_bytes": 4 * sent,
        "response_bytes": 0,
        "client_address": f"10.8.{place % 4}.{place % 250}",
        "limits": None,
        "attempts": [],
    }
    return fields | other


def queued_request(place: int, position: int) -> Json:
    """A live request that waits for a slot."""
    waits = {"phase": "queued", "waiting_for": "a slot of backend chat", "queue_position": position}
    empty = {"ttft": None, "events": 0, "upstream": None, "status": None}
    return request(place, model=MODELS[0], backend="chat", **waits, **empty)


def busy_requests(*, live: int = 500, queued: int = 37) -> list[Json]:
    """The live requests of `busy_status`."""
    streaming = [request(place) for place in range(live - queued)]
    return streaming + [queued_request(live - queued + place, place + 1) for place in range(queued)]


def refusal(place: int, status: int, code: str, reason: str) -> Json:
    """A refusal, the newer the smaller its place."""
    return {
        "at": NOW - 3 - 11 * place,
        "id": f"ref-{place:04x}",
        "worker": 0,
        "status": status,
        "error_code": code,
        "message": reason,
        "key_id": None if status == 401 else key_id(place % 8),
        "user": None if status == 401 else USERS[place % 8],
        "model": MODELS[place % 2],
        "path": "/v1/chat/completions",
        "client_address": f"10.8.0.{place}",
        "reason": None,
    }


def busy_refusals() -> Json:
    """Refusals of three kinds."""
    kinds = (
        (429, "rate_limit_exceeded", "Rate limit reached: 60 requests per minute. Try again in 12 s."),
        (401, "invalid_api_key", "The API key is not valid."),
        (503, "queue_full", "The queue of backend chat is full."),
    )
    found = [refusal(place, *kinds[0 if place % 4 else place // 4 % 3]) for place in range(40)]
    by_code = {"rate_limit_exceeded": 2_960, "invalid_api_key": 311, "queue_full": 137}
    return {"refusals": found, "by_code": by_code}


class FakeAdmin:
    """The endpoint, on a port of its own while it is entered. Its answers are plain JSON that a test may change."""

    def __init__(self, *, chat: bool = False, moving: bool = False) -> None:
        self.status = busy_status()
        self.live = busy_requests()
        self.refusals = busy_refusals()
        self.chunks: list[bytes] = []  # of the answer to POST /chat
        self.asked: list[str] = []
        self.sent: list[tuple[dict[str, str], bytes]] = []  # the headers and bodies of POST /chat
        self.moving = moving
        self._page = read_page(chat=chat)
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """With a slash at the end."""
        return f"http://127.0.0.1:{self._port}/"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; again on the same port after `stop`."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(*fake.answer_to(self.path))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                fake.sent.append((dict(self.headers.items()), body))
                self.answer(200, b"text/event-stream", b"".join(fake.chunks), b"")

            def answer(self, status: int, content_type: bytes, body: bytes, headers: bytes) -> None:
                head = b"HTTP/1.0 %d OK\r\ncontent-type: %b\r\n%b\r\n" % (status, content_type, headers)
                self.wfile.write(head + body)

            def log_message(self, format: str, *_: Any) -> None:
                del format

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fake admin")
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def answer_to(self, path: str) -> tuple[int, bytes, bytes, bytes]:
        """Status, content type, body and header lines for a GET."""
        parts = urlsplit(path)
        self.asked.append(path)
        if parts.path == "/":
            return 200, PAGE_TYPE, self._page.body, self._page.headers
        limit = int(parse_qs(parts.query).get("limit", ["100"])[0])
        if parts.path == "/status":
            if self.moving:
                self.move(2.0)
            faults = attention(msgspec.convert(self.status, Status)) if "now" in self.status else []
            return self._json(self.status | {"attention": msgspec.to_builtins(faults)})
        if parts.path == "/requests":
            return self._json({"live": self.live[:limit], "ended": []})
        if parts.path == "/refusals":
            return self._json(self.refusals | {"refusals": self.refusals["refusals"][:limit]})
        return 404, b"application/json", b'{"error": {"message": "unknown path"}}', b""

    def _json(self, value: Json) -> tuple[int, bytes, bytes, bytes]:
        return 200, b"application/json", json.dumps(value).encode(), b"cache-control: no-store\r\n"

    def move(self, seconds: float) -> None:
        """Let time pass: counters grow as those of 500 streams do, now faster, now slower."""
        status = copy.deepcopy(self.status)
        now = status["now"] + seconds
        totals, wave = status["totals"], 1 + 0.25 * sin(now / 70) + 0.06 * sin(now / 3.1)
        status["now"] = now
        totals["requests"] += int(11 * seconds * wave)
        totals["refused"] += int(2 * seconds * wave)
        totals["output_tokens"] += int(9_300 * seconds * wave)
        totals["input_tokens"] += int(5_100 * seconds)
        status["requests"]["queued"] = status["backends"][0]["queued"] = int(37 * wave)
        for each in status["models"]:
            began = int(60 * seconds * wave)
            each["requests"] += began
            for bucket, (_, share) in zip(each["ttft_buckets"], ttft_buckets(1000), strict=False):
                bucket[1] += began if bucket[0] is None else int(began * min(1.0, share / 1000 / wave))
        self.status = status
        self.live = [r | {"events": r["events"] + int(20 * seconds)} if r["ttft"] else r for r in self.live]
