"""Which stored secrets a presented key could be."""

import random
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from aiaas.keys.changes import rotated
from aiaas.keys.format import NewKey, make_key, tag_of
from aiaas.keys.model import KeyLimits, KeyRecord
from aiaas.keys.ring import KeyRing

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def own(name: str = "alice") -> tuple[NewKey, KeyRecord]:
    key = make_key("sk-", secrets.token_bytes)
    return key, KeyRecord(id=key.key_id, name=name, hash=f"hash of {name}", tag=tag_of(key.text), created=NOW)


def imported(key: str, name: str = "bob") -> KeyRecord:
    tag = tag_of(key, weak=True)
    return KeyRecord(id="bbbbbbbb", name=name, hash="hash of bob", tag=tag, created=NOW, imported=True, weak=True)


def test_a_key_leads_to_its_record() -> None:
    """One candidate, bound to a principal with the record's scope and limits."""
    key, record = own()
    record = replace(record, models=("a", "b"), limits=KeyLimits(burst=3), expires=NOW)
    (found,) = KeyRing.from_records([record]).candidates(key.text)
    assert found.principal.name == "alice"
    assert found.principal.models == {"a", "b"}
    assert found.principal.limits == KeyLimits(burst=3)
    assert found.principal.expires == NOW.timestamp()
    assert not found.usable(NOW.timestamp())
    assert found.usable(NOW.timestamp() - 1)


def test_a_wrong_secret_with_a_right_id_is_no_candidate() -> None:
    """The tag spares the slow hash: of 300 forged keys with a known id hardly one gets that far."""
    key, record = own()
    ring = KeyRing.from_records([record])
    source = random.Random(7)
    forged = [make_key("sk-", source.randbytes, key.key_id).text for _ in range(300)]
    assert sum(len(ring.candidates(text)) for text in forged) <= 1


def test_a_record_without_a_tag_is_found_by_its_id() -> None:
    """Records from elsewhere need no tag to work."""
    key, record = own()
    assert KeyRing.from_records([replace(record, tag=None)]).candidates(key.text)


def test_an_imported_key_is_found_by_its_tag() -> None:
    """It has no id inside; a different one is no candidate."""
    ring = KeyRing.from_records([imported("sk-test-key"), own()[1]])
    assert [secret.principal.name for secret in ring.candidates("sk-test-key")] == ["bob"]
    assert ring.candidates("sk-test-kez") == ()


def test_an_imported_key_that_looks_like_ours_is_found_too() -> None:
    """A key made by another installation of aiaas carries an id that means nothing here."""
    foreign = make_key("sk-", secrets.token_bytes).text
    assert KeyRing.from_records([imported(foreign)]).candidates(foreign)


def test_a_rotated_key_is_found_by_both_secrets() -> None:
    """During the overlap the old secret leads to the same principal, with an end."""
    key, record = own()
    new = make_key("sk-", secrets.token_bytes, key.key_id)
    ring = KeyRing.from_records([rotated(record, "new", tag_of(new.text), NOW, timedelta(hours=1))])
    (old_found,) = ring.candidates(key.text)
    (new_found,) = ring.candidates(new.text)
    assert old_found.principal.key_id == new_found.principal.key_id
    assert old_found.until == NOW.timestamp() + 3600
    assert new_found.until is None


def test_a_disabled_key_is_found_by_nothing() -> None:
    """Revoked keys stay in `records` for the listing only."""
    key, record = own()
    ring = KeyRing.from_records([replace(record, disabled=True)])
    assert ring.candidates(key.text) == ()
    assert len(ring.records) == 1


@given(st.text(max_size=80))
def test_junk_has_no_candidates(text: str) -> None:
    """Any text at all is answered, without an exception."""
    assert KeyRing.from_records([own()[1]]).candidates(text) == ()


def test_a_secret_is_current_only_while_its_hash_is() -> None:
    """After a change of hash or a revocation the old one is unknown; new limits come along."""
    key, record = own()
    (secret,) = KeyRing.from_records([record]).candidates(key.text)
    limited = KeyRing.from_records([replace(record, limits=KeyLimits(burst=1))]).current(secret)
    assert limited is not None
    assert limited.principal.limits.burst == 1
    assert KeyRing.from_records([replace(record, hash="other")]).current(secret) is None
    assert KeyRing.from_records([replace(record, disabled=True)]).current(secret) is None


def test_no_repr_shows_a_hash_or_a_tag() -> None:
    """Rings and their parts may be logged."""
    key, record = own()
    ring = KeyRing.from_records([rotated(record, "new-hash", "beef", NOW, timedelta(hours=1))])
    shown = repr(ring) + repr(ring.records) + repr(ring.candidates(key.text))
    assert "hash of alice" not in shown
    assert "new-hash" not in shown
    assert "beef" not in shown


def test_the_number_of_keys_costs_nothing_per_request() -> None:
    """Ten thousand keys are found as quickly as ten, and as quickly found not to be there."""

    def fastest(count: int) -> float:
        made = [own(f"u{number}") for number in range(10)]
        others = [replace(made[0][1], id=f"{number:08d}", name=f"o{number}") for number in range(count - 10)]
        ring = KeyRing.from_records([*(record for _, record in made), *others])
        texts = [key.text for key, _ in made] + [make_key("sk-", secrets.token_bytes).text for _ in range(10)]
        took = []
        for _ in range(50):
            began = time.perf_counter()
            found = [len(ring.candidates(text)) for text in texts]
            took.append(time.perf_counter() - began)
            assert found == [1] * 10 + [0] * 10
        return min(took)

    assert fastest(10_000) < 3 * fastest(10)  # it is 1.0 to 1.2; a search through all of them would be hundreds
