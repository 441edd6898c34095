"""The key file's text: everything comes back, and every fault names its line."""

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.keys.model import PRIORITY_CLASSES, KeyLimits, KeyRecord, PreviousSecret
from aiaas.keys.records import HEADER, parse_records, record_mapping, render_records
from aiaas.keys.tree import KeyFileError

HASH = "$argon2id$v=19$m=19456,t=2,p=1$EIKQUirlPMfYG+M8Z0ypVQ$ATyPSo0BDobFMGooFnTTOGdGszZtW1xnQfxn6aGP5jM"
DIGEST = "{SSHA256}" + "a" * 64
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ALICE = KeyRecord(id="aaaaaaaa", name="alice", hash=HASH, tag="0a0b", created=NOW)
FULL = replace(
    ALICE,
    expires=NOW,
    disabled=True,
    models=("gpt-oss-20b", "unsloth/gpt-oss-20b"),
    priority_class="batch",
    allow_fields=("priority", "prompt_logprobs"),
    users_header="X-OpenWebUI-User-Id",
    user_limits=KeyLimits(6, 1, 100, 1000, 10_000, 2),
    limits=KeyLimits(60, 10, 1000, 10_000, 100_000, 4),
    metadata={"team": "search", "note": "yes: 'really' #1"},
    previous=PreviousSecret(HASH, NOW, "ff", imported=True),
    imported=True,
    weak=True,
)
ENTRY = f"""- id: aaaaaaaa
  name: alice
  hash: {HASH}
  created: 2026-03-01T12:00:00Z
"""
FLOW = f"{{id: aaaaaaaa, name: alice, hash: '{HASH}', created: 2026-03-01}}"


def moments() -> st.SearchStrategy[datetime]:
    times = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC))
    return times.map(lambda moment: moment.replace(microsecond=0))


def _with_users(record: KeyRecord) -> KeyRecord:
    """The record, with limits for its users where it has a header that names them."""
    valid = record.limits.burst is None or record.limits.requests_per_minute is not None
    return replace(record, user_limits=record.limits) if valid and record.users_header is not None else record


words = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=20)
records = st.builds(
    KeyRecord,
    id=st.text("0123456789abcXYZ", min_size=8, max_size=8),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True),
    hash=st.just(HASH) | st.just(DIGEST),
    created=moments(),
    expires=st.none() | moments(),
    disabled=st.booleans(),
    models=st.none() | st.lists(words, max_size=3).map(tuple),
    priority_class=st.sampled_from(PRIORITY_CLASSES),
    allow_fields=st.lists(words, max_size=3).map(tuple),
    users_header=st.none() | st.sampled_from(["X-OpenWebUI-User-Id", "x-user"]),
    limits=st.builds(KeyLimits, *[st.none() | st.integers(min_value=1, max_value=10**15)] * 6),
    metadata=st.dictionaries(st.text("abc123~ :#", min_size=1, max_size=5), words, max_size=3),
    previous=st.none() | st.builds(PreviousSecret, st.just(HASH), moments(), st.just("abcd"), st.booleans()),
    imported=st.booleans(),
    tag=st.sampled_from(["0000", "12e4", "ff"]),
    weak=st.booleans(),
).filter(lambda record: not (record.imported and record.hash == DIGEST)).map(_with_users)  # fmt: skip


def test_wrong_header_of_users_is_an_error_at_its_place() -> None:
    """Line and column, as for every field."""
    text = f"version: 1\nkeys:\n{ENTRY}  users_header: X User\n"
    with pytest.raises(KeyFileError, match=r"k:7:17: .*users_header 'X User' is not the name of a header"):
        parse_records(text, "k")


@pytest.mark.parametrize(
    ("fields", "place", "says"),
    [
        ("user_limits: {max_concurrent: 1}", "7:16", "user_limits: limits on users need users_header"),
        (
            "users_header: x\n  limits: {burst: 1}\n  user_limits: {requests_per_minute: 1, burst: 2}",
            "9:16",
            "above the",
        ),
        ("users_header: x\n  user_limits: {max: 2}", "8:22", "user_limits: 'max' is unknown"),
    ],
    ids=["without a header", "above the key's", "unknown limit"],
)
def test_wrong_limits_of_users_are_an_error_at_their_place(fields: str, place: str, says: str) -> None:
    """A limit that silently does not hold is worse than none."""
    with pytest.raises(KeyFileError, match=f"k:{place}: .*{says}"):
        parse_records(f"version: 1\nkeys:\n{ENTRY}  {fields}\n", "k")


@given(st.lists(records, unique_by=(lambda record: record.id, lambda record: record.name), max_size=4))
def test_written_records_are_read_again(made: list[KeyRecord]) -> None:
    """Any records survive the file, names like `null` and digits-only ids too, and a second writing changes nothing."""
    text = render_records(made)
    again = parse_records(text, "keys.yaml")
    assert again == tuple(made)
    assert render_records(again) == text


def test_the_order_and_the_diff_are_stable() -> None:
    """One more key is lines added at the end and nothing else."""
    one = render_records([FULL]).splitlines()
    two = render_records([FULL, replace(ALICE, id="bbbbbbbb", name="bob")]).splitlines()
    assert two[: len(one) - 1] == one[:-1]
    assert one[0] == HEADER


def test_a_file_written_by_hand_is_read() -> None:
    """Without our first line and without the end; dates bare, tag left out, nulls for unset fields."""
    (record,) = parse_records("version: 1\nkeys:\n" + ENTRY + "  expires: 2027-01-31\n  models: null\n", "keys.yaml")
    assert record.expires == datetime(2027, 1, 31, tzinfo=UTC)
    assert record.models is None
    assert record.tag is None


def test_every_cut_of_a_file_is_noticed() -> None:
    """A half-written file is never taken for a shorter whole one, wherever the cut falls."""
    text = render_records([ALICE, FULL.__class__(**{**_fields(FULL), "id": "bbbbbbbb", "name": "bob"})])
    for length in range(len(text) - 1):
        with pytest.raises(KeyFileError):
            parse_records(text[:length], "keys.yaml")
    assert len(parse_records(text, "keys.yaml")) == 2


def _fields(record: KeyRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def with_line(line: str) -> str:
    return "version: 1\nkeys:\n" + ENTRY + line + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "k: it is empty"),
        ("hello", "k:1:1: the file must be a mapping"),
        ("keys: []", "k:1:1: the file: version is missing"),
        ("version: 2\nkeys: []", "k:1:10: version is '2'; this version of aiaas reads 1"),
        ("version: 1", "k:1:1: `keys` is missing"),
        ("version: 1\nkeys:\n", "k:2:6: `keys` must be a list"),
        ("version: 1\nkeys: {}\n", "k:2:7: `keys` must be a list"),
        ("version: 1\nkeys: []\nadmin: x", "k:3:8: the file: 'admin' is unknown; known are version, keys"),
        ("version: 1\nkeys:\n- x", "k:3:3: keys[0] must be a mapping"),
        ("version: 1\nkeys:\n- id: aaaaaaaa", "k:3:3: keys[0]: name is missing"),
        ("version: 1\nkeys:\n- name: -x", "k:3:9: keys[0]: name '-x' is not a valid name"),
        ("version: 1\nkeys:\n- name: bob\n  id: short", "k:4:7: keys[0] (bob): id 'short' is not a key id"),
        ("version: 1\nkeys:\n- name: bob\n  id: aaaaaaaa\n  hash: x", "k:5:9: keys[0] (bob): hash cannot be used"),
        ("version: 1\nkeys:\n" + ENTRY + ENTRY, "k:7:3: name 'alice' is already used in line 3"),
        ("version: 1\nkeys:\n" + ENTRY + ENTRY.replace("alice", "bob"), "k:7:3: id 'aaaaaaaa' is already used in"),
        (f"version: 1\nkeys: [{FLOW}, {FLOW}]", f"k:2:{len(FLOW) + 10}: name 'alice' is already used in line 2"),
        (with_line("  created: 2026-03-01"), "k:7:3: 'created' appears twice"),
        (with_line("  expires: soon"), "k:7:12: keys[0] (alice): expires 'soon' is not a date"),
        (with_line("  disabled: 'yes'"), "k:7:13: keys[0] (alice): disabled must be true or false"),
        (with_line("  tag: xyz"), "k:7:8: keys[0] (alice): tag must be two or four hex digits"),
        (with_line("  imported: true"), "k:3:3: keys[0] (alice): an imported key needs its `tag`"),
        (with_line("  class: urgent"), "k:7:10: keys[0] (alice): class 'urgent' is unknown; known are interactive"),
        (with_line("  models: gpt"), "k:7:11: keys[0] (alice): models must be a list of model names"),
        (with_line("  models: [[a]]"), "k:7:12: keys[0] (alice): models[0] must be a string"),
        (with_line("  limits: 5"), "k:7:11: keys[0] (alice): limits must be a mapping"),
        (with_line("  limits:\n    rpm: 5"), "k:8:10: keys[0] (alice): limits: 'rpm' is unknown; known are req"),
        (with_line("  limits: {burst: 0}"), "k:7:19: keys[0] (alice): limits: burst must be 1 to"),
        (with_line("  limits: {burst: -1}"), "burst must be a whole number above 0"),
        (with_line("  limits: {burst: 1.5}"), "burst must be a whole number above 0"),
        (with_line("  limits: {burst: '5'}"), "burst must be a whole number above 0"),
        (with_line("  metadata: [a]"), "k:7:13: keys[0] (alice): metadata must be a mapping"),
        (with_line("  metadata: {a: [b]}"), "k:7:17: keys[0] (alice): metadata.a must be a string"),
        (with_line("  previous: {until: 2026-03-01}"), "k:7:13: keys[0] (alice): previous: hash is missing"),
        (
            with_line("  tag: ff\n  imported: true").replace(HASH, f"'{DIGEST}'"),
            "k:5:9: keys[0] (alice): hash: an imported key needs a slow hash",
        ),
        (
            with_line(f"  previous: {{hash: '{DIGEST}', until: 2026-03-01, tag: ff, imported: true}}"),
            "k:7:20: keys[0] (alice): previous: hash: an imported key needs a slow hash",
        ),
        (with_line("  secret: sk-x"), "k:7:11: keys[0]: 'secret' is unknown"),
    ],
)  # fmt: skip
def test_a_fault_names_its_line(text: str, message: str) -> None:
    """The message has file, line, record, field, the fault and the allowed values."""
    with pytest.raises(KeyFileError) as caught:
        parse_records(text, "k")
    assert message in str(caught.value)
    assert HASH not in str(caught.value)


def test_public_mapping_omits_the_hash() -> None:
    """The mapping for `show -o json` leaves out hashes and tags."""
    told = repr(record_mapping(FULL))
    assert "argon2" not in told
    assert "0a0b" not in told
    assert "'ff'" not in told


@pytest.mark.parametrize(("count", "seconds"), [(1000, 1.0), (10_000, 5.0)])
def test_many_records_are_read_in_time(count: int, seconds: float) -> None:
    """1,000 keys load in under a second, 10,000 in under five (CPU time; 0.06 and 0.6 s here)."""
    text = render_records(replace(ALICE, id=f"{number:08d}", name=f"user-{number}") for number in range(count))
    begin = time.thread_time()
    assert len(parse_records(text, "keys.yaml")) == count
    assert time.thread_time() - begin < seconds
