"""KubernetesPlan -> objects -> bytes.

Objects come in the order of MANIFEST_KINDS, referenced objects first, so that one `kubectl apply` of the stream
succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from aiaas import __version__
from aiaas.config.write import to_yaml
from aiaas.manifests import controllers, engine, expose, gateway, monitoring, network
from aiaas.manifests.objects import Object
from aiaas.manifests.patches import Patched, patched
from aiaas.plan.kubernetes import EngineDeployment, KubernetesPlan

# All kinds of objects, in the order of application.
MANIFEST_KINDS: Final = (
    "Namespace",
    "ServiceAccount",
    "ConfigMap",
    "Secret",
    "PersistentVolumeClaim",
    "NetworkPolicy",  # before the pods that it guards
    "Service",
    "Deployment",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "BackendConfig",  # of GKE, as FrontendConfig
    "FrontendConfig",
    "Ingress",
    "HTTPRoute",
    "ServiceMonitor",
    "PrometheusRule",
)
MARK: Final = "# Made by `aiaas render`"


def render_manifests(plan: KubernetesPlan, keys_text: str | None) -> tuple[Object, ...]:
    """Every object of a plan, patched, in the order of application.

    keys_text  the text of the key file; None if the file is missing or aiaas does not render its Secret
    """
    return tuple(sorted(with_patches(plan, keys_text).objects, key=lambda made: _place_of(made["kind"])))


def with_patches(plan: KubernetesPlan, keys_text: str | None) -> Patched:
    """The objects with the operator's patches and extra objects, and what is wrong with these."""
    return patched(plan, tuple(_objects(plan, keys_text)))


def _place_of(kind: str) -> float:
    """The place of a kind in the order of application; an extra object of another kind comes before the pods."""
    return MANIFEST_KINDS.index(kind) if kind in MANIFEST_KINDS else MANIFEST_KINDS.index("Deployment") - 0.5


def _objects(plan: KubernetesPlan, keys_text: str | None) -> Iterator[Object]:
    settings = plan.settings
    if settings.create_namespace:
        yield gateway.namespace(plan)
    yield gateway.service_account(plan)
    yield gateway.config_map(plan)
    if keys_text is not None:
        yield gateway.keys_secret(plan, keys_text)
    yield gateway.gateway_service(plan)
    yield gateway.gateway_deployment(plan)
    yield gateway.disruption_budget(plan)
    yield gateway.autoscaler(plan)
    yield from _exposed(plan)
    yield from _monitored(plan)
    for each in plan.engines:
        yield from _engine(plan, each)


def _exposed(plan: KubernetesPlan) -> Iterator[Object]:
    if plan.settings.network_policy.enabled:
        yield network.gateway_policy(plan)
    if plan.settings.expose == "ingress":
        yield expose.ingress(plan)
        if controllers.is_behind(plan, "gce"):
            yield from controllers.google_objects(plan)
    elif plan.settings.expose == "gateway":
        yield expose.http_route(plan)


def _monitored(plan: KubernetesPlan) -> Iterator[Object]:
    wanted = plan.settings.monitoring
    if wanted.service_monitor:
        yield monitoring.metrics_service(plan)
        yield monitoring.service_monitor(plan)
    if wanted.rules:
        yield monitoring.rules(plan)
    if wanted.dashboard:
        yield monitoring.dashboard(plan)


def _engine(plan: KubernetesPlan, each: EngineDeployment) -> Iterator[Object]:
    if each.pod.claim is None:
        yield engine.claim(plan, each)
    if plan.settings.network_policy.enabled:
        yield network.engine_policy(plan, each)
    yield engine.engine_service(plan, each)
    yield engine.engine_deployment(plan, each)


def _origin(source: str) -> str:
    """The comment that names the source. It has no time, so that the same config gives the same bytes."""
    return f"{MARK} (aiaas {__version__}) from {source}: change that, not this.\n"


def to_stream(plan: KubernetesPlan, objects: Iterable[Object], source: str) -> str:
    """One YAML stream for `kubectl apply -f -`, with the digest that the pods report. `source` is the config's file."""
    digest = f"# Config digest: {plan.gateway.digest}\n"
    return _origin(source) + digest + "".join(f"---\n{to_yaml(made)}" for made in objects)


def to_files(plan: KubernetesPlan, objects: Iterable[Object], source: str) -> dict[str, str]:
    """File name -> text: one file for each object, and the kustomization.yaml that lists them in the same order.

    A changed config changes as few files as possible: a ConfigMap named by its content keeps its file name, and no file
    holds the config's digest.
    """
    comment = _origin(source)
    names = {plan.config_name: plan.named("config")}
    files = {}
    for made in objects:
        name = made["metadata"]["name"]
        files[f"{made['kind'].lower()}-{names.get(name, name)}.yaml"] = comment + to_yaml(made)
    listing = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": list(files)}
    return files | {"kustomization.yaml": comment + to_yaml(listing)}
