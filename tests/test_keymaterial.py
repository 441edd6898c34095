"""tests/keymaterial.py finds keys and hashes, wherever they are, and nothing else."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import pytest

from aiaas.keys.format import make_key
from aiaas.keys.hashing import digest_key, hash_key
from tests.keymaterial import leaked_hashes, leaked_keys, leaks_below


@pytest.mark.parametrize("form", ["{}", '{{"k":"{}"}}', "Bearer {}\r\n", "k={}&x", "'{}'", "x/{}/y", "_{}"])
@pytest.mark.parametrize("prefix", ["sk-", "", "team_a-"])
def test_a_key_is_found_wherever_it_stands(form: str, prefix: str) -> None:
    """The finding shows its public id only."""
    key = make_key(prefix, secrets.token_bytes)
    assert leaked_keys(b"before " + form.format(key.text).encode() + b" after") == [f"the key with id {key.key_id}"]


def test_text_that_only_looks_like_a_key_is_ignored() -> None:
    """Digests, request ids, base64, and a key without its last character."""
    key = make_key("sk-", secrets.token_bytes).text
    others = [secrets.token_hex(32), "sk-" + "a" * 39, key[:-1], key + "x", secrets.token_urlsafe(4000)]
    assert leaked_keys(" ".join(others).encode()) == []


def test_a_digest_is_found_like_a_hash() -> None:
    """A digest does not belong in a log either."""
    digest = digest_key(make_key("sk-", secrets.token_bytes).text)
    assert leaked_hashes(f"hash: '{digest}'".encode()) == [f"a hash, {digest[:12]}..."]


def test_a_hash_is_found_outside_of_key_files() -> None:
    """In a log it has no business, in a key file it has. (Not in tmp_path, where it would be found at the end.)"""
    key = make_key("sk-", secrets.token_bytes)
    hashed = hash_key(key.text)
    assert leaked_hashes(b'{"x":"' + hashed.encode() + b'"}') == ["a hash, $argon2id$v=..."]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("keys.yaml", "stdout.log"):
            (folder / file).write_text(f"hash: {hashed}\n")
        (folder / "key").write_text(key.text)
        (folder / "stderr.log").write_text(f"key: {key.text}\n")
        assert leaks_below(folder) == [
            f"stderr.log: the key with id {key.key_id}",
            "stdout.log: a hash, $argon2id$v=...",
        ]
