"""The paths of the API that an engine does not have: learnt from its answers, and used to ask another one.

vLLM has the paths of its model only: a text model has no `/v1/embeddings`, and an older vLLM no `/v1/messages`. This
knowledge decides which endpoint is asked first. Where every endpoint lacks a path, one is asked all the same, and its
404 becomes the client's error: a stale list never refuses a request.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiaas.errors import ClientError
from aiaas.plan.model import RouteTarget
from aiaas.proxy.upstream.attempt import LACKS_PATH, Again, Outcome, may_try_again
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.endpoint import EndpointState

Offers = Sequence[tuple[RouteTarget, BackendState]]


def offering(targets: Offers, path: str) -> Offers:
    """The targets of which an endpoint may have `path`; all of them if there is none."""
    return [at for at in targets if any(path not in e.lacks for e in at[1].endpoints)] or targets


def try_again(outcome: Outcome, endpoint: EndpointState, targets: Offers, path: str) -> Again | None:
    """As `may_try_again`; where the engine does not have the path, only if another endpoint may have it."""
    again = may_try_again(outcome)
    if again is None or again.reason != LACKS_PATH:
        return again
    learn(endpoint, endpoint.lacks | {path})
    others = (e for _, backend in targets for e in backend.endpoints)
    return again if any(e.up and path not in e.lacks for e in others) else None


def learn(endpoint: EndpointState, lacks: frozenset[str]) -> None:
    """Note the paths that an endpoint's engine lacks."""
    if lacks != endpoint.lacks:
        endpoint.lacks = lacks
        for backend in {endpoint.backend, *endpoint.users}:
            backend.compare_paths()


def engine_lacks(path: str) -> ClientError:
    """404 for a path that is offered, but that the engine does not have."""
    return ClientError(404, "not_offered", f"The engine of this model does not have {path}.")
