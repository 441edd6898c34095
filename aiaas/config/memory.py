"""The memory that connections, heads and bodies of a process may take. Pure arithmetic on the config's numbers."""

from __future__ import annotations

from typing import Final

# Room for BUDGET_BODIES of the largest bodies at once (a handful of users who each send an image), and for at least
# BUDGET_LEAST bytes, so that with a small `max_body_size` a burst of medium-sized bodies is not rejected.
BUDGET_BODIES: Final = 8
BUDGET_LEAST: Final = 64 * 1024**2
# Bytes per connection, measured with 1,000 connections (`python -m tests.siege.cost`), plus 4 KiB of the kernel: 5 KiB
# while silent, 7 KiB while idle; under TLS 52 KiB in the handshake, 30 KiB after it.
MEMORY_A_CONNECTION: Final = 12 * 1024
TLS_CONNECTION_MEMORY: Final = 56 * 1024


def body_budget(max_body_size: int) -> int:
    """Return the bytes that the large bodies of all requests of a process may take together.

    With the default of 10 MiB that is 80 MiB, and at the worst twice as much in memory, since an alias is spliced into
    a copy: a third of a pod of 512 MiB.
    """
    return max(BUDGET_LEAST, BUDGET_BODIES * max_body_size)


def connection_memory(*, tls: bool) -> int:
    """Return the bytes that a client's connection takes, whatever it sends."""
    return TLS_CONNECTION_MEMORY if tls else MEMORY_A_CONNECTION


def memory_budget(max_body_size: int, max_connections: int, *, tls: bool) -> int:
    """Return the bytes that connections, heads and bodies of a process may take together."""
    return body_budget(max_body_size) + max_connections * connection_memory(tls=tls)
