"""`python -m tests.fuzz.one TARGET [libFuzzer's options]`: one target, until its time is up or it fails."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["aiaas", "json", "yaml"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
