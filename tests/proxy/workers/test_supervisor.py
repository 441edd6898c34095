"""aiaas.proxy.workers.supervisor: when a worker is replaced. (The effect on clients and operators:
tests/cli/test_worker.py.)"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import yaml

from aiaas.errors import EnvironmentFault
from aiaas.plan.read import read
from aiaas.proxy.server import Ready
from aiaas.proxy.telemetry.log import JsonLog
from aiaas.proxy.workers.supervisor import PAUSES, START_TRIES, Row, supervise
from tests.ports import free_port


def test_one_end_after_long_service_is_replaced_at_once() -> None:
    """However many workers were replaced before."""
    row = Row(ends=9)
    assert row.after(served=3600.0) == Row(ends=1, failed_starts=0)
    assert row.after(served=3600.0).pause == 0


def test_ends_in_a_row_make_the_pauses_grow() -> None:
    """Up to a bound: a request that kills its worker must not leave the port to nobody."""
    row, pauses = Row(), []
    for _ in range(8):
        row = row.after(served=0.5)
        pauses.append(row.pause)
    assert pauses == [*PAUSES, PAUSES[-1], PAUSES[-1]]
    assert row.failed_starts == 0


def test_only_starts_that_fail_one_after_another_count_as_such() -> None:
    """A worker that served is proof that workers can start."""
    row = Row().after(None).after(None)
    assert row.failed_starts == 2
    assert row.after(0.1).failed_starts == 0
    assert row.after(0.1).after(None).failed_starts == 1


def test_failed_start_ends_all_only_where_no_worker_serves() -> None:
    """A certificate that is broken for an hour must not take down the workers that serve with the good one."""
    row = Row()
    for _ in range(START_TRIES):
        assert not row.is_hopeless(in_order=False)
        row = row.after(None)
    assert row.is_hopeless(in_order=False)
    assert row.after(None).is_hopeless(in_order=False)
    assert not row.is_hopeless(in_order=True)


@pytest.mark.parametrize("command", [(sys.executable, "-c", "raise SystemExit(5)"), ("/no/such/program",)])
async def test_workers_that_cannot_start_end_the_whole(
    tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clear line, after some tries; the port is free again and readiness was never announced."""
    monkeypatch.setattr("aiaas.proxy.workers.supervisor.PAUSES", (0.0,))
    port = free_port()
    config = {
        "server": {"host": "127.0.0.1", "port": port, "workers": 2},
        "backends": {"vllm": {"url": "http://127.0.0.1:9", "models": ["m"]}},
        "monitoring": {"prometheus": False, "admin_port": 0},
    }
    (tmp_path / "aiaas.yaml").write_text(yaml.safe_dump(config))
    plan = read(tmp_path / "aiaas.yaml", {}).plan
    assert plan is not None
    ready: list[Ready] = []
    lines: list[bytes] = []
    log = JsonLog(lines.append, time.time, "info")
    with pytest.raises(EnvironmentFault, match=f"ended {START_TRIES} times before it could serve"):
        await supervise(
            plan,
            log,
            env=os.environ,
            make_engine=lambda *_: pytest.fail("there is no engine"),
            on_ready=ready.append,
            command=command,
            log_to=(2, 2),
        )
    log.flush()
    assert not ready
    assert b"internal_error" not in b"".join(lines)
    assert b'"how":"exit code 5"' in b"".join(lines) or b"No such file" in b"".join(lines)
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
