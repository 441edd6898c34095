"""A real kube-apiserver with its etcd, as envtest starts them: no nodes and no controllers, so an object is stored,
defaulted, admitted and never acted upon.

The binaries are those of the folder `KUBEBUILDER_ASSETS` (`setup-envtest use -p env` downloads them).
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

from tests.ports import free_port

TOKEN = "for-this-test-only"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
STARTS_WITHIN = 60.0  # seconds
# Where the objects of a kind are. The kinds of operators are not there.
PATHS = {
    "Namespace": ("/api/v1", "namespaces"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Service": ("/api/v1", "services"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Ingress": ("/apis/networking.k8s.io/v1", "ingresses"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the server: the object or its Status, and the warnings that `kubectl` would print."""

    status: int
    body: dict[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Its address."""

    url: str

    def apply(self, made: dict[str, Any], *, dry_run: bool = False) -> Answer:
        """Server-side apply with strict validation, as `kubectl apply --server-side` does it."""
        root, plural = PATHS[made["kind"]]
        metadata = made["metadata"]
        inside = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        query = "?fieldManager=test&force=true&fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self._send("PATCH", f"{root}{inside}/{plural}/{metadata['name']}{query}", made)

    def make_namespace(self, name: str) -> None:
        """A namespace in which Pod Security `restricted` is enforced, and warned of."""
        answer = self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
        assert answer.status in (200, 201), answer

    def is_ready(self) -> bool:
        """Whether it answers, and has made what it makes for itself."""
        try:
            return (
                self._send("GET", "/readyz").status == 200
                and self._send("GET", "/api/v1/namespaces/default").status == 200
            )
        except URLError:
            return False

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/apply-patch+yaml"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        trust = ssl.create_default_context()
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE  # it has made its own certificate
        try:
            with urllib.request.urlopen(request, timeout=30, context=trust) as got:
                status, text, warnings = got.status, got.read(), got.headers.get_all("Warning")
        except HTTPError as error:
            with error:
                status, text, warnings = error.code, error.read(), error.headers.get_all("Warning")
        found = json.loads(text) if text.startswith(b"{") else {"text": text.decode()}
        return Answer(status, found, tuple(warnings or ()))


@contextmanager
def api_server(assets: Path, folder: Path) -> Iterator[ApiServer]:
    """Start both on 127.0.0.1, with everything that they write below `folder`, and stop them."""
    client_url, peer_url, port = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}", free_port()
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n", encoding="utf-8")
    key = folder / "service-accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    etcd = [
        f"{assets}/etcd",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        "--unsafe-no-fsync",
    ]
    server = [
        f"{assets}/kube-apiserver",
        f"--etcd-servers={client_url}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder}/certificates",
        f"--token-auth-file={folder}/tokens.csv",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",  # wants the tokens that a controller makes
        "--endpoint-reconciler-type=none",
    ]
    with (folder / "log").open("wb") as log, _process(etcd, log.fileno()), _process(server, log.fileno()) as process:
        found = ApiServer(f"https://127.0.0.1:{port}")
        until = time.monotonic() + STARTS_WITHIN
        while not found.is_ready():
            said = (folder / "log").read_text()[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.2)
        yield found
    shutil.rmtree(folder)  # etcd keeps the hashes of the examples' keys


@contextmanager
def _process(command: list[str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]}) as process:
        try:
            yield process
        finally:
            process.kill()  # it would wait a minute for its watchers
