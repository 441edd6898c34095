"""The compose file: the gateway, Caddy, the store, and the files beside them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.load import load_text
from aiaas.manifests.compose import COMPOSE_MARK, compose_file, compose_files, compose_text, environment_example
from tests.manifests import compose_model
from tests.manifests.composing import BACKEND, ENGINE, compose_plan, engine, services

KEYED = BACKEND.replace("models", "api_key_env: VLLM_KEY, models")
STORE = "rate_limit: {store: 'redis://:${P}@redis:7000/0'}\n"
TLS = "server: {tls: {cert_file: a.pem, key_file: a.key}}\n"
USAGE = "monitoring: {usage_file: usage.sqlite}\n"
ALL = ENGINE + STORE + USAGE + "kubernetes: {authorities: {config_map: ours}}\n"


def gateway(text: str, env: dict[str, str] | None = None, domain: str | None = None) -> Any:
    """The gateway's service."""
    return services(text, env, domain)["gateway"]


def targets(service: Any) -> list[str]:
    """Where the service mounts something."""
    return [mount["target"] if isinstance(mount, dict) else mount.partition(":")[2] for mount in service["volumes"]]


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        pytest.param(BACKEND, None, id="the least"),
        pytest.param(BACKEND, "api.example.com", id="behind Caddy"),
        pytest.param(BACKEND + TLS, None, id="TLS in the gateway"),
        pytest.param(ALL, None, id="everything"),
        pytest.param(ALL, "api.example.com", id="everything, behind Caddy"),
        pytest.param(
            BACKEND + "auth: {enabled: false}\nmonitoring: {prometheus: false}\n", None, id="no keys, no metrics"
        ),
    ],
)
def test_files_are_sound(text: str, domain: str | None) -> None:
    """Known fields only, in their forms; every volume, secret and service that is named exists."""
    made = yaml.safe_load(compose_text(compose_plan(text, {"P": "x"}, domain), "aiaas.yaml"))
    assert compose_model.findings(made) == []


def test_the_gateway_has_no_rights_that_it_does_not_need() -> None:
    """As its pod in a cluster: no root, no capabilities, nothing to write to but /tmp."""
    made = gateway(BACKEND)
    assert made["user"] == "${AIAAS_UID:-10001}:${AIAAS_GID:-10001}"
    assert (made["read_only"], made["cap_drop"], made["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert made["deploy"]["resources"]["limits"] == {"cpus": "1", "memory": "512m"}
    assert all(mount["read_only"] for mount in made["volumes"])
    assert made["tmpfs"] == ["/tmp:size=64m"]


def test_the_gateway_has_the_time_that_its_drain_needs() -> None:
    """A shorter stop_grace_period would cut answers that drain_timeout lets finish."""
    assert gateway(BACKEND + "server: {drain_timeout: 2m}\n")["stop_grace_period"] == "130s"
    assert services(BACKEND, domain="a.b")["caddy"]["stop_grace_period"] == gateway(BACKEND)["stop_grace_period"]


def test_descriptors_suffice_for_all_connections() -> None:
    """Each request has a connection of the client's and one to vLLM."""
    assert gateway(BACKEND)["ulimits"] == {"nofile": 65536}
    assert gateway(BACKEND + "server: {max_connections: 50000}\n")["ulimits"] == {"nofile": 200000}


@pytest.mark.parametrize(
    ("text", "domain", "ports"),
    [
        pytest.param("server: {port: 8081}\n", None, ["8081:8081", "127.0.0.1:9090:9090"], id="everywhere"),
        pytest.param("server: {host: 127.0.0.1}\n", None, ["127.0.0.1:8080:8080", "127.0.0.1:9090:9090"], id="here"),
        pytest.param("server: {host: 'fd00::7'}\n", None, ["[fd00::7]:8080:8080", "127.0.0.1:9090:9090"], id="IPv6"),
        pytest.param("monitoring: {metrics_port: 9100}\n", "a.b", ["127.0.0.1:9100:9100"], id="behind Caddy"),
    ],
)
def test_ports_are_published_as_the_config_says(text: str, domain: str | None, ports: list[str]) -> None:
    """Metrics on this machine only; behind Caddy only Caddy reaches the gateway."""
    assert gateway(BACKEND + text, domain=domain)["ports"] == ports


def test_gateway_without_ports_publishes_none() -> None:
    """Behind Caddy, and without metrics."""
    assert "ports" not in gateway(BACKEND + "monitoring: {prometheus: false}\n", domain="a.b")


def test_files_are_mounted_by_their_folders() -> None:
    """A single mounted file would stay the old one when `aiaas keys` replaces it by a rename."""
    assert targets(gateway(BACKEND)) == ["/etc/aiaas/config", "/etc/aiaas/keys"]
    assert targets(gateway(BACKEND + "auth: {enabled: false}\n")) == ["/etc/aiaas/config"]
    assert targets(gateway(BACKEND + TLS)) == ["/etc/aiaas/config", "/etc/aiaas/keys", "/etc/aiaas/tls"]
    made = gateway(ALL, {"P": "x"})
    assert targets(made)[2:] == ["/etc/aiaas/authorities", "/var/lib/aiaas"]
    assert made["environment"]["SSL_CERT_FILE"] == "/etc/aiaas/authorities/ca.crt"


def test_variables_are_named_and_never_shown() -> None:
    """Compose takes the values from .env, and stops without them."""
    plan = compose_plan(KEYED, {"VLLM_KEY": "hunter2"})
    [variable] = compose_file(plan)["services"]["gateway"]["environment"].items()
    assert variable == ("VLLM_KEY", "${VLLM_KEY:?write it into .env (.env.example lists all variables)}")
    assert environment_example(plan).endswith("AIAAS_GID=10001\n\nVLLM_KEY=\n")
    assert "hunter2" not in "".join(compose_files(plan, "aiaas.yaml", "keys: []\n").values())
    assert "environment" not in gateway(BACKEND)


def test_plain_variable_has_its_value() -> None:
    """Not from .env; a `$` in it stays one."""
    text = (
        "backends: {vllm: {url: 'http://${HOST}:8000', models: [m]}}\n"
        "kubernetes: {env: {HOST: {value: 'a.b'}, V: {value: 'x$y'}}}\n"
        "monitoring: {traces: {endpoint: 'http://c:4318', headers: {A: '${V}'}}}\n"
    )
    plan = compose_plan(text, {"HOST": "a.b", "V": "x$y"})
    assert compose_file(plan)["services"]["gateway"]["environment"] == {"HOST": "a.b", "V": "x$$y"}
    assert "HOST" not in environment_example(plan)


def test_gateway_serves_while_an_engine_loads() -> None:
    """It starts behind engines and store, so that it stops before them, but waits for neither."""
    depends = gateway(ENGINE + STORE, {"P": "x"})["depends_on"]
    assert depends == {name: {"condition": "service_started", "required": False} for name in ("redis", "engine-qwen")}
    assert "depends_on" not in gateway(BACKEND)


def test_health_is_asked_without_curl() -> None:
    """The image has Python and no curl; under TLS no certificate is for 127.0.0.1."""
    plain = gateway(BACKEND + "server: {port: 8081}\n")["healthcheck"]["test"]
    assert plain[:3] == ["CMD", "python", "-c"]
    assert "urlopen('http://127.0.0.1:8081/health'" in plain[3]
    compile(plain[3], "healthcheck", "exec")
    under_tls = gateway(BACKEND + TLS)["healthcheck"]["test"][3]
    assert "urlopen('https://127.0.0.1:8080/health'" in under_tls
    assert "_create_unverified_context" in under_tls
    compile(under_tls, "healthcheck", "exec")


def test_unnamed_image_is_not_pulled() -> None:
    """No registry has it; a name of ours there would be somebody else's."""
    assert gateway(BACKEND)["pull_policy"] == "never"
    named = gateway(BACKEND + "kubernetes: {image: 'r/aiaas:1'}\n")
    assert (named["image"], "pull_policy" in named) == ("r/aiaas:1", False)


def test_fresh_volumes_are_given_to_the_user() -> None:
    """Docker makes them root's, and neither gateway nor engine is root."""
    owner = services(ENGINE + USAGE)["volume-owner"]
    assert owner["command"] == ["/volumes/gateway-data", "/volumes/engine-qwen-cache"]
    assert (owner["entrypoint"][0], owner["cap_add"], owner["network_mode"]) == ("chown", ["CHOWN"], "none")
    finished = {"condition": "service_completed_successfully"}
    assert gateway(BACKEND + USAGE)["depends_on"] == {"volume-owner": finished}
    assert "volume-owner" not in services(BACKEND)


def test_machine_is_known_where_the_config_names_it() -> None:
    """Docker resolves host.docker.internal on Linux only then."""
    text = BACKEND.replace("10.0.0.7", "host.docker.internal")
    assert gateway(text)["extra_hosts"] == ["host.docker.internal:host-gateway"]
    assert "extra_hosts" not in gateway(BACKEND)


def test_store_keeps_its_counts_and_its_password() -> None:
    """On disk, never evicted; the password is not on the command line."""
    made = services(BACKEND + STORE, {"P": "hunter2"})["redis"]
    command = made["command"][-1]
    assert "--port 7000 --dir /data --appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert 'requirepass "$$REDISCLI_AUTH"' in command
    assert made["environment"] == {"REDISCLI_AUTH": "${P:?write it into .env (.env.example lists all variables)}"}
    assert made["volumes"] == ["redis-data:/data"]
    assert "ports" not in made


def test_store_without_a_password_asks_for_none() -> None:
    """Only containers of this file reach it."""
    made = services(BACKEND + "rate_limit: {store: 'redis://redis:6379/0'}\n")["redis"]
    assert "requirepass" not in made["command"][-1]
    assert "environment" not in made
    assert "redis" not in services(BACKEND + "rate_limit: {store: 'redis://10.0.0.8/0'}\n")


def test_caddy_is_in_front_only_for_a_domain() -> None:
    """With the ports of HTTPS, HTTP/3 and the certificate's challenge."""
    caddy = services(BACKEND, domain="a.b")["caddy"]
    assert caddy["ports"] == ["80:80", "443:443", "443:443/udp"]
    assert caddy["cap_add"] == ["NET_BIND_SERVICE"]
    assert list(caddy["depends_on"]) == ["gateway"]
    assert "caddy" not in services(BACKEND)


@pytest.mark.parametrize(
    ("text", "domain", "keys", "expected"),
    [
        pytest.param(BACKEND, None, "keys: []\n", {"keys/keys.yaml"}, id="keys"),
        pytest.param(BACKEND, None, None, {"keys/"}, id="no keys yet"),
        pytest.param(BACKEND + "auth: {enabled: false}\n", None, None, set(), id="without authentication"),
        pytest.param(BACKEND + TLS, None, "keys: []\n", {"keys/keys.yaml", "tls/"}, id="TLS"),
        pytest.param(BACKEND, "a.b", "keys: []\n", {"keys/keys.yaml", "caddy/Caddyfile"}, id="Caddy"),
        pytest.param(engine(env="{HF_TOKEN: '${T}'}"), None, None, {"keys/", "secrets/"}, id="a token"),
        pytest.param(
            BACKEND + "kubernetes: {authorities: {secret: s}}\n",
            None,
            None,
            {"keys/", "authorities/"},
            id="authorities",
        ),
    ],
)
def test_folder_holds_what_is_mounted(text: str, domain: str | None, keys: str | None, expected: set[str]) -> None:
    """Each file says that it was made, so that a later rendering may replace it."""
    files = compose_files(compose_plan(text, {"T": "x"}, domain), "aiaas.yaml", keys)
    assert files.keys() == {"compose.yaml", "config/config.yaml", ".env.example"} | expected
    assert all(made.startswith(COMPOSE_MARK) for name, made in files.items() if not name.endswith("/"))
    mounts = [mount for mount in gateway(text, {"T": "x"}, domain)["volumes"] if isinstance(mount, dict)]
    assert {mount["source"] for mount in mounts} <= {f"./{name.partition('/')[0]}" for name in files}


def test_config_in_the_folder_is_the_one_of_the_plan() -> None:
    """Loaded where it is mounted it compiles to the Plan that was rendered."""
    plan = compose_plan(BACKEND + "server: {host: 127.0.0.1}\n")
    text = compose_files(plan, "aiaas.yaml", None)["config/config.yaml"]
    config = load_text(text, file="config.yaml", env={}).config
    assert config is not None
    assert config.server.host == "0.0.0.0"
    assert text.endswith(plan.config_text)
