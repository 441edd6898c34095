"""`aiaas loadtest` and `aiaas report`, as processes against a simulator that is one as well."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import running_gateway

AIAAS = [sys.executable, "-m", "aiaas"]
SHORT = ("--users", "2", "--requests", "4", "--prompt-tokens", "10", "--output-tokens", "5")


def aiaas(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run one command, without a key or a config of this machine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AIAAS_")}
    return subprocess.run(
        [*AIAAS, *arguments], capture_output=True, text=True, timeout=60, check=False, env=clean | env
    )


def simulated(*options: str) -> tuple[subprocess.Popen[str], str]:
    """A simulator, and its URL."""
    command = [*AIAAS, "simulate", "--port", "0", "--ttft", "20ms", "--itl", "2ms", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline()
    found = re.search(r"http://\S+", said)
    assert found is not None, said
    return process, found[0]


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    """The URL of a simulator that asks for the key sk-right."""
    process, url = simulated("--api-key", "sk-right")
    yield url
    process.kill()
    process.communicate()


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A file with the right key."""
    (tmp_path / "right.key").write_text("sk-right\n")
    return str(tmp_path / "right.key")


def test_a_run_is_reported_on_stdout_and_its_progress_on_stderr(simulator: str, key: str) -> None:
    """Tables for people; exit 0."""
    done = aiaas("loadtest", simulator, "--api-key-file", key, *SHORT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^TTFT +\S+ ms", done.stdout, re.MULTILINE)
    assert re.search(r"^answered +4$", done.stdout, re.MULTILINE)
    assert "model aiaas-simulator, closed loop; Ctrl-C ends it" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "sk-right" not in done.stdout + done.stderr


def test_json_is_alone_on_stdout(simulator: str) -> None:
    """With the key from the environment."""
    done = aiaas("loadtest", simulator, *SHORT, "-o", "json", AIAAS_API_KEY="sk-right")
    found = json.loads(done.stdout)
    assert (found["total"]["ok"], found["total"]["output_tokens"], found["held"]) == (4, 5.0, True)
    assert found["run"]["options"].items() >= {"users": "2", "stream": "True", "output_tokens": "5"}.items()


@pytest.mark.parametrize(("slo", "code"), [("e2e=10s,error_rate=1%", 0), ("ttft=1ms", 1)], ids=["held", "missed"])
def test_a_missed_slo_is_exit_1(simulator: str, key: str, slo: str, code: int) -> None:
    """The table shows it too."""
    done = aiaas("loadtest", simulator, "--api-key-file", key, *SHORT, "--slo", slo)
    assert done.returncode == code
    assert ("missed" in done.stdout) == bool(code)


def test_samples_are_written_and_reported_again(simulator: str, key: str, tmp_path: Path) -> None:
    """One run, two side by side, Markdown, JSON, another SLO."""
    for name in ("a", "b"):
        out = str(tmp_path / f"{name}.jsonl")
        assert aiaas("loadtest", simulator, "--api-key-file", key, *SHORT, "--out", out).returncode == 0
        assert "sk-right" not in (tmp_path / f"{name}.jsonl").read_text()
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert re.search(r"^answered +4$", aiaas("report", files[0]).stdout, re.MULTILINE)
    both = aiaas("report", *files, "--markdown").stdout
    assert both.startswith("### Runs\n\n|   | a | b |")
    assert [run["total"]["ok"] for run in json.loads(aiaas("report", *files, "-o", "json").stdout)] == [4, 4]
    assert aiaas("report", files[0], "--slo", "ttft=1ms").returncode == 1


def test_ctrl_c_reports_what_was_measured(simulator: str, key: str, tmp_path: Path) -> None:
    """Exit 130, as a shell reports any interrupted program; the file is whole."""
    out = tmp_path / "a.jsonl"
    command = [*AIAAS, "loadtest", simulator, "--api-key-file", key, "--users", "2", "--duration", "60s"]
    command += ["--output-tokens", "5", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (out.exists() and out.read_bytes().count(b"\n") > 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert re.search(r"^answered +\d+$", stdout, re.MULTILINE)
    assert "ended early (interrupted)" in stderr
    assert json.loads(out.read_bytes().splitlines()[-1])["interrupted"]


def test_a_terminal_sees_it_move(simulator: str, key: str) -> None:
    """A live view on stderr, gone at the end."""
    ours, theirs = pty.openpty()
    command = [*AIAAS, "loadtest", simulator, "--api-key-file", key, "--users", "2", "--duration", "1500ms"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    seen = b""
    while select.select([ours], [], [], 15)[0]:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other side has closed
            break
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, seen
    assert b"2 users" in seen
    assert b"answers/s" in seen
    assert "▁".encode() in seen or "█".encode() in seen


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param(("--users", "1", "--rate", "2"), 2, "--users is a closed loop and --rate an open one", id="loops"),
        pytest.param(("--duration", "1s", "--requests", "2"), 2, "either --duration or --requests", id="lengths"),
        pytest.param(("--duration", "0"), 2, "--duration must be longer than 0", id="no time"),
        pytest.param(("--warmup", "5"), 2, "--warmup '5': 5 has no unit", id="unit"),
        pytest.param(("--abort-share", "200%"), 2, "--abort-share: 200% is not between", id="share"),
        pytest.param(("--abort-share", "x"), 2, "--abort-share: 'x' is not a share", id="no share"),
        pytest.param(("--slo", "fast"), 2, "--slo: 'fast' is not a bound", id="slo"),
        pytest.param(("--sweep", "users=9-1"), 2, "--sweep: ", id="sweep"),
        pytest.param(("--sweep", "users=1-2", "--users", "2"), 2, "--sweep names its own levels", id="sweep and users"),
        pytest.param(("--recommend",), 2, "--recommend needs a sweep", id="recommend"),
        pytest.param(("--preset", "fast"), 2, "--preset: 'fast' is unknown; known: plan", id="preset"),
        pytest.param(("--prompt-tokens", "x"), 2, "--prompt-tokens: 'x' is not a length", id="length"),
        pytest.param(("--api-key-file", "/no/such"), 3, "/no/such: No such file", id="key file"),
        pytest.param(("--prompts", "/no/such"), 3, "/no/such: No such file", id="prompts file"),
        pytest.param(("--ca", "/no/such"), 3, "/no/such does not exist", id="ca file"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], code: int, message: str) -> None:
    """Before anything is sent."""
    done = aiaas("loadtest", "https://127.0.0.1:1", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broken_line_of_a_prompts_file_is_named(tmp_path: Path) -> None:
    """The message names file and line; exit 1."""
    (tmp_path / "p.jsonl").write_text('{"prompt":"a"}\n{"prompt":\n')
    done = aiaas("loadtest", "http://127.0.0.1:1", "--prompts", str(tmp_path / "p.jsonl"))
    assert done.returncode == 1
    assert f"{tmp_path}/p.jsonl:2: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["", "two words", "a\nb"], ids=["empty", "words", "lines"])
def test_key_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    """The message names the file and its expected content."""
    (tmp_path / "k").write_text(content)
    done = aiaas("loadtest", "http://127.0.0.1:1", "--api-key-file", str(tmp_path / "k"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "two words" not in done.stderr


def test_a_wrong_key_stops_it_before_the_load(simulator: str) -> None:
    """Exit 1 and one line; the key is not shown."""
    done = aiaas("loadtest", simulator, *SHORT, AIAAS_API_KEY="sk-wrong")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{simulator} refuses the key" in done.stderr
    assert "sk-wrong" not in done.stderr


def test_nobody_there_is_exit_3() -> None:
    """One line with a hint."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        done = aiaas("loadtest", f"http://127.0.0.1:{bound.getsockname()[1]}", *SHORT)
    assert (done.returncode, done.stdout) == (3, "")
    assert "connection refused; is the server running, and is the URL right?" in done.stderr


def test_the_url_is_that_of_the_config(tmp_path: Path) -> None:
    """The config's port on this machine."""
    (tmp_path / "aiaas.yaml").write_text(
        "server: {port: 1}\nbackends: {vllm: {url: 'http://127.0.0.1:9', models: [m]}}\n"
    )
    done = aiaas("loadtest", "-c", str(tmp_path / "aiaas.yaml"), *SHORT)
    assert done.returncode == 3
    assert "http://127.0.0.1:1: connection refused" in done.stderr


def test_a_preset_says_what_it_means(simulator: str, key: str) -> None:
    """The template has typical values; options that are given win."""
    done = aiaas("loadtest", simulator, "--api-key-file", key, "--preset", "plan", *SHORT[:4], "--ramp", "0s",
                 "--warmup", "0s", "-o", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a typical request is a streamed chat of 100 tokens that asks for 50" in done.stderr
    assert json.loads(done.stdout)["run"]["slo"] == "e2e:p95=5s,error_rate=1%"


def test_a_sweep_ends_with_lines_for_a_config(simulator: str, key: str, tmp_path: Path) -> None:
    """Level by level, the knee marked where there is one, YAML with reasons; for the config's own backend."""
    (tmp_path / "aiaas.yaml").write_text(f"backends: {{mine: {{url: '{simulator}', models: [aiaas-simulator]}}}}\n")
    done = aiaas(
        "loadtest", simulator, "--api-key-file", key, "--sweep", "users=1,2", "--requests", "10", "--recommend",
        "--output-tokens", "5", "-c", str(tmp_path / "aiaas.yaml"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2 .* still grows$", done.stdout, re.MULTILINE), done.stdout
    assert "answers/s at the highest level tried; if N keys" in done.stdout
    assert "  mine:\n    # 2 at once gave" in done.stdout
    assert "    max_inflight: 2\n" in done.stdout
    assert "cpu_target" not in done.stdout
    assert "no line for kubernetes.cpu_target: a client does not see the gateway's CPU; give the URL" in done.stderr
    assert "level 1: " in done.stderr


def test_with_the_metrics_port_a_sweep_tells_the_gateways_cpu(simulator: str, tmp_path: Path) -> None:
    """Two users leave a gateway idle: cores and CPU by level, in the table, as JSON and out of the file again; and the
    config's own target stays, with the figures."""
    out = str(tmp_path / "a.jsonl")
    backend = {"url": simulator, "models": ["aiaas-simulator"], "api_key_env": "ENGINE_KEY"}
    sections = {"kubernetes": {"cpu_target": 55, "resources": {"requests": {"cpu": "1"}}}}
    environment = {"ENGINE_KEY": "sk-right"}
    with running_gateway(tmp_path, backend, sections=sections, environment=environment) as gateway:
        done = aiaas(
            "loadtest", gateway.url, "--metrics", gateway.metrics_url, "--sweep", "users=1,2", "--duration", "1s",
            "--output-tokens", "5", "--recommend", "-c", str(tmp_path / "aiaas.yaml"), "--out", out,
            AIAAS_API_KEY=gateway.key, **environment,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CPU/request" in done.stdout
    reason = r"% of the 1 that a pod requests, .*; leave this as it is\n  cpu_target: 55\n"
    assert re.search(reason, done.stdout), done.stdout
    (run,) = json.loads(aiaas("report", out, "-o", "json").stdout)
    for level in run["levels"]:
        cpu = level["cpu"]
        assert 0 < cpu["cores"] < 1
        assert 0.5 < cpu["share"] < 2
        assert 0.0001 < cpu["per_request"] < 0.05
        assert cpu["per_request"] == pytest.approx(cpu["per_token"] * 5, rel=0.5)


def test_a_sweep_that_holds_nowhere_recommends_nothing(simulator: str, key: str) -> None:
    """The table shows its levels all the same; exit 1."""
    done = aiaas(
        "loadtest", simulator, "--api-key-file", key, "--sweep", "users=1,2", "--requests", "4", "--recommend",
        "--output-tokens", "5", "--slo", "ttft=1ms",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("SLO missed") == 2
    assert "nothing can be recommended: the lowest level failed or missed the SLO; start lower" in done.stderr


def test_direct_shows_the_gateways_own_part(simulator: str, key: str, tmp_path: Path) -> None:
    """A report from the samples shows it again."""
    out = str(tmp_path / "a.jsonl")
    arguments = ["--users", "4", "--requests", "80", "--output-tokens", "3", "--out", out]
    done = aiaas(
        "loadtest", simulator, "--api-key-file", key, "--direct", simulator, "--direct-key-file", key, *arguments
    )
    assert done.returncode == 0, done.stderr
    for shown in (done.stdout, aiaas("report", out).stdout):
        assert re.search(r"^TTFT +\S+ ms +[+-]\d+ us +[+-]\d+ us +[+-]\d+ us$", shown, re.MULTILINE), shown


def test_a_server_without_limits_has_none_to_check(simulator: str, key: str) -> None:
    """One line, exit 1; the check itself is in tests/loadtest/test_limit_run.py."""
    done = aiaas("loadtest", simulator, "--api-key-file", key, "--check-limits")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this key has no request limit" in done.stderr


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("close-mid-stream:2", "cut"), ("garbage", "garbage"), ("html-error", "http_502 html"), ("too-many", "http_429")],
)
def test_errors_are_counted_by_kind(fault: str, kind: str) -> None:
    """None of them ends the run; a run without an answer is exit 1."""
    process, url = simulated("--fault", fault)
    try:
        done = aiaas("loadtest", url, *SHORT)
    finally:
        process.kill()
        process.communicate()
    assert done.returncode == 1
    assert re.search(rf"^{kind}[ \w]* +4 ", done.stdout, re.MULTILINE), done.stdout
    assert ("the key's own limit" in done.stderr) == (fault == "too-many")
