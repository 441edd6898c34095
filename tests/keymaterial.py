"""Finds key material in whatever a process wrote, without knowing the keys: each of ours carries its own checksum.

A text that has the form of a key and the right checksum is a key; anything else has it with a chance of 2^-32. So a
leak of any key of any test shows, also of one that nobody thought of, and of a wrong one that somebody presented.

`conftest.py` looks through everything that the processes of a test run have written: at its end, all files below the
run's folder; and after each test of the proxy, the log, the metrics and the reprs of its gateway.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiaas.keys.format import BODY_LENGTH, parse_key

_RUN: Final = re.compile(rb"[0-9A-Za-z_-]*[0-9A-Za-z]{%d}(?![0-9A-Za-z])" % BODY_LENGTH)
_HASH: Final = re.compile(rb"(?:\$(?:argon2id|pbkdf2-sha256)\$|\{SSHA256\})[^\s\"']{10}")
_LONGEST_PREFIX: Final = 16
# Files that are made to hold a key, or the hashes of keys: their last part, as a pattern.
MAY_HOLD_KEYS: Final = re.compile(r"key(\.txt)?")
MAY_HOLD_HASHES: Final = re.compile(r".*\.(ya?ml|json|new)")
_LARGEST: Final = 32 * 1024 * 1024


def leaked_keys(data: bytes) -> list[str]:
    """Every key in `data`, shown by its id only."""
    return [f"the key with id {key_id}" for key_id in dict.fromkeys(_keys(data))]


def leaked_hashes(data: bytes) -> list[str]:
    """Every hash of a key in `data`, by its beginning."""
    return [f"a hash, {found[:12].decode()}..." for found in dict.fromkeys(_HASH.findall(data))]


def leaks_below(folder: Path) -> list[str]:
    """The forbidden content of files below `folder`, one line each."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
            continue
        data = path.read_bytes()
        leaks = [] if MAY_HOLD_KEYS.fullmatch(path.name) else leaked_keys(data)
        leaks += [] if MAY_HOLD_HASHES.fullmatch(path.name) else leaked_hashes(data)
        found += [f"{path.relative_to(folder)}: {leak}" for leak in leaks]
    return found


def _keys(data: bytes) -> Iterator[str]:
    for run in _RUN.findall(data):
        text = run.decode("ascii")
        first = max(0, len(text) - BODY_LENGTH - _LONGEST_PREFIX)
        for start in range(first, len(text) - BODY_LENGTH + 1):  # what stands before it may or may not be its prefix
            parsed = parse_key(text[start:])
            if parsed is not None:
                yield parsed.key_id
