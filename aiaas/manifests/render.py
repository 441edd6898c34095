"""KubernetesPlan -> objects -> bytes. The table below is the whole of it, in the order in which it is applied: what
others refer to comes first, so that one `kubectl apply` of the stream goes through in one go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from aiaas import __version__
from aiaas.config.write import to_yaml
from aiaas.manifests import gateway
from aiaas.manifests.objects import Object
from aiaas.plan.kubernetes import KubernetesPlan

# Every kind that there may be, in the order of application.
KINDS: Final = (
    "Namespace",
    "ServiceAccount",
    "ConfigMap",
    "Secret",
    "Service",
    "Deployment",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
)
MARK: Final = "# Made by `aiaas render`"


def render(plan: KubernetesPlan, keys_text: str | None) -> tuple[Object, ...]:
    """Every object of a plan, in the order of application.

    keys_text  the text of the key file; None where the Secret is somebody else's
    """
    return tuple(sorted(_objects(plan, keys_text), key=lambda made: KINDS.index(made["kind"])))


def _objects(plan: KubernetesPlan, keys_text: str | None) -> Iterator[Object]:
    settings = plan.settings
    if settings.create_namespace:
        yield gateway.namespace(plan)
    yield gateway.service_account(plan)
    yield gateway.config_map(plan)
    if keys_text is not None:
        yield gateway.keys_secret(plan, keys_text)
    yield gateway.service(plan)
    yield gateway.deployment(plan)
    yield gateway.disruption_budget(plan)
    if gateway.has_autoscaler(plan):
        yield gateway.autoscaler(plan)


def origin(plan: KubernetesPlan, source: str) -> str:
    """The comment on top: what it was made from. `source` is the config's file name; no time, so that the same config
    gives the same bytes."""
    return f"{MARK} (aiaas {__version__}) from {source}, config digest {plan.gateway.digest}: change that, not this.\n"


def to_stream(objects: Iterable[Object], comment: str) -> str:
    """One YAML stream for `kubectl apply -f -`."""
    return comment + "".join(f"---\n{to_yaml(made)}" for made in objects)
