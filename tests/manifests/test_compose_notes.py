"""The notes for the operator of a compose file."""

from __future__ import annotations

import pytest

from aiaas.manifests.compose_notes import compose_notes
from tests.manifests.composing import BACKEND, ENGINE, compose_plan, engine

QUIET = "kubernetes: {image: 'r/aiaas:1'}\n"
HERE = "server: {host: 127.0.0.1}\n"


def notes(text: str, domain: str | None = None) -> str:
    """All notes, a line each."""
    return "\n".join(compose_notes(compose_plan(text, {"T": "x"}, domain)))


def test_config_without_surprises_has_no_notes() -> None:
    """A note that always comes is not read."""
    assert notes(BACKEND + HERE + QUIET) == ""


@pytest.mark.parametrize(
    ("text", "domain", "said"),
    [
        pytest.param(BACKEND + HERE, None, "build it from a checkout (docker build -t aiaas:", id="no image"),
        pytest.param(BACKEND + QUIET, None, "port 8080 speaks plain HTTP to everybody", id="open without TLS"),
        pytest.param(BACKEND + QUIET, "a.b", "Caddy gets a certificate for a.b once", id="Caddy"),
        pytest.param(
            BACKEND + QUIET + "server: {tls: {cert_file: a, key_file: b}}\n",
            None,
            "put the certificate chain and its key into tls/, as tls.crt and tls.key",
            id="certificates",
        ),
        pytest.param(
            BACKEND + HERE + "kubernetes: {image: 'r/a:1', authorities: {secret: s, key: ours.pem}}\n",
            None,
            "put the certificate authorities into authorities/, as ours.pem",
            id="authorities",
        ),
        pytest.param(
            engine(env="{HF_TOKEN: '${T}'}") + HERE + QUIET,
            None,
            "put the Hugging Face token into the file secrets/T",
            id="token",
        ),
        pytest.param(
            BACKEND + HERE + QUIET + "rate_limit: {store: 'redis://redis.data:6379/0'}\n",
            None,
            "the store redis://redis.data:6379/0 is not in this file",
            id="store elsewhere",
        ),
        pytest.param(
            BACKEND.replace("http:", "https:").replace("[m]", "[m], tls: {ca_file: ca.pem}") + HERE + QUIET,
            None,
            "put the certificate authorities into authorities/, as ca.pem",
            id="a backend's authority",
        ),
        pytest.param(
            BACKEND
            + HERE
            + QUIET
            + "rate_limit: {store: 'rediss://r.data:6379/0?ssl_certfile=a.pem&ssl_keyfile=a.key'}\n",
            None,
            "put a.pem, which the store's address names, into config/",
            id="the store's certificate",
        ),
        pytest.param(
            BACKEND + HERE + QUIET + "rate_limit: {store: 'rediss://r.data:6379/0?ssl_ca_certs=ca.pem'}\n",
            None,
            "put the certificate authorities into authorities/, as ca.pem",
            id="the store's authority",
        ),
        pytest.param(
            BACKEND.replace("10.0.0.7", "vllm") + HERE + QUIET,
            None,
            "vllm (backends.vllm) is not in this file: attach its container to the network api-router_default",
            id="a container of another file",
        ),
        pytest.param(ENGINE + HERE + QUIET, None, "the machine needs 1 GPU and the NVIDIA Container", id="GPUs"),
        pytest.param(
            engine(pod="{gpu_resource: amd.com/gpu}") + HERE + QUIET,
            None,
            "engine-qwen: aiaas cannot reserve amd.com/gpu by Docker",
            id="GPUs of another maker",
        ),
        pytest.param(
            BACKEND + HERE + "kubernetes: {image: 'r/a:1', host: a.b, replicas: {max: 4}}\n",
            None,
            "have no effect here: kubernetes.host, kubernetes.replicas\n"
            "without kubernetes.replicas: one gateway runs, and has all of every limit",
            id="fields of a cluster",
        ),
        pytest.param(
            engine(pod="{storage: 1Ti, gpus: 1}") + HERE + QUIET,
            None,
            "have no effect here: the engine's pod.storage",
            id="fields of an engine's pod",
        ),
    ],
)
def test_each_thing_to_do_is_said_once(text: str, domain: str | None, said: str) -> None:
    """In plain words, and only where it applies (the test above has none of them)."""
    assert notes(text, domain).count(said) == 1


def test_gpus_of_several_engines_are_listed() -> None:
    """The operator sees which engine has which."""
    two = "a: {engine: {kind: vllm, pod: {gpus: 2}}, models: [a]}, b: {engine: {kind: vllm}, models: [b]}"
    text = f"backends: {{{two}}}\n"
    assert "the machine needs 3 GPUs (engine-a 0, 1; engine-b 2) and" in notes(text)
