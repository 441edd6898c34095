"""The limit check on the wire: offer more than the key's limit lets through, then wait as told and come again.

first answer: what is the limit, is the bucket full? (else wait until it is) -> offers, one after the other, for as long
as it takes to see the rate and not only the burst -> wait as the last 429 told -> one more
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

REFILLS: Final = 5  # requests that the rate alone should let in while it is watched
SHORTEST_WATCH: Final = 2.0  # seconds of watching
REQUESTS_AT_ONCE: Final = 32  # requests under way; a key's limit on those is another
ANSWER_TIMEOUT: Final = 60.0  # seconds for one short answer
ASKING: Final = Asking(stream=False, prompt_tokens=(2, 2), output_tokens=(1, 1))


async def check_limits(target: HttpTarget, key: str | None, model: str | None, endpoint: str) -> tuple[LimitCheck, ...]:
    """Hold the request limit of `key` against what it says of itself.

    Raises:
        CheckFailed: the key is refused or has no such limit, or another one came first.
        EnvironmentFault: nothing answers, or not as a gateway does.
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
    """The short form: the burst and EXCESS more at once, until one is refused; then wait as told and come again.

    While slow answers let the bucket refill, and only then, more are offered, up to `most` requests in all.

    Raises:
        CheckFailed: as `check_limits`, or it takes more than `most`.
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
                f"this key may send {burst} requests at once, so to see a 429 takes {burst + EXCESS}, and this check "
                f"sends at most {most}{more}"
            )
        offers = [first, *await offering.together(burst - 1 + EXCESS, 0)]
        at_once = len(offers)
        while all(offer.admitted for offer in offers) and len(offers) <= most_admitted(offers):
            if len(offers) + EXCESS > most:
                raise CheckFailed(
                    f"the answers are too slow for this key's {first.told.per_minute} requests a minute: the limit was "
                    f"not reached by {len(offers)} requests"
                )
            offers += await offering.together(EXCESS, 0)
        return judge_offers(offers, at_once, await offering.as_told(offers[-1]))
    finally:
        client.close()


class _Offering:
    """Single short requests of one key."""

    def __init__(self, client: HttpClient, key: str | None, model: str, endpoint: str) -> None:
        self._client = client
        self._head = client.target.head("POST", PATHS[endpoint], key)
        self._asking = Asking(endpoint, ASKING.stream, ASKING.prompt_tokens, ASKING.output_tokens)
        self._model = model
        self._draw = random.Random(0).random
        self._number = 0
        self._at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def with_full_bucket(self) -> OfferedRequest:
        """The first offer, before which the key had rested."""
        for _ in range(3):
            first = await self.one()
            if first.admitted and is_full(first.told):
                return first
            rest = first.told.reset_after + 0.05
            if rest > BUCKET_PATIENCE:
                break
            await asyncio.sleep(rest)
        raise CheckFailed("the key's limit is never whole: somebody else uses it; take a key that nobody uses")

    async def as_told(self, last: OfferedRequest) -> OfferedRequest | None:
        """One more after the wait that a 429 tells; None where nothing was refused."""
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
        """So many offers, one every `gap` seconds whatever the answers do, in order."""
        tasks = [asyncio.create_task(self.one(gap * (place + 1)), name="limit-check") for place in range(number)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def one(self, after: float = 0.0) -> OfferedRequest:
        """One request, so many seconds from now."""
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
            raise EnvironmentFault(f"{url}: a request of the check failed ({answer.error}): {answer.detail}")
        if told is None:
            raise CheckFailed(
                f"{url}: this key has no limit of requests (no x-ratelimit-limit-requests), so none is checked"
            )
        if answer.error and answer.code not in ("rate_limit_exceeded", ""):
            raise CheckFailed(f"{url}: another limit came first ({answer.code}): {answer.detail}")
        return told
