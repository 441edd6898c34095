"""A record's own status and times."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from aiaas.keys.model import KeyRecord, PreviousSecret

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROTATED = KeyRecord("aaaaaaaa", "alice", "hash", NOW, previous=PreviousSecret("old hash", NOW + HOUR))


@pytest.mark.parametrize(
    ("expires", "ends"),
    [(None, HOUR), (HOUR / 2, HOUR / 2), (HOUR, HOUR), (2 * HOUR, HOUR)],
    ids=["no expiry", "before", "together", "behind"],
)
def test_an_overlap_ends_with_its_key_at_the_latest(expires: timedelta | None, ends: timedelta) -> None:
    """Whatever `until` says."""
    record = replace(ROTATED, expires=None if expires is None else NOW + expires)
    assert record.overlap_end == NOW + ends
    assert replace(record, previous=None).overlap_end is None


def test_no_repr_of_a_record_shows_a_hash_or_a_tag() -> None:
    """Records may be logged."""
    shown = repr(replace(ROTATED, tag="beef", previous=PreviousSecret("old hash", NOW, "feed")))
    assert "hash" not in shown.replace("hash=", "")
    assert "beef" not in shown
    assert "feed" not in shown
