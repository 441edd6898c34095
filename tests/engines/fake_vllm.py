"""A small process that plays vLLM: it listens, or dies, or hangs, as its model's name says."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import psutil

# `vllm serve MODEL ... --port N`: MODEL says how it behaves. Helpers play the engine core and its workers.
FAKE_VLLM = """
    import http.server, os, signal, subprocess, sys, time
    # One write a line: an unbuffered print() makes a write of each argument, and the helpers write in between.
    def say(line):
        os.write(1, (line + "\\n").encode())
    model, port = sys.argv[2], int(sys.argv[sys.argv.index("--port") + 1])
    say(f"pid {os.getpid()}")
    helper = [sys.executable, "-c", "import os, signal, time;"
              "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'helper-got-SIGTERM' + bytes([10])));"
              "os.write(1, b'helper-ready' + bytes([10])); time.sleep(60); time.sleep(60)"]
    if "helper" in model:
        say(f"helper {subprocess.Popen(helper).pid}")
    if "daemon" in model:
        say(f"helper {subprocess.Popen(helper, start_new_session=True).pid}")
    if "old" in model and "--shutdown-timeout" in sys.argv:
        sys.exit("vllm: error: unrecognized arguments: --shutdown-timeout 5")
    if "crash" in model:
        sys.exit(os.environ.get("SAY", "ValueError: no such model"))
    if "stubborn" in model:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        def leave(*_):
            time.sleep(0.3 if "slow" in model else 0)
            say("leaving")
            os._exit(0)
        signal.signal(signal.SIGTERM, leave)
    if "loud" in model:
        print("x" * 300_000, flush=True)
        for i in range(3000):
            print("line", i, "y" * 100)
    if "deaf" in model:
        time.sleep(60)

    sick, steps = "sick" in model, 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            global sick, steps
            sick = sick or self.path == "/sicken"
            self.send_response(200 if not sick else 503)
            self.end_headers()
            if self.path == "/die":
                os._exit(3)
            if self.path == "/metrics":
                steps += "core-moves" in model
                self.wfile.write(b"vllm:kv_cache_usage_perc{engine=\\"0\\"} %d" % steps)
        def do_POST(self):
            say("looked-at")
            if "core-frozen" in model:
                time.sleep(60)
            self.send_response(200)
            self.end_headers()
        def log_message(self, *_):
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def write_fake_vllm(folder: Path) -> Path:
    """Put an executable `vllm` into a new folder, for PATH."""
    folder.mkdir()
    (folder / "vllm").write_text(f"#!{sys.executable}\n{textwrap.dedent(FAKE_VLLM)}")
    (folder / "vllm").chmod(0o755)
    return folder


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
