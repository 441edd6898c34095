"""The options that a config adds to a smoke test."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiaas.cli.loadoptions import default_url
from aiaas.cli.smokeoptions import KnownGateway, known_of, read_metrics, read_names, read_size
from aiaas.errors import EnvironmentFault, UsageError
from aiaas.smoke.run import NAMES

BACKENDS = "backends: {vllm: {url: 'http://127.0.0.1:9', models: [m]}}\n"


@pytest.fixture(autouse=True)
def no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a config."""
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


def config(text: str) -> Path:
    """A config with one backend."""
    path = Path("mine.yaml")
    path.write_text(BACKENDS + text)
    return path


def test_without_a_config_only_the_url_is_known() -> None:
    """The default port on this machine."""
    assert known_of(None, None) == KnownGateway("http://127.0.0.1:8080")
    assert known_of("https://h", None) == KnownGateway("https://h")


def test_a_url_alone_does_not_take_the_config_that_lies_about() -> None:
    """It may be another's gateway."""
    Path("aiaas.yaml").write_text(BACKENDS + "server: {port: 1234}\n")
    assert known_of("https://h", None).big_body is None
    assert known_of(None, None).url == "http://127.0.0.1:1234"


def test_a_config_tells_its_port_its_bounds_and_its_metrics() -> None:
    """Of the gateway on this machine."""
    path = config("server: {port: 1234, max_body_size: 2KiB}\nmonitoring: {metrics_port: 9191}\n")
    assert known_of(None, [path]) == KnownGateway("http://127.0.0.1:1234", 2048, True, True, "http://127.0.0.1:9191")


def test_a_path_prefix_is_part_of_the_url() -> None:
    """On this machine and in the cluster; a URL that is given stays as it is."""
    path = config("server: {port: 1234, path_prefix: /llm}\n")
    assert known_of(None, [path]).url == default_url([path]) == "http://127.0.0.1:1234/llm"
    assert known_of("https://h", [path]).url == "https://h"
    path = config("server: {path_prefix: /llm}\nkubernetes: {host: api.example.com}\n")
    assert known_of(None, [path]).url == "https://api.example.com/llm"


def test_a_host_of_the_cluster_is_the_url() -> None:
    """Its metrics port cannot be reached from here."""
    known = known_of(None, [config("kubernetes: {host: api.example.com}\n")])
    assert (known.url, known.metrics) == ("https://api.example.com", None)


def test_a_url_with_a_config_is_tested_by_that_config() -> None:
    """Keys and limits of this machine are not used there."""
    path = config("auth: {enabled: false}\nrate_limit: {requests_per_minute: null}\n")
    assert known_of("http://h", [path]) == KnownGateway("http://h", 10 * 1024**2, False, False, None)


def test_a_config_that_cannot_be_used_is_said() -> None:
    """An invalid config; a missing one."""
    with pytest.raises(UsageError, match=r"mine\.yaml is not valid"):
        known_of(None, [config("nonsense: 1\n")])
    with pytest.raises(EnvironmentFault, match="no\\.yaml"):
        known_of(None, [Path("no.yaml")])


def test_names_are_separated_by_commas() -> None:
    """Spaces do not matter."""
    assert read_names(None, None) == NAMES
    assert read_names("models, health,", "models") == ("health",)


def test_sizes_and_metrics_are_read() -> None:
    """`/metrics` may be written or not."""
    assert read_size("--body-size", "1KiB") == 1024
    with pytest.raises(UsageError, match="--body-size: "):
        read_size("--body-size", "much")
    for url in ("http://h:9090", "http://h:9090/metrics", "http://h:9090/metrics/"):
        target = read_metrics(url, None, insecure=False)
        assert target is not None
        assert target.url == "http://h:9090"
    assert read_metrics(None, None, insecure=False) is None
