"""`python -m tests.soak`: a storm of faults, then a million events; a table of the leftovers. Exit 1 for a leak."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.soak.finding import Finding, as_text
from tests.soak.memory import gateway_before_a_fast_backend, memory
from tests.soak.storm import gateway_in_the_storm, weather


def soak(folder: Path, clients: int, events: int, seed: int, say: Callable[[str], None]) -> list[Finding]:
    """Both halves, each with a gateway of its own in a folder below `folder`; 0 leaves one out."""
    findings = []
    if clients:
        (folder / "storm").mkdir()
        with gateway_in_the_storm(folder / "storm", seed) as stormy:
            findings += weather(stormy, clients, say)
    if events:
        (folder / "memory").mkdir()
        with gateway_before_a_fast_backend(folder / "memory") as gateway:
            findings += memory(gateway, events, say)
    return findings


def main(arguments: list[str]) -> int:
    """Run the soak with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Does anything grow or stay behind?")
    parser.add_argument("--clients", type=int, default=10_000, help="that misbehave, before faulty backends")
    parser.add_argument("--events", type=int, default=1_000_000, help="of streams, over which memory is measured")
    parser.add_argument("--seed", type=int, default=20261123, help="of all that is random")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="aiaas-soak-") as folder:
        findings = soak(
            Path(folder), options.clients, options.events, options.seed, lambda text: print(text, file=sys.stderr)
        )
    print(as_text(findings))
    return 0 if all(each.holds for each in findings) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
