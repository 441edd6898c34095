"""No stream dies: streams go on at the second of two real vLLM (`nox -s resume`; some minutes, two vLLM at a time).

The tiny model repeats itself; with a high repetition penalty it babbles, differently for each prompt, the same each
time. Its text often tokenizes back to other tokens than were sampled, and has bytes that are not UTF-8, unlike a real
model's.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.e2e.cutting import Cutter, Recorder, listening
from tests.e2e.processes import (
    MODEL,
    START_WITHIN,
    VLLM_ENVIRONMENT,
    VLLM_OPTIONS,
    running,
    running_gateway,
    status_of,
    wait_for,
)
from tests.e2e.vllm.setup import Installation
from tests.ports import free_port

pytestmark = [pytest.mark.resume, pytest.mark.timeout(1500)]

STREAMS = 50
TOKENS = 500
OPTIONS = ("--max-num-seqs", "64")
BACKEND = {"resume": "near", "timeout": "300s", "max_inflight": None, "balance": "least_inflight"}
WORDS = ("alpha", "beta", "file", "return", "import", "the", "of", "日本", "😀", "naïve")


@dataclass
class Replica:
    """A real vLLM: its address, and its processes."""

    url: str
    process: psutil.Process

    def tree(self) -> list[psutil.Process]:
        """Its API server and its engine, the children first."""
        server = next(each for each in self.process.children(recursive=True) if "serve" in each.cmdline())
        return [*reversed(server.children(recursive=True)), server]

    def core(self) -> list[psutil.Process]:
        """The engine's own processes."""
        return [each for each in self.tree() if each.name().startswith("VLLM::")]


@contextmanager
def replica(log: Path, installation: Installation) -> Iterator[Callable[[], Replica]]:
    """A vLLM that is starting; call the result to wait until it is healthy."""
    port = free_port()
    command = ["nice", "-n", "10", str(installation.vllm), "serve", str(installation.model), "--served-model-name",
               MODEL, "--host", "127.0.0.1", "--port", str(port), *VLLM_OPTIONS, *OPTIONS]  # fmt: skip
    with running(command, log, os.environ | VLLM_ENVIRONMENT) as process:
        url = f"http://127.0.0.1:{port}"

        def healthy() -> Replica:
            wait_for(lambda: status_of(url + "/health") == 200, START_WITHIN, process, log)
            return Replica(url, psutil.Process(process.pid))

        yield healthy


@pytest.fixture(scope="module")
def survivor(vllm_installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """The replica that nobody kills."""
    with replica(tmp_path_factory.mktemp("survivor") / "log", vllm_installation) as healthy:
        yield healthy()


@dataclass
class Answer:
    """The answer that one client got: its events, and when they came."""

    status: int = 0
    request_id: str = ""
    events: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    broke: str = ""

    @property
    def data(self) -> list[dict[str, Any]]:
        """The events that are JSON."""
        return [json.loads(event[6:]) for event in self.events if event.startswith(b"data: {")]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(c["delta"].get("content") or "" for data in self.data for c in data.get("choices", ()))

    @property
    def fault(self) -> str:
        """The sign of the death that a client would see; empty if nothing."""
        if self.status != 200 or self.broke:
            return f"status {self.status} {self.broke}"
        if errors := [data["error"] for data in self.data if "error" in data]:
            return f"error event {errors[0]['message']}"
        told = self.data
        choices = [choice for data in told for choice in data["choices"]]
        usages = [data["usage"] for data in told if data.get("usage")]
        once = {
            "ids": len({data["id"] for data in told}),
            "created": len({data["created"] for data in told}),
            "roles": sum(choice["delta"].get("role") is not None for choice in choices),
            "ends": sum(choice["finish_reason"] is not None for choice in choices),
            "usages": len(usages),
            "done": self.events.count(b"data: [DONE]"),
        }
        if wrong := {name: number for name, number in once.items() if number != 1}:
            return f"not once: {wrong}"
        return "" if usages[0]["completion_tokens"] == TOKENS else f"usage {usages[0]}"

    @property
    def longest_gap(self) -> float:
        """Seconds between two events."""
        return max(b - a for a, b in zip(self.times, self.times[1:], strict=False))


def request(number: int, **fields: Any) -> dict[str, Any]:
    """A request whose greedy answer is its own."""
    dice = random.Random(number)
    content = " ".join(dice.choice(WORDS) for _ in range(30))
    asked = {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": True, "temperature": 0}
    bounds = {"max_tokens": TOKENS, "ignore_eos": True, "repetition_penalty": 5}
    return asked | bounds | {"stream_options": {"include_usage": True}} | fields


async def ask(session: aiohttp.ClientSession, url: str, key: str, body: dict[str, Any]) -> Answer:
    """One stream, read to its end."""
    answer = Answer()
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with session.post(url + "/v1/chat/completions", json=body, headers=headers) as response:
            answer.status, answer.request_id = response.status, response.headers.get("x-request-id", "")
            async for line in response.content:
                if line.startswith(b"data: "):
                    answer.events.append(line.strip())
                    answer.times.append(time.monotonic())
    except aiohttp.ClientError as error:
        answer.broke = repr(error)
    return answer


async def ask_all(url: str, key: str, numbers: range, hurt: Callable[[], None] | None, after: float) -> list[Answer]:
    """Many streams at once; `hurt` is called `after` seconds, in a thread."""
    timeout = aiohttp.ClientTimeout(total=400)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        asked = [asyncio.create_task(ask(session, url, key, request(number))) for number in numbers]
        if hurt is not None:
            await asyncio.sleep(after)
            await asyncio.to_thread(hurt)
        return list(await asyncio.gather(*asked))


def kill_core(hurt: Replica) -> None:
    """kill -9 of the engine."""
    for each in hurt.core():
        each.kill()


def kill_server(hurt: Replica) -> None:
    """kill -9 of everything, the API server first."""
    for each in reversed(hurt.tree()):
        each.kill()


def terminate(hurt: Replica) -> None:
    """SIGTERM, as a rollout does."""
    hurt.tree()[-1].terminate()


def stop(hurt: Replica) -> None:
    """A hang: the health check goes on."""
    for each in hurt.core():
        each.send_signal(signal.SIGSTOP)


HEALTH = {stop: {"interval": "1s", "silent_after": "5s"}}


@pytest.mark.parametrize("hurt", [kill_core, kill_server, terminate, stop])
def test_no_stream_dies_with_its_replica(
    hurt: Callable[[Replica], None], survivor: Replica, vllm_installation: Installation, tmp_path: Path
) -> None:
    """No client sees an error but those that the rules name, each answer is one, and the ledger is the sum of usage."""
    with ExitStack() as stack:
        victim = stack.enter_context(replica(tmp_path / "log", vllm_installation))()
        fields = BACKEND | {"urls": [victim.url, survivor.url], "health": HEALTH.get(hurt, {"interval": "1s"})}
        gateway = stack.enter_context(running_gateway(tmp_path, fields))
        numbers, cores = range(STREAMS), victim.core()
        began = time.monotonic()
        calm = asyncio.run(ask_all(gateway.url, gateway.key, numbers, None, 0))
        took = time.monotonic() - began
        assert Counter(answer.fault for answer in calm) == {"": STREAMS}
        answers = asyncio.run(ask_all(gateway.url, gateway.key, numbers, lambda: hurt(victim), 0.4 * took))
        time.sleep(1)
        for each in cores:
            if each.is_running():
                each.send_signal(signal.SIGCONT)
        lines = gateway.requests()[STREAMS:]
        tokens = gateway.metric("tokens_processed_total", type="output")
    faults = Counter(answer.fault for answer in answers)
    outcomes = Counter(line.get("resume_outcome", "whole") for line in lines)
    reasons = Counter(line["resume_reason"] for line in lines if "resume_reason" in line)
    equal = sum(a.text == b.text for a, b in zip(calm, answers, strict=True))
    gaps = sorted(line["resume_gap_seconds"] for line in lines if "resume_gap_seconds" in line)
    print(f"\n{hurt.__name__}: {dict(outcomes)}, {dict(reasons)}, clients {dict(faults)}, equal {equal}")
    print(f"calm {took:.1f} s, gaps p50 {gaps[len(gaps) // 2] if gaps else 0:.2f}, longest {max(gaps, default=0):.2f}")
    early = sum("8 events" in reason for reason in reasons.elements())
    assert outcomes["resumed"] > 5
    assert sum(number for fault, number in faults.items() if fault) == early
    used = sum(answer.data[-1]["usage"]["completion_tokens"] for answer in (*calm, *answers) if not answer.fault)
    assert tokens == used if not early else tokens >= used


# -- cuts anywhere -------------------------------------------------------------------------------------------------

CUTS = 300
CUT_TOKENS = 80
STOPS = ["</", "zzz", "import os"]


async def uncut(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[str, list[tuple[str, list[int]]]]:
    """The whole answer's text, and behind each event the text and the ids of the prompt and of the text."""
    answer = await ask(session, url, "none", body | {"return_token_ids": True})
    assert not answer.broke
    ids: list[int] = []
    told: list[tuple[str, list[int]]] = []
    text = ""
    for data in answer.data:
        if prompt := data.get("prompt_token_ids"):
            ids = list(prompt)
        for choice in data["choices"]:
            text += choice["delta"].get("content") or ""
            ids = ids + (choice.get("token_ids") or [])
            told.append((text, ids))
    return text, told


async def tokens_of(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> list[int]:
    """The prompt of a continuation, as the engine reads it."""
    asked = {name: body[name] for name in ("model", "messages", "continue_final_message", "add_generation_prompt")}
    async with session.post(url + "/tokenize", json=asked) as response:
        return list((await response.json())["tokens"])


async def cut_and_compare(url: str, folder: Path) -> Counter[str]:
    """How many answers were cut, were the uncut ones, and why the others were not."""
    counted: Counter[str] = Counter()
    cutter, recorder = Cutter(url, 7, 10, 40), Recorder(url)
    gate = asyncio.Semaphore(8)
    async with listening(cutter) as cutting, listening(recorder) as recording:
        fields = BACKEND | {
            "urls": [cutting, recording],
            "balance": "round_robin",
            "health": {"unhealthy_after": 10_000, "silent_after": "0s"},
        }
        gateway = await asyncio.to_thread((starting := ExitStack()).enter_context, running_gateway(folder, fields))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(number: int) -> None:
                stops = {"stop": STOPS} if number % 15 == 0 else {}
                body = request(number, max_tokens=CUT_TOKENS, **stops)
                async with gate:
                    text, told = await uncut(session, url, body)
                    answer = await ask(session, gateway.url, gateway.key, body)
                asked = recorder.asked.get(answer.request_id, {})
                counted["all"] += 1
                if "continue_final_message" not in asked:
                    counted["not cut" if answer.text == text else f"not resumed, {answer.fault[:50]}"] += 1
                    return
                kept = asked["messages"][-1]["content"]
                sampled = [ids for told_text, ids in told if told_text == kept]
                same = await tokens_of(session, url, asked) in sampled
                if any("error" in data for data in answer.data):
                    counted["error event" if text.startswith(answer.text) else "wrong, then an error event"] += 1
                elif answer.text == text:
                    counted["equal"] += 1
                    wrong = answer.fault if "usage" not in answer.fault else ""
                    counted[f"not one answer: {wrong}"] += bool(wrong)
                else:
                    counted["differs although the ids are the same" if same else "differs, other ids"] += 1

            try:
                await asyncio.gather(*(one(number) for number in range(2 * CUTS)))
            finally:
                await asyncio.to_thread(starting.close)
    return +counted


def test_answer_cut_anywhere_is_the_uncut_one(survivor: Replica, tmp_path: Path) -> None:
    """Wherever the text tokenizes back; each other answer is another one or ends, and the ids differ."""
    counted = asyncio.run(cut_and_compare(survivor.url, tmp_path))
    print(f"\n{dict(counted)}")
    assert counted["equal"] > 20
    assert not [name for name in counted if name.startswith(("not one", "wrong", "differs although"))]
