"""How patient a hop in front of the gateway must be: timeouts grow outwards, vLLM < gateway < ingress < client.

Pure arithmetic over the config, for the manifests that set a hop's timeout and for whoever checks them.
"""

from __future__ import annotations

import math
from typing import Final

from aiaas.config.backend import Backend
from aiaas.config.model import Config

MARGIN: Final = 10.0  # seconds; our own answer (503, 504) has to arrive before the hop in front gives up
UNBOUNDED_SECONDS: Final = 0  # what Gateway API writes as `0s`
PRE_STOP: Final = 10  # seconds between "send it no new connections" and SIGTERM: until every proxy has heard of it
# The same behind a cloud's load balancer, which learns it from three failed health checks, ten seconds apart.
PRE_STOP_BALANCER: Final = 40
LONGEST_PAUSE: Final = (
    7.0  # seconds between two attempts: the longest Retry-After that is heeded, and the longest backoff
)
AFTER_DRAIN: Final = 10  # seconds to end what is still open, and to leave


def usual_silence(config: Config) -> float:
    """Seconds until the first byte of an answer where one attempt is at work, over all enabled backends: the wait in
    the queue, the connections that failed, then `timeout`. In a stream it is no longer than between two bytes,
    heartbeats aside."""
    return max((_usual(backend) for backend in _enabled(config)), default=0.0)


def longest_silence(config: Config) -> float:
    """The same at the worst, where every attempt that may be repeated (`aiaas.proxy.upstream.forward`) fails at its
    last moment:
    an engine that dies after a minute's work, a balancer that refuses after its own, each `Retry-After` heeded."""
    return max((_longest(backend, _standing_in(backend, config)) for backend in _enabled(config)), default=0.0)


def pre_stop(config: Config) -> int:
    """Seconds that a gateway's pod goes on taking connections after its deletion."""
    return PRE_STOP_BALANCER if config.kubernetes.expose == "loadbalancer" else PRE_STOP


def ingress_timeout(config: Config) -> int:
    """Seconds of silence that a hop in front must bear, rounded up."""
    return math.ceil(longest_silence(config) + MARGIN)


def request_timeout(config: Config) -> int:
    """Seconds that a whole request may take at a hop that bounds that; UNBOUNDED_SECONDS where some backend has no
    `total_timeout`, since a stream that keeps talking is never cut."""
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
    """For requests whose first choice is `first`: its timeouts hold at whichever backend the attempts end up."""
    retries = max(backend.max_retries for backend in standing_in)
    attempt = max(backend.connect_timeout for backend in standing_in) + first.timeout
    silence = max(map(_queue, standing_in)) + attempt * (retries + 1) + LONGEST_PAUSE * retries
    return silence if first.total_timeout is None else min(silence, first.total_timeout)


def _standing_in(first: Backend, config: Config) -> list[Backend]:
    """`first`, and whoever shares a model's name with it."""
    names = _names(first)
    return [backend for backend in _enabled(config) if names & _names(backend)]


def _names(backend: Backend) -> set[str]:
    return {name for model in backend.served() for name in (model.name, *model.aliases)}


def _queue(backend: Backend) -> float:
    return backend.queue.max_wait if backend.max_inflight is not None else 0.0
