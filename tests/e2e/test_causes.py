"""At 3 a.m.: one command leads from a gateway that misbehaves to the cause, and says what to do.

Faults that are there before the gateway starts are `aiaas doctor`'s (`tests/cli/test_doctor.py`). Here a gateway runs,
everything in it is broken at once, and the operator asks `aiaas status` and `aiaas explain ID`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from openai import APIStatusError, OpenAI, RateLimitError

from tests.e2e.processes import MODEL, Gateway, eventually, keys, running_gateway, running_simulator
from tests.ports import free_port

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one good backend, and every fault that a running one can have."""
    folder = tmp_path_factory.mktemp("broken")
    with running_simulator(folder / "simulator.log") as simulator:
        away = f"http://127.0.0.1:{free_port()}"
        engine = {"kind": "simulator", "port": free_port(), "args": {"max-model-len": "many"}}
        sections = {
            "backends": {
                "vllm": {"url": simulator, "models": [MODEL]},
                "dead": {"url": away, "models": ["dead"]},
                "renamed": {"url": simulator, "models": ["no-such-model"]},
                "looping": {"engine": engine, "models": ["looping"]},
            },
            "rate_limit": {"store": f"redis://127.0.0.1:{free_port()}"},
        }
        with running_gateway(folder, {"url": simulator}, sections=sections) as gateway:
            config = folder / "aiaas.yaml"
            config.write_text(config.read_text() + "\nno_such_section: {}\n")
            yield gateway


def aiaas(gateway: Gateway, *arguments: str) -> tuple[int, str]:
    """The exit code and the output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "aiaas", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def admin_url(gateway: Gateway) -> str:
    """The URL of its admin endpoint."""
    written = yaml.safe_load((gateway.folder / "aiaas.yaml").read_text())
    return f"http://127.0.0.1:{written['monitoring']['admin_port']}"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("(dead) is down: ", id="backend dead"),
        pytest.param("no-such-model", id="model renamed"),
        pytest.param("max-model-len", id="engine crash loop"),
        pytest.param("The store of the limits", id="store away"),
        pytest.param("no_such_section", id="config refused"),
    ],
)
def test_status_names_each_fault(broken: Gateway, said: str) -> None:
    """Also all of them at once; the exit code is 1."""

    def found() -> bool:
        code, shown = aiaas(broken, "status", admin_url(broken))
        return code == 1 and said in shown

    eventually(found, 60)


def test_a_broken_key_file_is_named_by_status(broken: Gateway) -> None:
    """The keys before it stay in force, which is said, too."""
    file = broken.folder / "keys.yaml"
    whole = file.read_text()
    file.write_text(whole + "  - {\n")
    try:
        eventually(lambda: "keys.yaml" in aiaas(broken, "status", admin_url(broken))[1], 60)
    finally:
        file.write_text(whole)


def test_explain_leads_a_refused_request_to_its_limit(broken: Gateway) -> None:
    """By the id that its client got."""
    key = keys(broken.folder, "create", "narrow", "--rpm", "1", "--burst", "1")
    client = OpenAI(base_url=broken.url + "/v1", api_key=key, max_retries=0)
    eventually(lambda: _asks(client), 30)
    with pytest.raises(RateLimitError) as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)  # type: ignore[arg-type]
    code, shown = aiaas(broken, "explain", str(refused.value.request_id), "--url", admin_url(broken))
    assert code == 0
    assert "narrow" in shown
    assert "rate_limit_exceeded" in shown
    assert "requests" in shown


def test_explain_leads_a_refused_key_to_its_end(broken: Gateway) -> None:
    """The client reads only that the key is not valid; the operator reads why."""
    key = keys(broken.folder, "create", "gone", "--expires", "1s")
    client = OpenAI(base_url=broken.url + "/v1", api_key=key, max_retries=0)
    refused: list[APIStatusError] = []

    def is_expired() -> bool:
        try:
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)  # type: ignore[arg-type]
        except APIStatusError as error:
            refused.append(error)
            return "expired" in aiaas(broken, "explain", str(error.request_id), "--url", admin_url(broken))[1]
        return False

    eventually(is_expired, 30)
    assert refused[-1].status_code == 401


def _asks(client: OpenAI) -> bool:
    """Whether a request is answered: the gateway may not have read the new key yet."""
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)  # type: ignore[arg-type]
    except RateLimitError:
        raise
    except APIStatusError:
        return False
    return True
