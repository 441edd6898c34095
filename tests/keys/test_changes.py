"""Changes to records: names, states, rotation, pruning, durations."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from aiaas.keys.changes import (
    KeyChangeError,
    NoSuchKeyError,
    add,
    find,
    parse_expiry,
    parse_overlap,
    pruned,
    put,
    rotated,
    state_of,
)
from aiaas.keys.model import KeyRecord, PreviousSecret

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ALICE = KeyRecord(id="aaaaaaaa", name="alice", hash="h1", tag="0a0a", created=NOW)
BOB = KeyRecord(id="bbbbbbbb", name="bob", hash="h2", tag="0b0b", created=NOW)


def test_a_key_is_found_by_name_and_by_id() -> None:
    """Both words that an operator has for a key work."""
    assert find((ALICE, BOB), "bob") is BOB
    assert find((ALICE, BOB), "aaaaaaaa") is ALICE


def test_a_misspelt_name_gets_a_suggestion() -> None:
    """The nearest name is offered."""
    with pytest.raises(NoSuchKeyError, match="did you mean alice"):
        find((ALICE, BOB), "alcie")


@pytest.mark.parametrize(
    "name", ["", "-a", "a b", "a/b", "x" * 65, "ü"], ids=["empty", "dash", "space", "slash", "long", "umlaut"]
)
def test_a_bad_name_is_refused(name: str) -> None:
    """Names are words that need no quoting anywhere."""
    with pytest.raises(KeyChangeError, match="is not a valid name"):
        add((), replace(ALICE, name=name))


def test_a_taken_name_or_id_is_refused() -> None:
    """Two keys never share a name or an id."""
    with pytest.raises(KeyChangeError, match="there is already a key"):
        add((ALICE,), replace(BOB, name="alice"))
    with pytest.raises(KeyChangeError, match="id is taken"):
        add((ALICE,), replace(BOB, id="aaaaaaaa"))


def test_records_keep_their_order() -> None:
    """A new record comes last, a changed one stays in its place."""
    assert [record.name for record in add((ALICE,), BOB)] == ["alice", "bob"]
    assert put((ALICE, BOB), replace(ALICE, disabled=True))[0].disabled


def test_states_follow_the_clock() -> None:
    """A key expires at its moment, and revoked wins."""
    expiring = replace(ALICE, expires=NOW + HOUR)
    assert state_of(expiring, NOW) == "active"
    assert state_of(expiring, NOW + HOUR) == "expired"
    assert state_of(replace(expiring, disabled=True), NOW + HOUR) == "revoked"


def test_rotation_keeps_the_old_secret_as_long_as_asked() -> None:
    """With an overlap the old hash stays for that time, without one it is removed."""
    overlapping = rotated(ALICE, "new", NOW, HOUR)
    assert (overlapping.hash, overlapping.tag, overlapping.id) == ("new", None, ALICE.id)
    assert overlapping.previous == PreviousSecret("h1", NOW + HOUR, "0a0a", imported=False)
    assert rotated(overlapping, "newer", NOW, timedelta()).previous is None


@pytest.mark.parametrize(("expires", "ends"), [(timedelta(minutes=10), timedelta(minutes=10)), (2 * HOUR, HOUR)])
def test_an_old_secret_never_outlives_its_key(expires: timedelta, ends: timedelta) -> None:
    """The overlap ends with the key, as written by `rotate` and as written by hand."""
    record = rotated(replace(ALICE, expires=NOW + expires), "new", NOW, HOUR)
    assert record.previous is not None
    assert record.previous.until == record.overlap_end == NOW + ends
    assert replace(record, previous=PreviousSecret("h1", NOW + 5 * HOUR)).overlap_end == NOW + expires


def test_rotated_imported_key_becomes_a_generated_one() -> None:
    """Its old secret is still found by its tag."""
    record = rotated(replace(ALICE, imported=True, weak=True, tag="0a"), "new", NOW, HOUR)
    assert not record.imported
    assert not record.weak
    assert record.previous is not None
    assert record.previous.imported


def test_a_revoked_key_is_not_rotated() -> None:
    """A new secret must not bring a revoked key back."""
    with pytest.raises(KeyChangeError, match="revoked"):
        rotated(replace(ALICE, disabled=True), "new", NOW, HOUR)


def test_pruning_removes_what_no_longer_works() -> None:
    """Revoked and expired keys go, ended overlaps go, the rest stays as it is."""
    expired = replace(ALICE, id="cccccccc", name="carol", expires=NOW)
    ended = replace(BOB, previous=PreviousSecret("h", NOW))
    kept, gone = pruned((replace(ALICE, disabled=True), ended, expired), NOW)
    assert kept == (BOB,)
    assert [record.name for record in gone] == ["alice", "carol"]


def test_an_overlap_is_a_duration() -> None:
    """An overlap beyond any calendar is refused."""
    assert parse_overlap("90d") == timedelta(days=90)
    with pytest.raises(ValueError, match="is too long"):
        parse_overlap("999999999999w")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1h", NOW + HOUR), ("2026-03-02", datetime(2026, 3, 2, tzinfo=UTC)), ("2026-03-01T14:00:00+01:00", NOW + HOUR)],
    ids=["duration", "date", "moment with a zone"],
)
def test_an_expiry_is_a_duration_or_a_date(text: str, expected: datetime) -> None:
    """Dates are UTC unless they say otherwise."""
    assert parse_expiry(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["2026-02-28", "0s", "soon", "90", "9999999w"], ids=["past", "now", "word", "bare", "beyond the calendar"]
)
def test_an_expiry_that_is_none_is_refused(text: str) -> None:
    """A key that is expired from the start is a mistake."""
    with pytest.raises(ValueError):
        parse_expiry(text, NOW)
