"""The settings and the requests of a smoke test: each request gives one `Seen`, and waits out the key's own limit."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from aiaas.httpclient.answer import Answer, PlainAnswer
from aiaas.httpclient.client import BrokenError, HttpClient
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.limit_check import BUCKET_PATIENCE
from aiaas.loadtest.prompts import PATHS
from aiaas.smoke.judge import error_of
from aiaas.smoke.result import Seen

ATTEMPTS: Final = 3  # of a request that the key's own limit refuses
WORTH_SAYING: Final = 1.0  # seconds; report longer waits
LONGEST_REST: Final = 180.0  # seconds; the plan's burst of 20 at 10 a minute is whole again after 120
# Limits that a short wait lifts; a day's quota is not among them.
PASSING: Final = ("rate_limit_exceeded", "tokens_limit_exceeded", "concurrency_limit_exceeded")
# The gateway's code where no endpoint of the model can be reached.
NO_ENGINE: Final = "no_healthy_backend"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SmokeSettings:
    """The gateway to test, and what the config or the caller tells about it.

    tls        verifies a certificate in full, whatever `target` accepts; None for plain HTTP
    key        None where the user gave none
    model      None takes the first that the server lists
    http_port  the port for plain HTTP; None where unknown
    big_body   bytes of a body that the gateway must refuse; None where unknown
    has_auth, has_limit   whether the config asks for keys, and limits requests; without a config has_limit is None
    metrics, engine, direct   the gateway's metrics port, an engine's own, and an engine to compare with
    timeout    seconds for one answer
    patience   seconds in which the metrics must show an event; vLLM stops within 0.1 s, a gateway counts at once
    most_requests  that the rate-limit check may send
    """

    target: HttpTarget
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    model: str | None = None
    endpoint: str = "chat"
    http_port: int | None = None
    big_body: int | None = None
    has_auth: bool = True
    has_limit: bool | None = None
    metrics: HttpTarget | None = None
    engine: HttpTarget | None = None
    direct: HttpTarget | None = None
    direct_model: str | None = None
    direct_key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    patience: float = 5.0
    most_requests: int = 200


class Capture(PlainAnswer):
    """An answer with its unchanged body and the arrival times of its parts."""

    __slots__ = ("arrivals",)

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[float] = []

    def body(self, data: bytes, now: float) -> None:
        """A part of the body, received at `now`."""
        self.arrivals.append(now)
        super().body(data, now)


class Asker:
    """The connections of one smoke test, and what it learns during the test.

    model    to ask for; None until the list of models arrives
    refused  whether the server refused the key; checks that need it are then skipped
    no_engine  whether the gateway answered that it reaches no engine; checks that need an answer are then skipped
    rested   seconds spent waiting for the key's own limit; a check's duration does not include them
    """

    def __init__(self, settings: SmokeSettings, say: Say) -> None:
        self.settings = settings
        self.model = settings.model
        self.refused = False
        self.no_engine = False
        self.rested = 0.0
        self._say = say
        self._clients: dict[str, HttpClient] = {}

    @property
    def path(self) -> str:
        """The path of requests that generate."""
        return PATHS[self.settings.endpoint]

    async def get(self, path: str, key: str | None = None, target: HttpTarget | None = None) -> Seen:
        """One GET."""
        return await self.ask("GET", path, key, None, target)

    async def post(self, body: bytes, key: str | None, target: HttpTarget | None = None) -> Seen:
        """One request to the endpoint under test."""
        return await self.ask("POST", self.path, key, body, target)

    async def generate(self, **fields: object) -> Seen:
        """Send one request with the key and the model; wait and retry where the key's limit refuses it."""
        body = self.body(self.model, **fields)
        return (await self._patiently(body, Capture, None))[0]

    async def leave(self, after: int, **fields: object) -> tuple[Seen, bool]:
        """Ask for a stream and leave after `after` output events; True if it came to that. Waits as `generate` does."""
        body = self.body(self.model, stream=True, **fields)
        return await self._patiently(body, lambda: Answer(wants_stream=True), after)

    async def hang_up(self, seconds: float, **fields: object) -> tuple[Seen, bool]:
        """Ask without a stream and leave after `seconds`; True if no answer had begun by then. Waits as `generate`."""
        seen, _ = await self._patiently(self.body(self.model, **fields), Capture, None, seconds)
        return seen, seen.error == "timeout" and not seen.status

    async def _patiently(
        self, body: bytes, answer: Callable[[], Answer], leave: int | None, timeout: float | None = None
    ) -> tuple[Seen, bool]:
        for attempt in range(1, ATTEMPTS + 1):
            seen, left = await self._send("POST", self.path, self.settings.key, body, answer(), None, leave, timeout)
            wait = wait_told(seen)
            if wait is None or attempt == ATTEMPTS:
                break
            await self.rest(wait, "as the key's own limit asks")
        self.no_engine = self.no_engine or (seen.status == 503 and seen.code == NO_ENGINE)
        return seen, left

    async def rest(self, seconds: float, why: str) -> None:
        """Sleep up to LONGEST_REST seconds; report waits above WORTH_SAYING."""
        if seconds >= WORTH_SAYING:
            self._say(f"waiting {seconds:.0f} s {why}")
        began = time.perf_counter()
        await asyncio.sleep(min(seconds, LONGEST_REST))
        self.rested += time.perf_counter() - began

    async def ask(self, method: str, path: str, key: str | None, body: bytes | None, target: HttpTarget | None) -> Seen:
        """Send one request and return its result, failures included."""
        return (await self._send(method, path, key, body, Capture(), target, None))[0]

    async def _send(
        self,
        method: str,
        path: str,
        key: str | None,
        body: bytes | None,
        answer: Answer,
        to: HttpTarget | None,
        leave: int | None,
        timeout: float | None = None,
    ) -> tuple[Seen, bool]:
        target = to or self.settings.target
        client = self._clients.setdefault(target.url, HttpClient(target))
        length = "" if body is None else f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        request = target.head(method, path, key) + length.encode() + b"\r\n" + (body or b"")
        began = time.perf_counter()
        try:
            exchange = await client.send(request, answer, timeout or self.settings.timeout, leave)
        except BrokenError as error:
            return Seen(
                error=error.kind, detail=str(error), seconds=time.perf_counter() - began, connected=False
            ), False
        arrivals = tuple(now - exchange.sent for now in answer.arrivals) if isinstance(answer, Capture) else ()
        seen = Seen(
            answer.status,
            answer.headers,
            answer.content,
            answer.error,
            answer.code,
            answer.detail,
            arrivals,
            exchange.ended - exchange.sent,
        )
        return seen, exchange.left

    def body(self, model: str | None, **fields: object) -> bytes:
        """Encode a short question in the endpoint's form."""
        asked: dict[str, object] = {"model": model or "aiaas-smoke"}
        question = "Name three colours."
        if self.settings.endpoint == "chat":
            asked["messages"] = [{"role": "user", "content": question}]
        else:
            asked["prompt"] = question
        return msgspec.json.encode(asked | fields)

    def close(self) -> None:
        """Drop the connections."""
        for client in self._clients.values():
            client.close()


def wait_told(seen: Seen) -> float | None:
    """Seconds until the key's own limit would let a refused request in; None for other answers and longer waits."""
    error = error_of(seen)
    if seen.status != 429 or error is None or error[0].removeprefix("user_") not in PASSING:
        return None
    told = seen.headers.get("retry-after-ms", ""), seen.headers.get("retry-after", "")
    wait = int(told[0]) / 1000 if told[0].isdecimal() else float(told[1]) if told[1].isdecimal() else None
    return wait if wait is not None and wait <= BUCKET_PATIENCE else None
