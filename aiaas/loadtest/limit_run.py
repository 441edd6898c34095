"""Run the limit check: send more requests than the key's limit allows, then wait for the Retry-After and send another.

read the limit from the first answer, and wait until the bucket is full -> send the burst and EXCESS more at once, then
twice the rate, long enough to see the rate and not only the burst -> wait for the Retry-After -> send one more request
"""

from __future__ import annotations

import asyncio
import random
import time
from math import ceil
from typing import Final

from aiaas.errors import CheckFailed, EnvironmentFault
from aiaas.httpclient.answer import RATE_LIMITED, Answer
from aiaas.httpclient.client import BrokenError, HttpClient
from aiaas.httpclient.target import HttpTarget
from aiaas.loadtest.limit_check import (
    BUCKET_PATIENCE,
    EXCESS,
    MOST_REQUESTS,
    LimitCheck,
    OfferedRequest,
    ToldLimit,
    is_full,
    judge_offers,
    most_admitted,
    offers_needed,
    told_of,
)
from aiaas.loadtest.probe import choose_model, models_of
from aiaas.loadtest.prompts import PATHS, Asking, next_body

REFILLS: Final = 5  # requests that the rate alone should admit during the check
SHORTEST_WATCH: Final = 2.0  # seconds that the check sends offers, at least
REQUESTS_AT_ONCE: Final = 32  # requests in flight, since a key also has a limit on concurrent requests
ANSWER_TIMEOUT: Final = 60.0  # seconds for one short answer
ASKING: Final = Asking(stream=False, prompt_tokens=(2, 2), output_tokens=(1, 1))


async def check_limits(target: HttpTarget, key: str | None, model: str | None, endpoint: str) -> tuple[LimitCheck, ...]:
    """Check that the limiter enforces the request limit that it reports for `key`.

    Raises:
        CheckFailed: the key is refused or does not have a request limit, or another limit refused a request first.
        EnvironmentFault: the server is unreachable, or does not answer like a gateway.
    """
    client = HttpClient(target)
    try:
        chosen = choose_model(target.url, model, await models_of(client, key))
        offering = _Offering(client, key, chosen, endpoint)
        first = await offering.with_full_bucket()
        interval, burst = 60 / first.told.per_minute, first.told.remaining + 1
        seconds = max(REFILLS * interval, SHORTEST_WATCH)
        offers_needed(first.told.per_minute, burst, seconds)
        offers = [first, *await offering.together(burst - 1 + EXCESS, 0)]
        at_once = len(offers)
        offers += await offering.together(ceil(2 * seconds / interval), interval / 2)
        return judge_offers(offers, at_once, await offering.as_told(offers[-1]))
    finally:
        client.close()


async def check_burst(
    target: HttpTarget, key: str | None, model: str | None, endpoint: str, most: int
) -> tuple[LimitCheck, ...]:
    """Run the short check: send the burst and EXCESS more at once, then wait for the Retry-After and send another.

    Only if slow answers let the bucket refill before a 429, send more offers, up to `most` requests in total.

    Raises:
        CheckFailed: as `check_limits`, or the check needs more than `most` requests.
        EnvironmentFault: as `check_limits`.
    """
    client = HttpClient(target)
    try:
        chosen = model or choose_model(target.url, model, await models_of(client, key))
        offering = _Offering(client, key, chosen, endpoint)
        first = await offering.with_full_bucket()
        burst = first.told.remaining + 1
        if burst + EXCESS > most:
            more = f" (--yes: up to {MOST_REQUESTS})" if most < MOST_REQUESTS else ""
            raise CheckFailed(
                f"this key may send {burst} requests at once, so a 429 takes {burst + EXCESS}, but this check "
                f"sends at most {most}{more}"
            )
        offers = [first, *await offering.together(burst - 1 + EXCESS, 0)]
        at_once = len(offers)
        while all(offer.admitted for offer in offers) and len(offers) <= most_admitted(offers):
            if len(offers) + EXCESS > most:
                raise CheckFailed(
                    f"the answers are too slow for this key's {first.told.per_minute} requests a minute: "
                    f"{len(offers)} requests did not reach the limit"
                )
            offers += await offering.together(EXCESS, 0)
        return judge_offers(offers, at_once, await offering.as_told(offers[-1]))
    finally:
        client.close()


class _Offering:
    """Sends short single requests with one key."""

    def __init__(self, client: HttpClient, key: str | None, model: str, endpoint: str) -> None:
        self._client = client
        self._head = client.target.head("POST", PATHS[endpoint], key)
        self._asking = Asking(endpoint, ASKING.stream, ASKING.prompt_tokens, ASKING.output_tokens)
        self._model = model
        self._draw = random.Random(0).random
        self._number = 0
        self._at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def with_full_bucket(self) -> OfferedRequest:
        """Send requests until one finds a full bucket, and return that offer."""
        for _ in range(3):
            first = await self.one()
            if first.admitted and is_full(first.told):
                return first
            rest = first.told.reset_after + 0.05
            if rest > BUCKET_PATIENCE:
                break
            await asyncio.sleep(rest)
        raise CheckFailed("the key's limit does not refill: another client uses the key; take an unused one")

    async def as_told(self, last: OfferedRequest) -> OfferedRequest | None:
        """Send one more request after the Retry-After of a 429; return None if every request was admitted."""
        while last.admitted:
            if last.told.remaining:
                return None
            last = await self.one()
        wait = last.told.retry_after
        if wait is None or wait > BUCKET_PATIENCE:
            return None
        await asyncio.sleep(last.ended + wait - time.perf_counter())
        return await self.one()

    async def together(self, number: int, gap: float) -> list[OfferedRequest]:
        """Send `number` offers, one every `gap` seconds without waiting for answers; return them in order."""
        tasks = [asyncio.create_task(self.one(gap * (place + 1)), name="limit-check") for place in range(number)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def one(self, after: float = 0.0) -> OfferedRequest:
        """Send one request in `after` seconds."""
        await asyncio.sleep(after)
        async with self._at_once:
            return await self._one()

    async def _one(self) -> OfferedRequest:
        body = next_body(self._asking, self._model, self._number, self._number, self._draw, self._draw)
        self._number += 1
        head = self._head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        answer = Answer(wants_stream=False)
        sent = time.perf_counter()
        try:
            await self._client.send(head + body, answer, ANSWER_TIMEOUT)
        except BrokenError as error:
            raise EnvironmentFault(f"{self._client.target.url}: {error}") from error
        return OfferedRequest(sent, time.perf_counter(), not answer.error, self._told(answer))

    def _told(self, answer: Answer) -> ToldLimit:
        url = self._client.target.url
        told = told_of(answer.headers)
        if answer.error not in ("", RATE_LIMITED):
            raise EnvironmentFault(f"{url}: one of the check's requests failed ({answer.error}): {answer.detail}")
        if told is None:
            raise CheckFailed(
                f"{url}: this key has no request limit (no x-ratelimit-limit-requests), so there is nothing to check"
            )
        if answer.error and answer.code not in ("rate_limit_exceeded", ""):
            raise CheckFailed(f"{url}: another limit refused a request first ({answer.code}): {answer.detail}")
        return told
