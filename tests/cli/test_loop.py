"""aiaas.cli.loop: the end of a gateway's process."""

from __future__ import annotations

import json
import subprocess
import sys
import time


def test_uninterruptible_thread_does_not_delay_the_exit() -> None:
    """Like a thread that resolves a name while DNS does not answer; the last log lines are written all the same."""
    script = """
import asyncio, sys, time
from aiaas.cli.loop import run_loop
from aiaas.proxy.telemetry.log import FdWriter, JsonLog
from tests.ports import free_port

writer = FdWriter(sys.stdout.fileno())
log = JsonLog(writer, time.time, "info")

async def life():
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    log.event("info", "stopped")

run_loop(life, writer, log)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - started < 40  # and not the thread's 60
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["event"] == "stopped"
