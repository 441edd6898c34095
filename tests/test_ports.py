"""Ports that tests hand to servers of their own."""

from __future__ import annotations

import socket

from tests.ports import IN_A_ROW, PROCESSES, free_port


def test_no_port_is_given_twice_nor_beside_another() -> None:
    """Four hundred in turn, each with those behind it: a gateway's port was its metrics port as well, once."""
    given = [port + offset for port in (free_port() for _ in range(400)) for offset in range(IN_A_ROW)]
    assert len(set(given)) == 4 * 400


def test_a_port_that_somebody_has_is_passed_over() -> None:
    """Itself and the one asked for above it."""
    following = free_port() + IN_A_ROW * PROCESSES
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", following + 1))
        holder.listen()
        assert free_port(1) != following
