"""The hops that a request passes, and which of them gives up first."""

from __future__ import annotations

import pytest

from aiaas.config.chain import Hop, chain, largest_body, weakest
from aiaas.config.load import load_text
from aiaas.config.model import Config

MIB = 1024**2


def config_of(kubernetes: str, server: str = "{}") -> Config:
    """A config whose gateway may be silent for 135 s (three connections of 5 s, then 120 s)."""
    text = f"server: {server}\nbackends:\n  v: {{url: 'http://v:8000', models: [m]}}\nkubernetes: {kubernetes}\n"
    loaded = load_text(text, file="f", env={})
    assert loaded.config is not None, loaded.problems
    return loaded.config


def annotated(text: str, class_name: str = "nginx") -> Config:
    """The same behind an Ingress with these annotations."""
    return config_of(f"{{ingress: {{class: {class_name}, annotations: {{{text}}}}}}}")


def test_derived_timeouts_grow_outwards() -> None:
    """The ingress waits ten seconds longer than the gateway at its worst, for a body twice as large."""
    hops = chain(config_of("{}"))
    assert [(hop.name, hop.silence, hop.body) for hop in hops] == [
        ("client", 600.0, None),
        ("ingress (nginx)", 429.0, 64 * MIB),
        ("gateway", 165.0, 32 * MIB),
        ("vLLM", None, None),
    ]
    assert weakest(hops) == (hops[1], "waits 264s longer than the gateway")


@pytest.mark.parametrize(
    ("endpoints", "server", "expected"),
    [
        ("[/v1/audio/transcriptions]", "{}", 32 * MIB),
        ("[/v1/audio/transcriptions]", "{max_upload_size: 1MiB}", 10 * MIB),
        ("[/v1/chat/completions]", "{max_upload_size: 1GiB}", 10 * MIB),
    ],
    ids=["forms with files", "small files", "none"],
)
def test_hops_let_the_largest_form_through(endpoints: str, server: str, expected: int) -> None:
    """Where a backend takes forms with files, and they may be larger than other bodies."""
    text = f"server: {server}\nbackends: {{v: {{url: 'http://v:8000', models: [m], endpoints: {endpoints}}}}}\n"
    loaded = load_text(text, file="f", env={})
    assert loaded.config is not None, loaded.problems
    assert largest_body(loaded.config) == expected
    assert {hop.body for hop in chain(loaded.config)} == {expected, 2 * expected, None}


@pytest.mark.parametrize(
    ("config", "hop", "what"),
    [
        pytest.param(
            annotated("nginx.ingress.kubernetes.io/proxy-read-timeout: '60'"),
            "ingress (nginx)",
            "gives up 105s before the gateway",
            id="the operator's own timeout",
        ),
        pytest.param(
            annotated("nginx.ingress.kubernetes.io/proxy-body-size: 1m"),
            "ingress (nginx)",
            "rejects bodies over 1MiB that the gateway would accept",
            id="the operator's own body size",
        ),
        pytest.param(
            annotated("haproxy-ingress.github.io/timeout-server: 2m", "haproxy"),
            "ingress (haproxy)",
            "gives up 45s before the gateway",
            id="one of two controllers of a name",
        ),
        pytest.param(annotated("", "traefik"), "client", "waits 435s longer than the gateway", id="no bound in front"),
        pytest.param(config_of("{expose: none}"), "client", "waits 435s longer than the gateway", id="not exposed"),
    ],
)
def test_the_hop_that_gives_up_first_is_named(config: Config, hop: str, what: str) -> None:
    """A body that is refused comes before a wait that is short."""
    found = weakest(chain(config))
    assert found is not None
    assert (found[0].name, found[1]) == (hop, what)


@pytest.mark.parametrize("expose", ["gateway", "loadbalancer"])
def test_unknown_hops_have_no_bound(expose: str) -> None:
    """A Gateway's implementation and a cloud's load balancer have limits of their own."""
    hops = chain(config_of(f"{{expose: {expose}}}"))
    assert [(hop.silence, hop.body) for hop in hops[1:-2]] == [(None, None)]
    assert weakest((Hop("gateway", 1.0, 1),)) is None


def test_the_heartbeat_stands_beside_the_gateway() -> None:
    """Comments keep a silent stream alive on the way."""
    assert "every 15 s" in chain(config_of("{}"))[-2].remark
    assert "no heartbeat" in chain(config_of("{}", "{heartbeat: 0}"))[-2].remark
