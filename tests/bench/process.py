"""What a process has cost so far, as the kernel accounts it, and the processes under test themselves."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import psutil

from tests.bench import wire

# The process under test has the first core to itself, everything else shares the second.
TESTED_CORE = 0
OTHER_CORE = 1

NGINX_CONFIG = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 120s;
    }}
  }}
}}
"""

AIAAS_CONFIG = """\
server: {{host: 127.0.0.1, port: {port}}}
backends:
  vllm:
    url: http://127.0.0.1:{backend}
    models: [{served}, {alias}]
auth: {{keys_file: keys.yaml}}
rate_limit: {{requests_per_minute: 60}}
monitoring: {{metrics_port: {metrics}, log_level: info}}
"""


class NotStartedError(Exception):
    """A process under test did not come up; says what it wrote."""


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process, ended ones included, and of its living children, in seconds.

    By the process's own CPU clock (clock_getcpuclockid(3)), which counts nanoseconds where /proc/PID/stat counts 10 ms.
    """
    pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return sum(time.clock_gettime((~each << 3) | 2) for each in pids)


def core_busy_seconds(core: int) -> float:
    """Seconds that a core has worked for anybody since the machine started (/proc/stat, in units of 10 ms)."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0


def resident(pid: int) -> int:
    """Resident memory of a process and its children, in bytes."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has it."""
    if core < (os.cpu_count() or 1):
        os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def started(command: Sequence[str], core: int, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process on `core`; what it writes goes to files in `folder`. Ended with the block."""
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        process = _spawn(command, core, folder, out, err)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _spawn(command: Sequence[str], core: int, folder: Path, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen[bytes]:
    if shutil.which("taskset") is not None and core < (os.cpu_count() or 1):
        command = ["taskset", "--cpu-list", str(core), *command]
    # An installed package has its bytecode; so has what starts here, whatever the environment says, from the second
    # start on.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)


def wait_for_answer(port: int, request: bytes, process: subprocess.Popen[bytes], folder: Path, name: str) -> float:
    """Try until the first 200 comes; the seconds that it took. Raises NotStartedError after 15 s, or if it ended."""
    began = time.perf_counter()
    while time.perf_counter() - began < 15:
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(request)
                if sock.recv(65536).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.002)
    wrote = (folder / f"{name}.err").read_text(errors="replace").strip() or "nothing"
    raise NotStartedError(f"{name} did not answer; it wrote: {wrote[-1000:]}")


def backend_command(port: int, events: int, per_second: float) -> list[str]:
    """The scripted backend of `backend.py`."""
    return [sys.executable, "-m", "tests.bench.backend", str(port), str(events), str(per_second)]


def nginx_path() -> str | None:
    """Debian's nginx, which is not on every PATH; None where there is none."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    return found


def nginx_command(executable: str, folder: Path, port: int, backend: int) -> list[str]:
    """One nginx process, proxying everything, its files in `folder`."""
    config = folder / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(folder=folder, port=port, backend=backend))
    return [executable, "-p", str(folder), "-e", "stderr", "-c", str(config)]


def aiaas_command(folder: Path, port: int, backend: int) -> tuple[list[str], str]:
    """`aiaas serve` with authentication, limits, metrics and the request log, and a key that it takes."""
    config = folder / "aiaas.yaml"
    config.write_text(
        AIAAS_CONFIG.format(port=port, backend=backend, metrics=free_port(), served=wire.SERVED_MODEL, alias=wire.ALIAS)
    )
    aiaas = [sys.executable, "-m", "aiaas"]
    # More than any run sends, so that the limits are computed and never reached.
    limits = ["--rpm", "100000000", "--tpm", "10000000000", "--concurrency", "100000"]
    create = [*aiaas, "keys", "create", "bench", "-c", str(config), *limits]
    made = subprocess.run(create, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NotStartedError(f"no key could be made: {made.stderr.strip()}")
    return [*aiaas, "serve", "-c", str(config)], made.stdout.strip()
