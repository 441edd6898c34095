"""aiaas.config.memory: the bytes that connections and bodies of a process may take."""

from __future__ import annotations

from aiaas.config.memory import body_budget, connection_memory, memory_budget

MIB = 1024**2


def test_large_body_budget_is_eight_bodies_or_64_mib() -> None:
    """A small bound does not turn away a burst of middling bodies."""
    assert (body_budget(10 * MIB), body_budget(MIB)) == (80 * MIB, 64 * MIB)


def test_whole_budget_has_bodies_and_connections() -> None:
    """A connection with TLS counts several times as much as one without."""
    assert memory_budget(MIB, 100, tls=True) == 64 * MIB + 100 * connection_memory(tls=True)
    assert connection_memory(tls=True) > 4 * connection_memory(tls=False)
