"""aiaas.manifests.systemd: the units' content, and systemd's own judgement where systemd-analyze is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aiaas.cli.rendersystemd import plan_for_systemd
from aiaas.config.check import check
from aiaas.config.load import load_text
from aiaas.config.problem import has_errors
from aiaas.manifests.systemd import CONFIG_PATH, CREDENTIALS, SYSTEMD_MARK, UNITS_FOLDER, systemd_files, systemd_stream
from aiaas.plan.compile import compile_plan
from aiaas.plan.deployed import CONFIG_FILE
from tests.manifests.rendering import plan_of as kubernetes_plan_of
from tests.manifests.services import BACKEND, ENGINE, files_of, plan_of, values_of
from tests.repository_rules import ROOT

# Without the one whose authorities are an entry of a ConfigMap: on a machine that file needs an absolute path.
NOT_FOR_A_MACHINE = {"keys.yaml", "openshift.yaml"}
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.yaml")) if path.name not in NOT_FOR_A_MACHINE]
GOLDEN = ROOT / "manifests" / "systemd" / "engine"
HIGHEST_EXPOSURE = 20  # tenths
# In place of programs that this machine does not have: systemd-analyze reports a missing one.
PROGRAM = re.compile(r"/opt/\w+/current/bin/\w+(?= serve )")
TLS = "server: {port: 443, tls: {cert_file: a.pem, key_file: a.key}}\n"


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request: pytest.FixtureRequest) -> dict[str, str]:
    """The files of each example in turn."""
    return systemd_files(plan_for_systemd([request.param]), request.param.name)


def units_in(files: dict[str, str], folder: Path) -> list[str]:
    """Write the units, with programs that exist; their paths."""
    written = []
    for path, text in files.items():
        if path.startswith(f"{UNITS_FOLDER}/"):
            unit = folder / Path(path).name
            unit.write_text(PROGRAM.sub("/bin/true", text))
            written.append(str(unit))
    return written


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze; the test is skipped without it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on PATH: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_has_nothing_to_say_about_the_units(example: dict[str, str], tmp_path: Path) -> None:
    """Of every example: known settings with valid values, and no dependency in a circle."""
    done = analyzed("verify", *units_in(example, tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_an_unknown_setting(tmp_path: Path) -> None:
    """The test above can fail."""
    files = {path: text.replace("ProtectHome=", "ProtectHomes=") for path, text in files_of(BACKEND).items()}
    assert "'ProtectHomes'" in analyzed("verify", *units_in(files, tmp_path)).stderr


@pytest.mark.parametrize("name", ["aiaas.service", "aiaas@.service"])
def test_exposure_of_the_gateway_is_at_most_two(example: dict[str, str], tmp_path: Path, name: str) -> None:
    """As `systemd-analyze security` weighs it: 10 is the worst."""
    [unit] = [path for path in units_in(example, tmp_path) if path.endswith(name)]
    done = analyzed("security", "--offline=true", f"--threshold={HIGHEST_EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout[-200:]


def test_exposure_without_the_hardening_is_too_high(tmp_path: Path) -> None:
    """The test above can fail."""
    files = {path: text.replace("SystemCallFilter=", "# ") for path, text in files_of(BACKEND).items()}
    [unit] = [path for path in units_in(files, tmp_path) if path.endswith("aiaas@.service")]
    assert analyzed("security", "--offline=true", f"--threshold={HIGHEST_EXPOSURE}", unit).returncode == 1


def test_it_is_what_is_checked_in() -> None:
    """manifests/systemd/engine/ holds exactly this rendering; `nox -s golden` writes it."""
    files = systemd_files(plan_for_systemd([ROOT / "examples" / "engine.yaml"]), "engine.yaml")
    golden = {str(path.relative_to(GOLDEN)): path.read_text() for path in GOLDEN.rglob("*") if path.is_file()}
    assert files == golden, "nox -s golden"


def test_every_file_names_its_source() -> None:
    """The mark, by which a later rendering knows it, is the first line."""
    files = files_of(TLS + ENGINE)
    assert all(text.startswith(f"{SYSTEMD_MARK} (aiaas ") for text in files.values())
    assert set(files) == {
        "etc/systemd/system/aiaas.service",
        "etc/systemd/system/aiaas@.service",
        "etc/systemd/system/aiaas.socket",
        "etc/systemd/system/vllm-qwen.service",
        "etc/sysusers.d/aiaas.conf",
        "etc/tmpfiles.d/aiaas.conf",
        "etc/aiaas/config/config.yaml",
    }


def test_stream_has_every_file_after_its_path() -> None:
    """For a reader, who wants to see all of them at once."""
    files = files_of(BACKEND)
    stream = systemd_stream(files)
    assert re.findall("^# FILE /(.*)$", stream, re.MULTILINE) == list(files)
    assert all(text in stream for text in files.values())


@pytest.mark.parametrize("text", [BACKEND, ENGINE, TLS + ENGINE], ids=["address", "engine", "tls"])
def test_service_runs_the_plan_that_was_rendered(text: str) -> None:
    """The config beside the unit, loaded and compiled, gives the same Plan."""
    plan, config = plan_of(text), files_of(text)[CONFIG_PATH]
    loaded = load_text(config, file="config.yaml", env={})
    assert loaded.config is not None
    assert not has_errors(loaded.problems + check(loaded, {}))
    assert compile_plan(loaded.config, source=CONFIG_FILE, env={}) == plan.gateway


def test_drain_decides_the_time_to_stop_as_in_a_cluster() -> None:
    """A pod has the seconds of preStop in addition."""
    drain = "server: {drain_timeout: 90s}\n"
    pods = kubernetes_plan_of(f"{drain}{BACKEND}kubernetes: {{image: 'r/aiaas:1', host: api.example.com}}\n")
    assert values_of(drain + BACKEND, "TimeoutStopSec") == [str(pods.grace - pods.pre_stop)] == ["100"]


@pytest.mark.parametrize(("host", "listens"), [("0.0.0.0", "0.0.0.0"), ("'::'", "[::]"), ("localhost", "127.0.0.1")])
def test_socket_listens_where_the_config_says(host: str, listens: str) -> None:
    """In the form of systemd.socket(5)."""
    text = f"server: {{host: {host}, port: 443}}\n{BACKEND}"
    assert values_of(text, "ListenStream", "aiaas.socket") == [f"{listens}:443"]
    assert values_of(text, "FreeBind", "aiaas.socket") == []


def test_socket_of_an_address_does_not_wait_for_it() -> None:
    """At boot the network may come later."""
    assert values_of(f"server: {{host: 192.0.2.1}}\n{BACKEND}", "FreeBind", "aiaas.socket") == ["yes"]


@pytest.mark.parametrize(("workers", "reuse"), [(1, []), (3, ["yes"])])
def test_each_worker_has_a_socket(workers: int, reuse: list[str]) -> None:
    """The kernel spreads connections over them."""
    text = f"server: {{workers: {workers}, port: 8080}}\n{BACKEND}"
    assert values_of(text, "ListenStream", "aiaas.socket") == ["0.0.0.0:8080"] * workers
    assert values_of(text, "ReusePort", "aiaas.socket") == reuse


def test_secrets_are_credentials_and_nowhere_else() -> None:
    """Not even their values' places are in the environment of the unit."""
    text = (
        "backends: {vllm: {url: 'http://${HOST}:8000', api_key_env: VLLM_KEY, models: [m]}}\n"
        "kubernetes: {env: {HOST: {value: 'vllm%1'}, UNUSED: {value: x}}}\n"
    )
    env = {"HOST": "vllm.example.com", "VLLM_KEY": "the-secret"}
    assert values_of(text, "LoadCredential", env=env) == [f"VLLM_KEY:{CREDENTIALS}/VLLM_KEY"]
    assert values_of(text, "Environment", env=env) == ['"HOST=vllm%%1"']
    assert "the-secret" not in "".join(files_of(text, env).values())


def test_gateway_stops_before_its_engines() -> None:
    """`After=` holds in reverse at a shutdown; the store's names differ by distribution."""
    text = f"rate_limit: {{store: 'redis://127.0.0.1:6379/0'}}\n{ENGINE}"
    assert values_of(text, "Wants") == ["network-online.target vllm-qwen.service"]
    assert values_of(text, "After") == [
        "aiaas.service network-online.target vllm-qwen.service redis-server.service redis.service "
        "valkey-server.service valkey.service"
    ]
    assert values_of(BACKEND, "After") == ["aiaas.service network-online.target"]


def test_one_service_stands_for_all_instances() -> None:
    """Starts, stops and reloads of it hold for them, and each of them has the sockets."""
    assert values_of(BACKEND, "PartOf") == values_of(BACKEND, "ReloadPropagatedFrom") == ["aiaas.service"]
    assert values_of(BACKEND, "WantedBy") == ["aiaas.service"]
    assert values_of(BACKEND, "Sockets") == ["aiaas.socket"]
    assert values_of(BACKEND, "Requires", "aiaas.service") == ["aiaas.socket"]


def test_only_known_peers_are_allowed_where_all_are_known() -> None:
    """With a name there is DNS, and with an open port there are clients."""
    local = "server: {host: 127.0.0.1}\n"
    assert values_of(local + BACKEND, "IPAddressAllow") == ["localhost 192.0.2.7"]
    assert values_of(local + BACKEND, "IPAddressDeny") == ["any"]
    assert values_of(BACKEND, "IPAddressDeny") == []
    assert values_of(local + BACKEND.replace("192.0.2.7", "vllm.example.com"), "IPAddressDeny") == []


def test_more_connections_need_more_descriptors() -> None:
    """The gateway itself accepts no more clients than its descriptors allow."""
    assert values_of(BACKEND, "LimitNOFILE") == ["65536"]
    assert values_of(f"server: {{max_connections: 100000}}\n{BACKEND}", "LimitNOFILE") == ["400000"]


def test_folders_are_those_that_the_config_needs() -> None:
    """Secrets are root's, and the gateway reads its certificate by its group."""
    lines = files_of(TLS + BACKEND)["etc/tmpfiles.d/aiaas.conf"].splitlines()
    assert f"d {CREDENTIALS} 0700 root root" in lines
    assert "z /etc/aiaas/tls/tls.key 0640 root aiaas" in lines
    assert "z /etc/aiaas/keys/keys.yaml 0600 aiaas aiaas" in lines
    without = files_of(f"auth: {{enabled: false}}\n{BACKEND}")["etc/tmpfiles.d/aiaas.conf"]
    assert "/etc/aiaas/tls" not in without
    assert "/etc/aiaas/keys" not in without


def test_engines_have_a_user_of_their_own() -> None:
    """It may open the GPU's devices."""
    assert "m vllm render" in files_of(ENGINE)["etc/sysusers.d/aiaas.conf"].splitlines()
    assert "vllm" not in files_of(BACKEND)["etc/sysusers.d/aiaas.conf"].partition("\n")[2]
