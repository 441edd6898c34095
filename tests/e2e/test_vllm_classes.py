"""Classes in a real vLLM with priority scheduling: an interactive request does not wait behind a crowd of batch."""

from __future__ import annotations

import json
import random
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import StartGateway
from tests.e2e.processes import MODEL, keys, running_vllm
from tests.e2e.vllm.setup import Installation
from tests.e2e.wire_cases import the_lowest_priority_goes_first
from tests.e2e.wire_client import target_of

pytestmark = pytest.mark.vllm

SEATS, CROWD = 4, 30


@pytest.fixture(scope="module")
def priority_url(vllm_installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It runs four requests at once, and orders the others by their priority."""
    log = tmp_path_factory.mktemp("priority") / "log"
    options = ("--scheduling-policy", "priority", "--max-num-seqs", str(SEATS))
    with running_vllm(log, vllm_installation.model, vllm_installation.vllm, *options) as url:
        yield url


def time_to_first_token(url: str, key: str, tokens: int) -> float:
    """Seconds from the request to the first event of its stream, which is read to its end."""
    body = {"model": MODEL, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=200) as answer:
        assert answer.readline().startswith(b"data: ")
        first = time.monotonic() - began
        answer.read()
    return first


def test_lowest_priority_goes_first(priority_url: str) -> None:
    """The simulator does the same (test_wire_simulator.py)."""
    the_lowest_priority_goes_first(target_of(priority_url, max_num_seqs=SEATS))


@pytest.mark.timeout(280)
def test_interactive_requests_pass_a_crowd_of_batch(priority_url: str, start_gateway: StartGateway) -> None:
    """Thirty batch requests are in flight on four seats, all of them in vLLM: its own queue has to know the class."""
    backend = {"url": priority_url, "scheduling": "priority", "max_inflight": None, "timeout": "200s"}
    with start_gateway(backend) as gateway:
        batch = keys(gateway.folder, "create", "batch", "--class", "batch")
        interactive = keys(gateway.folder, "create", "interactive", "--class", "interactive")
        waits: list[float] = []
        done = threading.Event()

        def keep_asking(number: int) -> None:
            lengths = random.Random(number)  # of different lengths, so that the seats do not all come free at once
            time_to_first_token(gateway.url, batch, lengths.randint(20, 60))  # the queue was not full yet
            while not done.is_set():
                waits.append(time_to_first_token(gateway.url, batch, lengths.randint(20, 60)))

        time.sleep(3)  # the gateway reads new keys every two seconds
        crowd = [threading.Thread(target=keep_asking, args=(number,)) for number in range(CROWD)]
        for thread in crowd:
            thread.start()
        quick: list[float] = []
        while len(waits) < CROWD:
            time.sleep(0.5)
            quick.append(time_to_first_token(gateway.url, interactive, 4))
        done.set()
        for thread in crowd:
            thread.join()
    assert statistics.median(quick) <= 0.25 * statistics.median(waits)
