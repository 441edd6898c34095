"""Two thousand wrong keys a second, while a valid key goes on: against a real `aiaas serve` with real hashes."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import yaml

from aiaas.keys.file import edit_key_file
from aiaas.keys.format import make_key
from aiaas.keys.hashing import hash_key
from tests.e2e.processes import ALIAS, Gateway, keys, running_gateway

RATE = 2000  # wrong keys a second
CONNECTIONS = 20
SECONDS = 2.0
PAUSE = 0.02  # seconds between two requests of the valid key
# A valid request may take this much longer in the worst of a hundred (seconds; or a multiple of the calm one's). It
# takes a few milliseconds more where nothing else runs; one slow hash on the event loop alone would be 20.
SLOWER_BY, SLOWER_TIMES = 0.1, 5.0

BODY = json.dumps({"model": ALIAS, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()


@pytest.fixture(scope="module")
def attacked(simulator_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a key that has a slow hash and no tag: each wrong key with its id is hashed."""
    folder = tmp_path_factory.mktemp("attacked")
    key = keys(folder, "create", "untagged")
    with edit_key_file(folder / "keys.yaml") as file:
        file.records = (replace(file.records[0], hash=hash_key(key)),)
    sections = {"server": {"trusted_proxies": ["127.0.0.0/8"]}}
    with running_gateway(folder, {"url": simulator_url}, sections=sections) as gateway:
        yield gateway


class Attack:
    """Keys that are wrong in every way, sent at RATE over CONNECTIONS; `answers` counts the statuses."""

    def __init__(self, gateway: Gateway, addresses: int) -> None:
        ids = [record["id"] for record in yaml.safe_load((gateway.folder / "keys.yaml").read_text())["keys"]]
        dice = random.Random(1)

        def wrong() -> str:
            kind = dice.randrange(4)
            if kind == 3:
                return "".join(dice.choices("abcXYZ0189-_", k=dice.randrange(1, 60)))
            key_id = "AAAAAAAA" if kind == 2 else ids[kind % len(ids)]
            return make_key("sk-", dice.randbytes, key_id).text

        self._requests = [
            request(wrong(), f"198.51.{number // 256 % 256}.{number % 256}")
            for number in (dice.randrange(addresses) for _ in range(4000))
        ]
        self._port = urlsplit(gateway.url).port
        self.answers: Counter[int] = Counter()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(self._connection(number))

    async def _connection(self, number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            due = time.monotonic()
            while True:
                writer.write(self._requests[number % len(self._requests)])
                number += CONNECTIONS
                self.answers[await status(reader)] += 1
                due += CONNECTIONS / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            writer.close()


def request(key: str, address: str) -> bytes:
    """A chat request, as from behind a proxy."""
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: gateway",
        f"Authorization: Bearer {key}",
        f"X-Forwarded-For: {address}",
        "Content-Type: application/json",
        f"Content-Length: {len(BODY)}",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + BODY


async def status(reader: asyncio.StreamReader) -> int:
    """Read one whole answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head.split(b" ")[1])


async def latencies(gateway: Gateway, seconds: float) -> list[float]:
    """Sorted seconds that the requests of a valid key took, one after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(gateway.url).port)
    took, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        writer.write(request(gateway.key, "203.0.113.1"))
        assert await status(reader) == 200
        took.append(time.monotonic() - began)
        await asyncio.sleep(PAUSE)
    writer.close()
    return sorted(took)


def p99(sorted_values: list[float]) -> float:
    """The 99th percentile."""
    return sorted_values[min(len(sorted_values) * 99 // 100, len(sorted_values) - 1)]


async def under_attack(gateway: Gateway, addresses: int) -> tuple[float, float, Attack]:
    """(calm p99, p99 under attack, the attack)."""
    await latencies(gateway, 0.2)  # the first request's key is hashed
    calm = p99(await latencies(gateway, 1.0))
    attack = Attack(gateway, addresses)
    task = asyncio.create_task(attack.run())
    loud = p99(await latencies(gateway, SECONDS))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print(f"calm {calm * 1000:.1f} ms, under attack {loud * 1000:.1f} ms, {dict(attack.answers)}")
    return calm, loud, attack


@pytest.mark.parametrize("addresses", [1, 500], ids=["from one address", "from 500 addresses"])
async def test_valid_keys_keep_their_latency_while_wrong_ones_flood_in(attacked: Gateway, addresses: int) -> None:
    """Only wrong keys are refused; from one address hardly any of them is hashed at all."""
    for _attempt in range(3):  # a machine that stood still while it was measured is measured again
        calm, loud, attack = await under_attack(attacked, addresses)
        if loud <= max(calm * SLOWER_TIMES, calm + SLOWER_BY):
            break
    assert loud <= max(calm * SLOWER_TIMES, calm + SLOWER_BY)
    assert set(attack.answers) <= {401, 429, 503}
    assert (
        attack.answers.total() > RATE * SECONDS * 0.01
    )  # a client that waits for a hash sends nothing; less than this is not a flood
    if addresses == 1 and attack.answers.total() > RATE * SECONDS * 0.1:  # else this machine sends no flood
        assert attack.answers[429] > attack.answers.total() / 8
        assert attack.answers[503] < attack.answers.total() / 8  # before the first ten are known to be wrong
