"""A gateway started from what `aiaas init` writes, in front of a simulator that calls tools; running clients on it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from aiaas.simulator.app import Received
from aiaas.simulator.options import SimulatorOptions
from aiaas.simulator.server import SimulatorHandle, running_simulator
from tests.clients.setup import install
from tests.e2e.processes import running, wait_for
from tests.ports import free_port

MODEL: Final = "coder"
OPTIONS: Final = SimulatorOptions(models=(MODEL,), ttft=0.005, itl=0.001, max_model_len=131_072, auto_tool_choice=True)


@dataclass
class Stage:
    """One gateway with its simulator, and a home folder for clients.

    folder   holds aiaas.yaml, keys.yaml, the key's file, `home` and `project`
    """

    url: str
    folder: Path
    simulator: SimulatorHandle
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def project(self) -> Path:
        """The folder that agents work in."""
        return self.folder / "project"

    @property
    def home(self) -> Path:
        """The home folder of the clients."""
        return self.folder / "home"

    async def connect(self, client: str, url: str | None = None) -> None:
        """Paste what `aiaas connect` prints for this client: variables into the environment, files into the home.

        url  of another server than the gateway
        """
        for block in await self.blocks(client, url):
            if block["language"] in ("sh", "env"):
                script = block["text"] + "\nenv -0\n"
                shown = await self.run("sh", "-c", script)
                self.environment |= dict(line.split("=", 1) for line in shown.split("\0") if line)
            elif block["language"] in ("json", "toml", "yaml"):
                where = str(block["where"]).split()[-1]  # a file, or one of two
                path = self.home / where.removeprefix("~/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block["text"], encoding="utf-8")

    async def blocks(self, client: str, url: str | None = None) -> list[dict[str, str]]:
        """The blocks that `aiaas connect` prints, with the key."""
        options = ["--api-key-file", str(self.folder / "my.key"), "-o", "json", *(["--url", url] if url else [])]
        blocks: list[dict[str, str]] = json.loads(await self.aiaas("connect", client, *options))["blocks"]
        return blocks

    async def aiaas(self, *arguments: str) -> str:
        """Run an `aiaas` command in the folder."""
        return await self.run(sys.executable, "-m", "aiaas", *arguments, folder=self.folder)

    async def run(self, *command: str, folder: Path | None = None, stdin: str = "", timeout: float = 120) -> str:
        """Run a command with the client's environment, and return its output."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder or self.project,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)} | self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout):
                output, errors = await process.communicate(stdin.encode())
        except TimeoutError:
            process.kill()
            output, errors = await process.communicate()
            raise AssertionError(f"{command[0]} ran for {timeout:g} s: {output!r} {errors!r}") from None
        assert process.returncode == 0, f"{command}: {output.decode()[-3000:]}\n{errors.decode()[-3000:]}"
        return output.decode()

    def asked(self, path: str) -> list[Received]:
        """The requests that reached the simulator at this path."""
        return [received for received in self.simulator.received if received.path == path]

    def log(self) -> list[dict[str, Any]]:
        """The gateway's own lines about requests."""
        lines = [json.loads(line) for line in (self.folder / "gateway.log").read_text().splitlines()]
        return [line for line in lines if line["event"] in ("request", "inference_request")]


def command(name: str) -> str:
    """The path of a client's command line. OpenCode's is for one platform; elsewhere its tests are skipped."""
    folder = install() / "node_modules"
    if name != "opencode":
        return str(folder / ".bin" / name)
    program = folder / "opencode-linux-x64" / "bin" / "opencode"
    if not program.exists():
        pytest.skip("OpenCode's program is not for this platform")
    return str(program)


@asynccontextmanager
async def running_stage(folder: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[Stage]:
    """The gateway's config is the one that `aiaas init` writes, with a free port."""
    port, metrics_port = free_port(), free_port()
    async with running_simulator(OPTIONS) as simulator:
        stage = Stage(f"http://127.0.0.1:{port}", folder, simulator, dict(environment or {}))
        for path in (stage.project, stage.home):
            path.mkdir()
        await stage.aiaas("init", "--url", simulator.url, "--model", MODEL)
        config = folder / "aiaas.yaml"
        text = config.read_text(encoding="utf-8").replace("port: 8080", f"port: {port}")
        config.write_text(text.replace("metrics_port: 9090", f"metrics_port: {metrics_port}"), encoding="utf-8")
        (folder / "my.key").write_text(await stage.aiaas("keys", "create", "dev"), encoding="utf-8")
        serve = [sys.executable, "-m", "aiaas", "serve", "-c", str(config)]
        log, said = folder / "gateway.err", folder / "gateway.log"
        with ExitStack() as stack:
            process = stack.enter_context(running(serve, log, os.environ, stdout=said, grace=10))
            await asyncio.to_thread(wait_for, lambda: '"event":"started"' in said.read_text(), 20, process, log)
            try:
                yield stage
            finally:
                (folder / "my.key").unlink()  # the tests look for keys in what processes wrote
