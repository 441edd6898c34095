"""Rules about backends behind a Service: each fires where it should, and not where it need not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from aiaas.config.check import check
from aiaas.config.load import load_text

POLICY = "W AIA509"
ADDRESS = "W AIA203"


def found(backend: dict[str, Any], **kubernetes: Any) -> list[str]:
    """The problems of one backend in a cluster: letter of the severity, code and field."""
    config = {
        "backends": {"v": {"models": ["m"]} | backend},
        "rate_limit": {"store": "redis://redis:6379"},
        "kubernetes": {"image": "r/a:1", "expose": "none", "namespace": "own"} | kubernetes,
    }
    loaded = load_text(yaml.safe_dump(config), file="f", env={})
    assert not loaded.problems
    return [f"{each.severity[0].upper()} {each.code} {each.path}" for each in check(loaded, {})]


@pytest.mark.parametrize(
    ("backend", "problems"),
    [
        ({"url": "http://vllm"}, [f"{POLICY} backends.v.url"]),
        ({"url": "http://vllm.gpu:80"}, [f"{POLICY} backends.v.url"]),
        ({"url": "https://vllm.gpu.svc"}, [f"{POLICY} backends.v.url"]),
        ({"urls": ["http://a:8000", "http://b"]}, [f"{POLICY} backends.v.urls[1]"]),
        ({"dns": "vllm.gpu:80"}, [f"{POLICY} backends.v.dns"]),
        ({"url": "http://vllm:8000"}, []),
        ({"url": "http://vllm", "network": {"port": 8000}}, []),
        ({"url": "http://vllm", "network": {"port": 80}}, []),
        ({"url": "https://llm.example.com"}, []),
        ({"url": "http://192.0.2.7"}, []),
    ],
    ids=["80", "written out", "443", "one of two", "by DNS", "8000", "said", "said to be 80", "outside", "an address"],
)
def test_a_services_port_is_not_its_pods(backend: dict[str, Any], problems: list[str]) -> None:
    """The policy would block it, and nothing else says so."""
    assert found(backend) == problems


def test_without_a_policy_the_port_is_free() -> None:
    """Nothing is blocked then."""
    told = found({"url": "http://vllm"}, network_policy={"enabled": False})
    assert told == [f"{POLICY} kubernetes.network_policy.enabled"]


@pytest.mark.parametrize(
    ("url", "namespace", "problems"),
    [
        ("http://vllm.gpu:8000", "gpu", []),
        ("http://vllm.gpu:8000", "cpu", [f"{POLICY} backends.v.network.namespace"]),
        ("http://vllm.gpu.svc.cluster.local:8000", "cpu", [f"{POLICY} backends.v.network.namespace"]),
        ("http://vllm:8000", "gpu", []),
        ("https://llm.example.com", "gpu", []),
    ],
    ids=["the same", "another", "another, by its whole name", "a name without one", "outside"],
)
def test_the_namespace_is_that_of_the_url(url: str, namespace: str, problems: list[str]) -> None:
    """A short name may be an ExternalName to anywhere."""
    assert found({"url": url, "network": {"namespace": namespace}}) == problems


@pytest.mark.parametrize(
    ("host", "problems"),
    [
        ("vllm.gpu.svc.cluster", [f"{ADDRESS} backends.v.url"]),
        ("vllm.gpu.svc.cluster.local", []),
        ("vllm.gpu.svc", []),
        ("svc.cluster.example", []),
    ],
)
def test_the_clusters_domain_is_written_whole(host: str, problems: list[str]) -> None:
    """`.local` belongs to it."""
    assert found({"url": f"http://{host}:8000"}) == problems
