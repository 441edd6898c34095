"""A key's life against a running gateway, by the commands of the CLI: each change holds within two seconds."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import ALIAS, Gateway, eventually, keys, running_gateway

WITHIN = 2.0  # seconds: the promise
SLACK = 3.0  # more, for a machine that has other work
OVERLAP = 6  # seconds


@pytest.fixture(scope="module")
def gateway(simulator_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), {"url": simulator_url}) as running:
        yield running


def status(gateway: Gateway, key: str) -> int:
    """The status of a request with this key."""
    request = urllib.request.Request(gateway.url + "/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def turns(gateway: Gateway, key: str, wanted: int) -> None:
    """Wait until the key gets this answer, at most the promised time."""
    eventually(lambda: status(gateway, key) == wanted, WITHIN + SLACK)


def test_a_key_from_its_making_to_its_end(gateway: Gateway) -> None:
    """The key is made, rotated with an overlap, revoked, pruned; another key never notices."""
    first = keys(gateway.folder, "create", "alice")
    turns(gateway, first, 200)
    second = keys(gateway.folder, "rotate", "alice", "--overlap", f"{OVERLAP}s")
    rotated = time.monotonic()
    turns(gateway, second, 200)
    if time.monotonic() - rotated < OVERLAP - 1:  # else this machine took all of it for the command alone
        assert status(gateway, first) == 200
    eventually(lambda: status(gateway, first) == 401, OVERLAP + SLACK)
    assert time.monotonic() - rotated > OVERLAP - 2  # whole seconds, and the command's own time
    assert status(gateway, second) == 200
    keys(gateway.folder, "revoke", "alice")
    turns(gateway, second, 401)
    assert keys(gateway.folder, "prune") == "alice"
    assert status(gateway, gateway.key) == 200


def test_a_key_ends_at_its_expiry(gateway: Gateway) -> None:
    """Without an edit of the file."""
    key = keys(gateway.folder, "create", "short", "--expires", "5s")
    turns(gateway, key, 200)
    eventually(lambda: status(gateway, key) == 401, 5 + SLACK)


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_change_by_an_editor_holds_too(gateway: Gateway, how: str) -> None:
    """However the editor saves: into the file, or into another one that replaces it."""
    name = how.replace(" ", "-")
    key = keys(gateway.folder, "create", name)
    turns(gateway, key, 200)
    file = gateway.folder / "keys.yaml"
    text = file.read_text().replace(f"name: {name}\n", f"name: {name}\n  disabled: true\n")
    if how == "in place":
        file.write_text(text)
    else:
        other = Path(f"{file}~")
        other.write_text(text)
        other.rename(file)
    turns(gateway, key, 401)
    assert status(gateway, gateway.key) == 200


def test_a_key_is_limited_to_its_models(gateway: Gateway) -> None:
    """Every listed model may be used, and no other."""
    key = keys(gateway.folder, "create", "scoped", "--model", ALIAS)
    turns(gateway, key, 200)
    request = urllib.request.Request(gateway.url + "/v1/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.read().count(b'"id"') == 1
