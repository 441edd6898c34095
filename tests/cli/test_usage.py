"""`aiaas usage`: the table, JSON and CSV, and the message where there is no usage."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from aiaas.cli.main import run
from aiaas.cli.usage import first_day
from aiaas.errors import UsageError
from aiaas.keys.users import user_of
from aiaas.limits.usage import OTHER_USERS, KeptUsage, UsageKey, UsageSums, day_from, day_of, day_text
from aiaas.limits.usage_sqlite import SqliteUsage
from tests.cputime import cpu_time

CONFIG = "backends:\n  vllm:\n    url: http://vllm:8000\n    models: [m, alias]\n"
NOW = 1_795_435_200.0
TODAY = day_of(NOW)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aiaas.cli.usage.time", SimpleNamespace(time=lambda: NOW))  # midnight may come at any time
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    Path("aiaas.yaml").write_text(CONFIG + "monitoring: {usage_file: usage.db}\n")


def add(batch: str, usage: KeptUsage) -> None:
    """Usage as a gateway would have kept it."""

    async def written() -> None:
        store = SqliteUsage(Path("usage.db"))
        await store.add(batch, usage)
        await store.close()

    asyncio.run(written())


@pytest.fixture
def kept() -> None:
    """Usage of two keys on three days."""
    add(
        "1",
        {
            UsageKey(TODAY, "4hT0bQ2x", "m"): UsageSums("alice", 2, 100, 2000, 7, 0, 1_790_000_000),
            UsageKey(TODAY - 1, "4hT0bQ2x", "alias"): UsageSums("alice", 1, 10, 20, 0, 0, 1_780_000_000),
            UsageKey(TODAY - 1, "Zk2vQ8xL", "m"): UsageSums("bob", 5, 1, 2, 3, 4, 1_700_000_000),
            UsageKey(TODAY - 30, "4hT0bQ2x", "m"): UsageSums("alice", 9, 9, 9, 9, 9, 1_600_000_000),
        },
    )


@pytest.mark.usefixtures("kept")
def test_a_table_with_its_totals(capsys: pytest.CaptureFixture[str]) -> None:
    """The last seven days, oldest first, the numbers from the right."""
    assert run(["usage"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "DAY         KEY    MODEL  REQUESTS  INPUT  OUTPUT  EST. INPUT  EST. OUTPUT",
        f"{day_text(TODAY - 1)}  alice  alias         1     10      20           0            0",
        f"{day_text(TODAY - 1)}  bob    m             5      1       2           3            4",
        f"{day_text(TODAY)}  alice  m             2    100    2000           7            0",
        "total                            8    111    2022          10            4",
    ]
    assert err == ""


def test_usage_table_grows_linearly() -> None:
    """Four times the rows take about four times as long; a table that measures its columns for each cell takes 16."""
    seconds = []
    for batch, rows in (("1", range(1000)), ("2", range(1000, 4000))):
        add(batch, {UsageKey(TODAY, f"{row:08d}", "m"): UsageSums(f"u{row}", 1, 2, 3, 4, 5, 6) for row in rows})
        seconds.append(cpu_time(lambda: run(["usage"])))
    assert seconds[1] < 7 * seconds[0]


@pytest.mark.usefixtures("kept")
def test_json_and_csv_have_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """With the key's id, and without a total, which a program makes itself."""
    assert run(["usage", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {
        "day": day_text(TODAY - 1),
        "key": "alice",
        "key_id": "4hT0bQ2x",
        "model": "alias",
        "requests": 1,
        "input_tokens": 10,
        "output_tokens": 20,
        "estimated_input_tokens": 0,
        "estimated_output_tokens": 0,
    }
    assert run(["usage", "-o", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert table == [{name: str(value) for name, value in row.items()} for row in rows]
    assert len(table) == 3


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("key", ["alice", "4hT0bQ2x"], ids=["name", "id"])
def test_one_key_by_name_or_id(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As far back as asked for."""
    assert run(["usage", "--key", key, "--since", day_text(TODAY - 30), "-o", "json"]) == 0
    assert [row["requests"] for row in json.loads(capsys.readouterr().out)] == [9, 1, 2]


@pytest.mark.usefixtures("kept")
def test_usage_by_user_has_their_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    """One of them is found by the name that the application sends; models and users are never mixed."""
    ann, day = user_of("4hT0bQ2x", "ann@example.com"), day_text(TODAY)
    users = {ann: 2, OTHER_USERS: 1}
    add("2", {UsageKey(TODAY, "4hT0bQ2x", "", user): UsageSums("alice", n, n, n, 0, 0, 5) for user, n in users.items()})
    assert run(["usage", "--by", "user"]) == 0
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()] == [
        ["DAY", "KEY", "USER", "REQUESTS"],
        [day, "alice", ann, "2"],
        [day, "alice", OTHER_USERS, "1"],
        ["total", "3", "3", "3"],
    ]
    assert run(["usage", "--key", "alice", "--user", "ann@example.com", "-o", "json"]) == 0
    assert [(row["user"], row["requests"]) for row in json.loads(capsys.readouterr().out)] == [(ann, 2)]
    assert run(["usage", "--key", "alice", "--user", "bob", "-o", "csv"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("day,key,key_id,user,requests,")
    assert out.count("\n") == 1
    assert "users are those of keys with a users_header" in err
    assert run(["usage", "--key", "bob", "--by", "user"]) == 0
    assert run(["usage", "--user", "ann"]) == 2
    assert "--user needs --key" in capsys.readouterr().err


@pytest.mark.usefixtures("kept")
def test_a_key_that_was_never_used_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1; a typo must not look like no usage."""
    assert run(["usage", "--key", "alic"]) == 1
    assert capsys.readouterr().err == "aiaas: no key 'alic' has been used; did you mean alice?\n"


@pytest.mark.usefixtures("kept")
def test_a_key_that_was_not_used_lately_has_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty answer is not an error; the key's other days are known all the same."""
    assert run(["usage", "--key", "bob", "--since", "1d", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("[]\n", f"no usage since {day_text(TODAY)}\n")


def test_no_usage_yet_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the gateway's first request there is no file."""
    assert run(["usage", "--since", "2026-03-01"]) == 0
    assert capsys.readouterr() == ("", "no usage since 2026-03-01\n")
    assert not Path("usage.db").exists()


def test_a_config_that_keeps_none_says_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1."""
    Path("aiaas.yaml").write_text(CONFIG)
    assert run(["usage"]) == 1
    assert "set monitoring.usage_file: usage.db" in capsys.readouterr().err


def test_a_config_with_errors_leads_to_validate(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1."""
    Path("aiaas.yaml").write_text(CONFIG + "foo: 1\n")
    assert run(["usage"]) == 1
    assert "aiaas validate -c aiaas.yaml" in capsys.readouterr().err


def test_damaged_file_is_an_environment_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, one line."""
    Path("usage.db").write_text("notes " * 100)
    assert run(["usage"]) == 3
    assert capsys.readouterr().err.startswith("aiaas: usage.db is damaged or not a database")


@pytest.mark.parametrize(
    ("since", "day"),
    [("7d", 14), ("1d", 20), ("12h", 20), ("2w", 7), ("36h", 19), ("0d", 20), ("2026-11-03", 3), ("99999w", None)],
)
def test_since_counts_whole_days(since: str, day: int | None) -> None:
    """Today is one of them; at noon of 2026-11-20."""
    noon = day_from("2026-11-20") * 86400 + 43_200.0
    assert first_day(since, noon) == (0 if day is None else day_from(f"2026-11-{day:02}"))


def test_invalid_since_is_wrong_usage() -> None:
    """The message says the allowed forms."""
    with pytest.raises(UsageError, match="'yesterday' is not a time; write for example 7d, 12w or 2026-03-01"):
        first_day("yesterday", 0.0)


@pytest.mark.usefixtures("kept")
def test_the_list_of_keys_shows_the_last_use(capsys: pytest.CaptureFixture[str]) -> None:
    """If it is known."""
    assert run(["keys", "create", "carol"]) == 0
    text = Path("keys.yaml").read_text()
    key_id = next(line.split()[-1] for line in text.splitlines() if "- id:" in line).strip("'")
    add("2", {UsageKey(TODAY, key_id, "m"): UsageSums("carol", 1, 0, 0, 0, 0, 1_790_000_000)})
    assert run(["keys", "create", "dave"]) == 0
    capsys.readouterr()
    assert run(["keys", "list", "-o", "json"]) == 0
    listed = {row["name"]: row["last_used"] for row in json.loads(capsys.readouterr().out)}
    assert listed == {"carol": "2026-09-21T14:13:20Z", "dave": None}
    assert run(["keys", "list"]) == 0
    assert "2026-09-21T14:13:20Z" in capsys.readouterr().out


def test_a_list_of_keys_survives_a_damaged_usage_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A note, and the keys."""
    Path("usage.db").write_text("notes " * 100)
    assert run(["keys", "create", "carol"]) == 0
    capsys.readouterr()
    assert run(["keys", "list"]) == 0
    out, err = capsys.readouterr()
    assert "carol" in out
    assert err.startswith("warning: last use is unknown: usage.db is damaged")
