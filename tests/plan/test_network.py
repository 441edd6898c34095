"""The peers of a NetworkPolicy, guessed from a host name or configured."""

from __future__ import annotations

import pytest

from aiaas.config.backend import Network
from aiaas.plan.network import ANYWHERE, Edge, edge_to

TOLD = Network(namespace="gpu", pod_labels={"app": "vllm"}, port=9000)


@pytest.mark.parametrize(
    ("host", "tls", "expected"),
    [
        pytest.param("vllm", False, Edge((80,), "own"), id="a Service beside us"),
        pytest.param("vllm.system", False, Edge((80,), "system"), id="the plan's form"),
        pytest.param("vllm.system.svc", False, Edge((80,), "system"), id="with svc"),
        pytest.param("vllm.system.svc.cluster.local.", True, Edge((80,), "system"), id="in full, by TLS"),
        pytest.param("example.com", True, Edge((80,), networks=ANYWHERE), id="two labels by TLS"),
        pytest.param("api.example.com", False, Edge((80,), networks=ANYWHERE), id="a host outside"),
        pytest.param("192.0.2.7", False, Edge((80,), networks=("192.0.2.7/32",)), id="an address"),
        pytest.param("2001:db8::1", False, Edge((80,), networks=("2001:db8::1/128",)), id="an IPv6 address"),
    ],
)
def test_a_host_name_tells_where_the_pods_are(host: str, tls: bool, expected: Edge) -> None:
    """Names of Services lead to pods of a namespace, all others to addresses."""
    assert edge_to(host, 80, Network(), own_namespace="own", tls=tls) == expected


def test_configured_network_wins() -> None:
    """Namespace, labels and the pods' own port are in the config where a Service maps them."""
    expected = Edge((9000,), "gpu", (("app", "vllm"),))
    assert edge_to("api.example.com", 443, TOLD, own_namespace="own", tls=True) == expected
    assert edge_to("192.0.2.7", 443, TOLD, own_namespace="own") == expected


def test_labels_alone_mean_pods_of_the_guessed_namespace_or_ours() -> None:
    """An address with labels is a pod's; without a namespace in its name it is one in our own."""
    labels = Network(pod_labels={"app": "vllm"})
    assert edge_to("vllm.gpu", 80, labels, own_namespace="own").namespace == "gpu"
    assert edge_to("192.0.2.7", 80, labels, own_namespace="own") == Edge((80,), "own", (("app", "vllm"),))
