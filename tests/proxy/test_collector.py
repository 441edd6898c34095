"""aiaas.proxy.collector: the cyclic collector stays away from keys and Plans, which need none."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiaas.keys.file import read_key_file
from aiaas.keys.records import render_records
from aiaas.keys.ring import KeyRing
from aiaas.plan.read import read
from aiaas.proxy.collector import THRESHOLDS, TURN, building, freeze
from tests.proxy.conftest import new_key

EXAMPLES = [path for path in sorted(Path("examples").glob("*.yaml")) if path.name != "keys.yaml"]


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Leave the collector of this process as it was."""
    thresholds, turn = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    yield
    gc.enable()
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(turn)


class Thing:
    """An object that may be part of a cycle."""


def test_building_neither_collects_nor_freezes() -> None:
    """Garbage that waits for its collection is still collected after a reload."""
    thing = Thing()
    thing.itself = thing  # type: ignore[attr-defined]
    gone = weakref.ref(thing)
    with building():
        assert not gc.isenabled()
        del thing
        many = [[] for _ in range(100_000)]
        assert gone() is not None
    assert gc.isenabled()
    gc.collect()
    assert gone() is None
    assert len(many) == 100_000


def test_a_failure_while_building_turns_the_collector_on() -> None:
    """A config that cannot be read leaves the process as it was."""
    with pytest.raises(ValueError), building():
        raise ValueError("invalid")
    assert gc.isenabled()


def test_a_serving_process_collects_rarely() -> None:
    """Everything from the start is frozen, the thresholds are the measured ones, and threads soon give way."""
    freeze()
    assert sys.getswitchinterval() == pytest.approx(TURN)
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == THRESHOLDS


def test_reading_keys_leaves_no_cycles(tmp_path: Path) -> None:
    """Nothing waits for the collection that comes after a reload."""
    file = tmp_path / "keys.yaml"
    file.write_text(render_records([new_key(f"k{number}").record for number in range(50)]))
    file.chmod(0o600)
    gc.disable()
    KeyRing.from_records(read_key_file(file).records)
    assert gc.collect() == 0


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_reading_a_config_leaves_no_cycles(example: Path) -> None:
    """Nothing waits for the collection that comes after a reload."""
    read(example, {})  # caches fill
    gc.collect()
    gc.disable()
    read(example, {})
    assert gc.collect() == 0
