"""How patient a hop in front of the gateway must be: timeouts grow outwards, vLLM < gateway < ingress < client.

Pure arithmetic over the config, for the manifests that set a hop's timeout and for whoever checks them.
"""

from __future__ import annotations

import math
from typing import Final

from aiaas.config.backend import Backend
from aiaas.config.model import Config

MARGIN: Final = 10.0  # seconds; our own answer (503, 504) has to arrive before the hop in front gives up
NO_BOUND: Final = 0  # what Gateway API writes as `0s`
PRE_STOP: Final = 10  # seconds between "send it no new connections" and SIGTERM: until every proxy has heard of it
AFTER_DRAIN: Final = 10  # seconds to end what is still open, and to leave


def longest_silence(config: Config) -> float:
    """Seconds until the first byte of an answer at the worst, over all enabled backends: the wait in the queue, the
    connections that failed, then `timeout`. In a stream it is no longer than between two bytes, heartbeats aside."""
    return max((_silence(backend) for backend in config.backends.values() if backend.enabled), default=0.0)


def ingress_timeout(config: Config) -> int:
    """Seconds of silence that a hop in front must bear, rounded up."""
    return math.ceil(longest_silence(config) + MARGIN)


def request_timeout(config: Config) -> int:
    """Seconds that a whole request may take at a hop that bounds that; NO_BOUND where some backend has no
    `total_timeout`, since a stream that keeps talking is never cut."""
    bounds = [backend.total_timeout for backend in config.backends.values() if backend.enabled]
    known = [bound for bound in bounds if bound is not None]
    if not known or len(known) < len(bounds):
        return NO_BOUND
    return math.ceil(max(known) + MARGIN)


def _silence(backend: Backend) -> float:
    queue = backend.queue.max_wait if backend.max_inflight is not None else 0.0
    silence = queue + backend.connect_timeout * (backend.max_retries + 1) + backend.timeout
    return silence if backend.total_timeout is None else min(silence, queue + backend.total_timeout)
