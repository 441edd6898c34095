"""Run the image's content as its pod would run it: no rights, a read-only root, 512 MiB.

No container engine is needed, and none is there in CI: the steps of the Dockerfile are done in a virtual environment,
and a mount namespace, chroot and a cgroup stand for the container (container.sh). Needs root on Linux: `nox -s image`.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.cgroup import Memory
from tests.e2e.processes import MODEL, running_simulator
from tests.image.conftest import ROOT
from tests.ports import free_port

pytestmark = pytest.mark.image

DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFESTS = ROOT / "manifests" / "minimal"
BODY_SIZE = 10 * 1024**2 - 1024


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile follows its rules, without exceptions."""
    hadolint = shutil.which("hadolint")
    assert hadolint is not None, "hadolint is missing; `nox -s image` installs it"
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (0, "")


def test_image_and_manifests_agree() -> None:
    """User, ports, command and the config's path are the same on either side."""
    [container] = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    user = pod["securityContext"]
    assert f"\nUSER {user['runAsUser']}:{user['runAsGroup']}\n" in DOCKERFILE
    assert "\nEXPOSE " + " ".join(str(port["containerPort"]) for port in container["ports"]) + "\n" in DOCKERFILE
    entry = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])
    arguments = json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    assert (container["command"], container["args"]) == (entry, arguments)


def test_the_lock_holds_what_the_project_asks_for(installed: Path) -> None:
    """`pip check` in the environment made of the lock alone: everything is there, in a version that is allowed."""
    check = [sys.executable, "-m", "pip", "--python", f"{installed}/bin/python", "check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_image_serves_unprivileged_read_only_within_512_mib(installed: Path, memory: Memory, tmp_path: Path) -> None:
    """Keys are checked, streams and eight of the largest bodies at once go through; SIGTERM ends it with 0."""
    with (
        running_simulator(tmp_path / "engine.log") as engine,
        pod(installed, memory, tmp_path, engine) as (url, keys, process),
    ):
        asyncio.run(exercise(url, keys))
        written = process_root_is_read_only(memory)
        process.terminate()
        assert process.wait(30) == 0, (tmp_path / "stderr.log").read_text()
    assert written == "ro"
    assert 20 * 1024**2 < memory.peak < 512 * 1024**2


def manifest(kind: str) -> dict:  # type: ignore[type-arg]
    """The one object of this kind in the minimal example's rendering."""
    documents = (yaml.safe_load(path.read_text()) for path in MANIFESTS.glob("*.yaml"))
    return next(document for document in documents if document["kind"] == kind)


@contextmanager
def pod(
    installed: Path, memory: Memory, folder: Path, backend: str
) -> Iterator[tuple[str, list[str], subprocess.Popen[bytes]]]:
    """The gateway as the minimal example deploys it, on ports of its own: its URL, two keys for it, the process."""
    config, keys, root = folder / "config", folder / "keys", folder / "root"
    for path in (config, keys, root):
        path.mkdir()
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o755)
    port = free_port()
    text = yaml.safe_load(manifest("ConfigMap")["data"]["config.yaml"])
    text["backends"]["vllm"] |= {"url": backend, "models": [MODEL]}
    text["server"] = {"host": "127.0.0.1", "port": port}
    text["monitoring"] = {"metrics_port": free_port(), "admin_port": 0}
    (config / "config.yaml").write_text(json.dumps(text))
    made = [new_key(installed, keys / "keys.yaml", name) for name in ("one", "two")]
    (keys / "keys.yaml").chmod(0o440)
    shutil.chown(keys / "keys.yaml", group=10001)  # as fsGroup does
    script = str(Path(__file__).with_name("container.sh"))
    arguments = [str(root), str(memory.folder), sys.base_prefix, str(installed), str(config), str(keys)]
    command = json.loads(re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    with (folder / "stderr.log").open("wb") as errors, (folder / "stdout.log").open("wb") as lines:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", script, *arguments, f"{installed}/bin/aiaas", *command],
            stdout=lines, stderr=errors,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}", made, process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(10)


def new_key(installed: Path, file: Path, name: str) -> str:
    """A key without a limit that matters here."""
    create = [f"{installed}/bin/aiaas", "keys", "create", name, "--rpm", "100000", "--keys-file", str(file)]
    return subprocess.run(create, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


async def exercise(url: str, keys: list[str]) -> None:
    """Everything that a pod meets: probes, no key, a stream, and the largest bodies at once: four of each key, as one
    key alone gets half of their budget."""
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {keys[0]}"}) as client:
        await ready(client)
        async with aiohttp.ClientSession(url) as stranger, stranger.post("/v1/chat/completions", json={}) as answer:
            assert answer.status == 401
        message = {"role": "user", "content": "hello"}
        stream = {"model": MODEL, "stream": True, "max_tokens": 20, "messages": [message]}
        async with client.post("/v1/chat/completions", json=stream) as answer:
            assert answer.status == 200
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        large = json.dumps({"model": MODEL, "max_tokens": 1, "prompt": "x" * BODY_SIZE}).encode()

        async def upload(key: str) -> int:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            async with client.post("/v1/completions", data=io.BytesIO(large), headers=headers) as answer:
                await answer.read()
                return answer.status

        statuses = await asyncio.gather(*(upload(key) for key in keys * 4))
        assert set(statuses) <= {200, 400, 503}, statuses  # 400: longer than the model's context
        assert 503 not in statuses, "eight of the largest bodies fit into the budget"


async def ready(client: aiohttp.ClientSession) -> None:
    """Wait as the readiness probe does."""
    until = time.monotonic() + 20
    while True:
        try:
            async with client.get("/ready") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            assert time.monotonic() < until, "it does not answer"
        await asyncio.sleep(0.1)


def process_root_is_read_only(memory: Memory) -> str:
    """How the root of the gateway's process is mounted, `ro` or `rw`, and that the process has no rights."""
    pid = (memory.folder / "cgroup.procs").read_text().split()[0]
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nUid:\t10001\t10001\t10001\t10001\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return next(fields[5].split(",")[0] for fields in mounts if fields[4] == "/")
