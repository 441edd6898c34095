"""The timeouts that a hop in front of the gateway needs: timeouts grow outwards, vLLM < gateway < ingress < client.

Pure arithmetic over the config, for the manifests that set a hop's timeout and for the rules that check it.
"""

from __future__ import annotations

import math
from typing import Final

from aiaas.config.backend import Backend
from aiaas.config.kubernetes import Kubernetes
from aiaas.config.model import Config

MARGIN: Final = 10.0  # seconds; aiaas's own answer (503, 504) has to arrive before the hop in front gives up
UNBOUNDED_SECONDS: Final = 0  # Gateway API writes an unbounded timeout as `0s`
# Seconds between a pod's removal from the endpoints and SIGTERM: every proxy has to hear of the removal.
PRE_STOP: Final = 10
# Seconds behind a cloud's load balancer, which notices by three failed health checks, ten seconds apart.
PRE_STOP_BALANCER: Final = 40
# Seconds between two attempts: the longest Retry-After that aiaas waits for, and the longest backoff.
LONGEST_PAUSE: Final = 7.0
AFTER_DRAIN: Final = 10  # seconds to close open connections, and to exit


def usual_silence(config: Config) -> float:
    """Return the longest silence, in seconds, of a request that is sent to vLLM once, over all enabled backends.

    That is the time to the first byte of the answer: the wait in the queue, the failed connections, then `timeout`.
    The silence between two bytes of a stream is not longer (without counting heartbeats).
    """
    return max((_usual(backend) for backend in _enabled(config)), default=0.0)


def longest_silence(config: Config) -> float:
    """Return the longest silence, in seconds, of a request whose every attempt fails at its last moment.

    It counts all attempts that `aiaas.proxy.upstream.forward` makes: an engine dies after a minute's work, a load
    balancer rejects after its own timeout, and aiaas waits for each `Retry-After`.
    """
    return max((_longest(backend, _standing_in(backend, config)) for backend in _enabled(config)), default=0.0)


def pre_stop(config: Config) -> int:
    """Return the seconds for which a gateway's pod goes on accepting connections after its deletion."""
    return PRE_STOP_BALANCER if by_balancer(config.kubernetes) else PRE_STOP


def grace_period(drain_timeout: float, *, before: int) -> int:
    """Return the seconds from the order to stop a gateway to its end at the latest, rounded up.

    before  seconds that pass before the gateway learns of it (`pre_stop` in a cluster)
    """
    return before + math.ceil(drain_timeout) + AFTER_DRAIN


def by_balancer(settings: Kubernetes) -> bool:
    """Return whether clients come through a cloud's load balancer, which runs outside of the cluster."""
    ingress = settings.ingress
    outside = any(controller.outside for controller in ingress.controllers())
    return settings.expose == "loadbalancer" or (settings.expose == "ingress" and outside)


def ingress_timeout(config: Config) -> int:
    """Return the seconds of silence that a hop in front must allow, rounded up."""
    return math.ceil(longest_silence(config) + MARGIN)


def request_timeout(config: Config) -> int:
    """Return the seconds that a whole request may take at a hop that bounds whole requests.

    UNBOUNDED_SECONDS if any backend is without a `total_timeout`: aiaas never cuts a stream that keeps sending.
    """
    bounds = [backend.total_timeout for backend in config.backends.values() if backend.enabled]
    known = [bound for bound in bounds if bound is not None]
    if not known or len(known) < len(bounds):
        return UNBOUNDED_SECONDS
    return math.ceil(max(known) + MARGIN)


def _enabled(config: Config) -> list[Backend]:
    return [backend for backend in config.backends.values() if backend.enabled]


def _usual(backend: Backend) -> float:
    silence = _queue(backend) + backend.connect_timeout * (backend.max_retries + 1) + backend.timeout
    return silence if backend.total_timeout is None else min(silence, backend.total_timeout)


def _longest(first: Backend, standing_in: list[Backend]) -> float:
    """Return the longest silence of requests whose first choice is `first`: its timeouts apply at every backend that
    the attempts reach."""
    retries = max(backend.max_retries for backend in standing_in)
    attempt = max(backend.connect_timeout for backend in standing_in) + first.timeout
    silence = max(map(_queue, standing_in)) + attempt * (retries + 1) + LONGEST_PAUSE * retries
    return silence if first.total_timeout is None else min(silence, first.total_timeout)


def _standing_in(first: Backend, config: Config) -> list[Backend]:
    """Return `first` and the backends that share a model's name with it."""
    names = _names(first)
    return [backend for backend in _enabled(config) if names & _names(backend)]


def _names(backend: Backend) -> set[str]:
    return {name for model in backend.served() for name in (model.name, *model.aliases)}


def _queue(backend: Backend) -> float:
    return backend.queue.max_wait if backend.max_inflight is not None else 0.0
