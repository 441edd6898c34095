"""The verdict on a presented key, as far as a ring can tell without a slow hash."""

import gc
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from passlib.hash import ldap_salted_sha256, pbkdf2_sha256

from aiaas.keys.changes import rotated
from aiaas.keys.format import MAX_KEY_LENGTH, NewKey, make_key, tag_of
from aiaas.keys.hashing import digest_key
from aiaas.keys.model import KeyLimits, KeyRecord, PreviousSecret, Principal, Rejection
from aiaas.keys.ring import Found, KeyRing, StoredSecret

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AT = NOW.timestamp()
HOUR = timedelta(hours=1)
FOREIGN = "sk-Zk2vQ8xLr7Tn4Wp9Ym3Hc6Jb1Fd5Gs0"
MALFORMED = Found(None, (), Rejection("malformed"))


def own(name: str = "alice") -> tuple[NewKey, KeyRecord]:
    """A key, and its record as `keys create` makes it."""
    key = make_key("sk-", secrets.token_bytes)
    return key, KeyRecord(id=key.key_id, name=name, hash=digest_key(key.text), created=NOW)


def slow(name: str = "alice", *, tagged: bool = True) -> tuple[NewKey, KeyRecord]:
    """A key whose record has a slow hash, as one from elsewhere."""
    key, record = own(name)
    return key, replace(record, hash=f"$hash of {name}", tag=tag_of(key.text) if tagged else None)


def imported(key: str, name: str = "bob", *, weak: bool = True) -> KeyRecord:
    """The record of a foreign key."""
    tag = tag_of(key, weak=weak)
    return KeyRecord(id="bbbbbbbb", name=name, hash="$hash of bob", tag=tag, created=NOW, imported=True, weak=weak)


def ring(*records: KeyRecord) -> KeyRing:
    return KeyRing.from_records(records)


def secret_of(found: Found) -> StoredSecret:
    """The secret whose digest matched."""
    assert found.secret is not None
    assert found.slow == ()
    return found.secret


def names(found: Found) -> list[str]:
    """The ids of the records whose slow hashes a key could match."""
    assert found.secret is None
    return [secret.principal.name for secret in found.slow]


def test_generated_key_is_known_at_once() -> None:
    """By its digest, as a principal with the record's scope and limits."""
    key, record = own()
    record = replace(record, models=("a", "b"), limits=KeyLimits(burst=3))
    verdict = secret_of(ring(record, own("bob")[1]).find(key.text)).verdict(AT)
    assert verdict == Principal(record.id, "alice", frozenset({"a", "b"}), KeyLimits(burst=3))


def test_a_key_without_a_list_of_models_may_use_all() -> None:
    """None, and not an empty set."""
    key, record = own()
    verdict = secret_of(ring(record).find(key.text)).verdict(AT)
    assert isinstance(verdict, Principal)
    assert verdict.models is None


def test_a_key_ends_at_its_expiry() -> None:
    """To the moment, with its id for the log."""
    key, record = own()
    secret = secret_of(ring(replace(record, expires=NOW)).find(key.text))
    assert isinstance(secret.verdict(AT - 0.001), Principal)
    assert secret.usable(AT - 0.001)
    assert secret.verdict(AT) == Rejection("expired", record.id)
    assert not secret.usable(AT)


def test_a_key_without_expiry_never_ends() -> None:
    """Not in ten thousand years."""
    key, record = own()
    assert isinstance(secret_of(ring(record).find(key.text)).verdict(AT + 3e11), Principal)


@pytest.mark.parametrize("expires", [None, NOW - HOUR], ids=["revoked", "revoked and expired"])
def test_a_revoked_key_is_told_from_an_unknown_one(expires: datetime | None) -> None:
    """For the log: its record is still there. Revoked wins over expired, as in `keys list`."""
    key, record = own()
    secret = secret_of(ring(replace(record, disabled=True, expires=expires)).find(key.text))
    assert secret.verdict(AT) == Rejection("revoked", record.id)
    assert not secret.usable(0)


def test_a_wrong_secret_costs_no_slow_hash() -> None:
    """Three hundred forged keys with a known id are recognised at once."""
    key, record = own()
    known = ring(record, imported(FOREIGN, weak=False))
    for _ in range(300):
        forged = make_key("sk-", secrets.token_bytes, key.key_id).text
        assert known.find(forged).rejection == Rejection("wrong_secret", key.key_id)
        assert secret_free(known.find(forged))


def secret_free(found: Found) -> bool:
    """Whether no record matched so far. (A tag of 16 bits may hit, once in 65,536.)"""
    return found.secret is None and len(found.slow) <= 1


def test_an_unknown_id_is_told_with_the_id() -> None:
    """Eight letters and digits whose checksum is right, so they may stand in a log."""
    key, _ = own()
    assert ring(own("bob")[1]).find(key.text) == Found(None, (), Rejection("unknown_id", key.key_id))


@pytest.mark.parametrize(
    "text",
    ["", "sk-", "sk-test-key", FOREIGN, "x" * (MAX_KEY_LENGTH + 1), "sk-ü", "a b", "sk-\n"],
    ids=["empty", "prefix", "guessable", "foreign", "long", "umlaut", "space", "newline"],
)
def test_text_of_another_form_is_malformed(text: str) -> None:
    """The verdict has no id: the text in its place may be a part of a secret."""
    assert ring(own()[1]).find(text) == MALFORMED


@pytest.mark.parametrize("text", ["x" * (MAX_KEY_LENGTH + 1), "a b", "sk-ü"], ids=["long", "space", "umlaut"])
def test_text_unfit_for_a_header_is_malformed_whatever_its_tag(text: str) -> None:
    """Such a text need not be hashed, slowly or not; nor do bytes that are not text, as a header may have them."""
    known = ring(imported(text, weak=False), imported(FOREIGN))
    assert known.find(text) == MALFORMED
    assert known.find("sk-\udcff") == MALFORMED


def test_another_prefix_is_another_key() -> None:
    """The digest covers the whole text."""
    key, record = own()
    other = make_key("ak-", secrets.token_bytes, key.key_id)
    assert ring(record).find(other.text).rejection == Rejection("wrong_secret", key.key_id)


def test_an_imported_key_is_found_by_its_tag() -> None:
    """It has no id inside; a different one is not a candidate."""
    known = ring(imported("sk-test-key"), own()[1])
    assert names(known.find("sk-test-key")) == ["bob"]
    assert known.find("sk-test-kez") == MALFORMED


@pytest.mark.parametrize("weak", [False, True])
def test_tags_of_both_lengths_are_found(weak: bool) -> None:
    """Four hex digits of a strong key, two of a guessable one."""
    assert names(ring(imported(FOREIGN, weak=weak)).find(FOREIGN)) == ["bob"]


def test_two_imported_keys_may_share_a_tag() -> None:
    """Both are candidates, in the order of the file."""
    first = imported("sk-test-key")
    assert names(ring(first, replace(first, id="cccccccc", name="carol")).find("sk-test-key")) == ["bob", "carol"]


def test_an_imported_key_that_looks_like_ours_is_found_too() -> None:
    """A key made by another installation of aiaas carries an id that means nothing here."""
    foreign = make_key("sk-", secrets.token_bytes)
    found = ring(imported(foreign.text, weak=False)).find(foreign.text)
    assert names(found) == ["bob"]
    assert found.rejection == Rejection("unknown_id", foreign.key_id)


def test_a_digest_of_an_imported_key_is_never_accepted() -> None:
    """Not even for a text in our own form: a person who knows the form can make one up. The key file refuses it."""
    key, _ = own()
    record = replace(imported(key.text, weak=False), hash=digest_key(key.text))
    assert ring(record).find(key.text) == Found(None, (), Rejection("unknown_id", key.key_id))
    assert ring(replace(imported(FOREIGN), hash=ldap_salted_sha256.hash(FOREIGN))).find(FOREIGN) == MALFORMED


def test_an_old_secret_imported_under_another_name_is_found() -> None:
    """Its id leads to a record that has a new secret by now; its tag to the one that it was imported as."""
    key, record = own()
    renewed = make_key("sk-", secrets.token_bytes, key.key_id)
    known = ring(rotated(record, digest_key(renewed.text), NOW, timedelta()), imported(key.text, weak=False))
    assert names(known.find(key.text)) == ["bob"]
    assert known.find(key.text).rejection == Rejection("wrong_secret", key.key_id)


def test_generated_key_with_a_slow_hash_is_found_by_its_id() -> None:
    """From elsewhere, with a tag or without; the tag spares a wrong secret the slow hash."""
    (tagged, first), (plain, second) = slow("alice"), slow("bob", tagged=False)
    known = ring(first, second)
    assert names(known.find(tagged.text)) == ["alice"]
    assert names(known.find(plain.text)) == ["bob"]
    assert names(known.find(make_key("sk-", secrets.token_bytes, plain.key_id).text)) == ["bob"]
    forged = [known.find(make_key("sk-", secrets.token_bytes, tagged.key_id).text) for _ in range(300)]
    assert sum(len(found.slow) for found in forged) <= 1
    assert {found.rejection for found in forged} == {Rejection("wrong_secret", tagged.key_id)}


def test_a_slow_hash_is_never_compared_by_a_ring() -> None:
    """A slow hash would block the event loop; a matching one is left to the caller all the same."""
    key, record = slow()
    record = replace(record, hash=pbkdf2_sha256.using(rounds=1).hash(key.text))
    assert names(ring(record).find(key.text)) == ["alice"]


def test_a_rotated_key_is_found_by_both_secrets() -> None:
    """During the overlap the old secret leads to the same principal, with an end."""
    key, record = own()
    new = make_key("sk-", secrets.token_bytes, key.key_id)
    known = ring(rotated(record, digest_key(new.text), NOW, HOUR))
    old_found, new_found = secret_of(known.find(key.text)), secret_of(known.find(new.text))
    assert old_found.principal is new_found.principal
    assert isinstance(old_found.verdict(AT + 3599), Principal)
    assert old_found.verdict(AT + 3600) == Rejection("expired", record.id)
    assert isinstance(new_found.verdict(AT + 3600), Principal)


def test_a_rotated_slow_secret_overlaps_too() -> None:
    """The old secret of an imported key is still found by its tag."""
    record = imported("sk-test-key")
    new = make_key("sk-", secrets.token_bytes, record.id)
    known = ring(rotated(record, digest_key(new.text), NOW, HOUR))
    assert names(known.find("sk-test-key")) == ["bob"]
    assert [secret.until for secret in known.find("sk-test-key").slow] == [AT + 3600]
    assert isinstance(secret_of(known.find(new.text)).verdict(AT), Principal)


@pytest.mark.parametrize("hours", [1, 5])
def test_an_overlapping_secret_never_outlives_its_key(hours: int) -> None:
    """Whatever `until` says: an editor may have written anything."""
    key, record = own()
    new = make_key("sk-", secrets.token_bytes, key.key_id)
    previous = PreviousSecret(record.hash, NOW + hours * HOUR)
    changed = replace(record, hash=digest_key(new.text), previous=previous, expires=NOW + 2 * HOUR)
    ends = AT + 3600 * min(hours, 2)
    old = secret_of(ring(changed).find(key.text))
    assert isinstance(old.verdict(ends - 1), Principal)
    assert old.verdict(ends) == Rejection("expired", record.id)


def test_an_overlapping_secret_is_revoked_with_its_key() -> None:
    """`revoke` drops it from the file; an editor may have left it there."""
    key, record = own()
    changed = rotated(record, digest_key(make_key("sk-", secrets.token_bytes, key.key_id).text), NOW, HOUR)
    secret = secret_of(ring(replace(changed, disabled=True)).find(key.text))
    assert secret.verdict(AT) == Rejection("revoked", record.id)


@given(st.text(max_size=80))
def test_junk_is_answered_without_an_exception(text: str) -> None:
    """Any text at all."""
    assert ring(own()[1]).find(text) == MALFORMED


def test_a_secret_is_current_only_while_its_hash_is() -> None:
    """After a change of the hash the old one is unknown; new limits and a revocation come along."""
    key, record = own()
    secret = secret_of(ring(record).find(key.text))
    limited = ring(replace(record, limits=KeyLimits(burst=1))).current(secret)
    assert limited is not None
    assert limited.principal.limits.burst == 1
    assert ring(replace(record, hash="$other")).current(secret) is None
    assert ring(own("bob")[1]).current(secret) is None
    revoked = ring(replace(record, disabled=True)).current(secret)
    assert revoked is not None
    assert revoked.verdict(AT) == Rejection("revoked", record.id)


def test_an_overlapping_secret_is_current_as_well() -> None:
    """A rotation does not make the overlapping secret be hashed again."""
    key, record = own()
    secret = secret_of(ring(record).find(key.text))
    after = ring(rotated(record, digest_key(make_key("sk-", secrets.token_bytes, key.key_id).text), NOW, HOUR))
    current = after.current(secret)
    assert current is not None
    assert current.until == AT + 3600


def test_a_ring_knows_all_its_ids() -> None:
    """Revoked and expired ones too: they stand in the file until they are pruned."""
    _, record = own()
    records = (record, replace(own("bob")[1], disabled=True), replace(own("carol")[1], expires=NOW))
    assert ring(*records).ids == KeyRing.from_records(iter(records)).ids == {each.id for each in records}


def test_the_collector_has_nothing_to_visit_in_a_ring() -> None:
    """Two objects for each of 50,000 keys made every stream wait for 60 ms after a reload."""
    narrowed = {"models": ("m", "n"), "allow_fields": ("priority",)}
    records = [replace(own(f"user{number}")[1], **narrowed) for number in range(200)]
    gc.collect()
    before = len(gc.get_objects())
    known = ring(*records)
    assert len(gc.get_objects()) - before < 50
    assert len(known.ids) == 200


def test_a_ring_that_was_taken_apart_knows_no_key() -> None:
    """Its secrets go one by one; those that another holds stay."""
    key, record = own()
    foreign, imported = slow()
    known = ring(record, imported)
    secret = secret_of(known.find(key.text))
    known.dismantle()
    assert known.find(key.text).secret is None
    assert not known.find(foreign.text).slow
    assert known.current(secret) is None
    assert secret.principal.name == "alice"


def test_no_repr_shows_a_hash_or_a_tag() -> None:
    """Rings and their parts may be logged."""
    key, record = slow()
    known = ring(replace(record, previous=PreviousSecret("$old-hash", NOW + HOUR, "beef")), own("bob")[1])
    shown = repr(known) + repr(known.find(key.text)) + repr(known.find(key.text).slow)
    for hidden in ("$hash of alice", "$old-hash", "beef", "SSHA256", tag_of(key.text)):
        assert hidden not in shown
    assert repr(known) == "KeyRing(2 keys)"


def test_the_number_of_keys_costs_nothing_per_request() -> None:
    """Ten thousand keys are found as quickly as ten, and as quickly found not to be there."""

    def fastest(count: int) -> float:
        made = [own(f"u{number}") for number in range(10)]
        others = [replace(made[0][1], id=f"{number:08d}", name=f"o{number}") for number in range(count - 10)]
        known = ring(*(record for _, record in made), *others)
        texts = [key.text for key, _ in made] + [make_key("sk-", secrets.token_bytes).text for _ in range(10)]
        took = []
        for _ in range(50):
            began = time.perf_counter()
            found = [known.find(text).secret is not None for text in texts]
            took.append(time.perf_counter() - began)
            assert found == [True] * 10 + [False] * 10
        return min(took)

    assert fastest(10_000) < 3 * fastest(10)  # it is 1.0 to 1.2; a search through all of them would be hundreds


def test_expiries_count_neither_revoked_nor_later_keys() -> None:
    """A record that expires, one that has expired, one without an end, and a revoked one."""
    made = [own(name)[1] for name in ("a", "b", "c", "d")]
    expiring = [replace(made[0], expires=NOW), replace(made[1], expires=NOW - HOUR)]
    found = ring(*expiring, made[2], replace(made[3], disabled=True))
    assert found.expiries(AT - 1) == (1, AT)
    assert found.expiries(AT) == (2, None)
