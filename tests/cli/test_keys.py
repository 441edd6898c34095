"""`aiaas keys`: output for a person, and output for a script."""

import io
import json
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from passlib.hash import pbkdf2_sha256

from aiaas.cli.main import run
from aiaas.keys.file import edit_key_file, read_key_file
from aiaas.keys.format import make_key, parse_key, tag_of
from aiaas.keys.hashing import hash_key, is_digest, verify_key
from aiaas.keys.model import KeyLimits

FOREIGN = "sk-Zk2vQ8xLr7Tn4Wp9Ym3Hc6Jb1Fd5Gs0"


class Console:
    """Runs commands in a folder of its own and keeps what they print."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "keys.yaml"
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.out = ""
        self.err = ""

    def __call__(self, *arguments: str, stdin: str | None = None) -> int:
        if stdin is not None:
            self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        code = run(["keys", *arguments])
        self.out, self.err = self._capsys.readouterr()
        return code


@pytest.fixture
def console(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIAAS_CONFIG", raising=False)
    return Console(tmp_path, capsys, monkeypatch)


def test_a_shell_variable_takes_the_key(tmp_path: Path) -> None:
    """`KEY=$(aiaas keys create alice)` in a real shell: the key and nothing else, and it is valid."""
    script = (
        f'aiaas() {{ "{sys.executable}" -m aiaas "$@"; }}; KEY=$(aiaas keys create alice --keys-file "$1") || exit 9; '
        'printf "%s" "$KEY"; printf "%s" "$KEY" | aiaas keys verify --keys-file "$1" >/dev/null'
    )
    file = tmp_path / "keys.yaml"
    done = subprocess.run(
        ["bash", "-c", script, "sh", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert parse_key(done.stdout) is not None
    assert "only time" in done.stderr
    assert done.stdout not in done.stderr
    assert done.stdout not in file.read_text()


def test_a_key_is_created_with_everything_said(console: Console) -> None:
    """Every option is in the record."""
    options = "--model m1 --model m2 --rpm 60 --burst 5 --tpm 1000 --tpd 10000 --tokens-per-month 99999 --concurrency 4"
    code = console("create", "alice", *options.split(), "--expires", "90d", "--metadata", "team=a=b", "-o", "json")
    assert code == 0
    told = json.loads(console.out)
    assert parse_key(told["key"]) is not None
    assert told["models"] == ["m1", "m2"]
    assert told["metadata"] == {"team": "a=b"}
    assert told["limits"] == {
        "requests_per_minute": 60, "burst": 5, "tokens_per_minute": 1000, "tokens_per_day": 10000,
        "tokens_per_month": 99999, "max_concurrent": 4,
    }  # fmt: skip
    (record,) = read_key_file(console.file).records
    assert record.expires is not None
    assert (record.expires - record.created).days == 90


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "-x"], 2, "No such option"),
        (["create", "a b"], 1, "'a b' is not a valid name"),
        (["create", "alice"], 1, "there is already a key 'alice'; `aiaas keys rotate alice`"),
        (["create", "bob", "--rpm", "0"], 2, "--rpm"),
        (["create", "bob", "--rpm", "x"], 2, "--rpm"),
        (["create", "bob", "--tpm", "9" * 17], 2, "1000000000000000"),
        (["create", "bob", "--expires", "soon"], 2, "'soon' is not a valid expiry; write for example 90d"),
        (["create", "bob", "--expires", "2020-01-01"], 2, "'2020-01-01' is in the past"),
        (["create", "bob", "--metadata", "x"], 2, "write it as name=value"),
        (["create", "bob", "-c", "nope.yaml"], 3, "nope.yaml: there is no such config"),
        (["create", "bob", "--keys-file", "no/keys.yaml"], 3, "no/keys.yaml: cannot be written: its folder"),
        (["show", "alcie"], 1, "there is no key 'alcie'; did you mean alice?"),
        (["revoke", "zzz"], 1, "`aiaas keys list` shows all"),
        (["rotate", "alice", "--overlap", "long"], 2, "--overlap 'long': must be a duration"),
        (["list", "--keys-file", "none.yaml"], 3, "none.yaml: file not found; `aiaas keys create NAME`"),
        (["list", "-o", "xml"], 2, "--output"),
    ],
)  # fmt: skip
def test_impossible_command_is_one_line(console: Console, arguments: list[str], code: int, message: str) -> None:
    """The message says the fault and the allowed values, with the right exit code; the file is as it was."""
    assert console("create", "alice") == 0
    before = console.file.read_bytes()
    assert console(*arguments) == code
    assert message in console.err
    assert console.err.count("\n") == 1
    assert console.out == ""
    assert console.file.read_bytes() == before


def test_a_broken_key_file_is_one_line(console: Console) -> None:
    """Reading and writing commands say where the file is broken and leave it alone."""
    console.file.write_text("version: 1\nkeys:\n- name: [\n")
    for arguments in (["list"], ["create", "bob"], ["revoke", "bob"], ["prune"]):
        assert console(*arguments) == 1
        assert console.err.startswith("aiaas: keys.yaml:4:1: not YAML")
        assert console.err.count("\n") == 1


def test_the_list_shows_states_and_no_hash(console: Console) -> None:
    """As a table and as JSON."""
    console("create", "alice", "--model", "m")
    console("create", "bob")
    console("revoke", "bob")
    assert console("list") == 0
    assert [line.split()[0] for line in console.out.splitlines()] == ["NAME", "alice", "bob"]
    assert console("list", "-o", "json") == 0
    assert [(key["name"], key["state"]) for key in json.loads(console.out)] == [("alice", "active"), ("bob", "revoked")]
    assert "SSHA256" not in console.out
    assert "hash" not in console.out


def test_one_key_is_shown_by_name_or_id(console: Console) -> None:
    """Both give the same output."""
    console("create", "alice")
    (record,) = read_key_file(console.file).records
    assert console("show", "alice") == 0
    by_name = console.out
    assert console("show", record.id) == 0
    assert console.out == by_name
    assert "active" in by_name


def test_a_revoked_key_is_not_valid(console: Console) -> None:
    """`verify` says whose it was, exit code 1; revoking twice is not an error."""
    console("create", "alice")
    key = console.out.strip()
    assert console("revoke", "alice") == 0
    assert console("revoke", "alice") == 0
    assert "revoked already" in console.err
    assert console("verify", stdin=key) == 1
    assert "alice" in console.err
    assert "revoked" in console.err


def test_rotation_keeps_the_old_secret_only_when_asked(console: Console) -> None:
    """With --overlap both secrets are valid, without it the old one is refused at once. The id stays."""
    console("create", "alice")
    first = console.out.strip()
    assert console("rotate", "alice", "--overlap", "24h") == 0
    second = console.out.strip()
    assert console("verify", stdin=first) == 0
    assert "old secret" in console.err
    assert console("verify", stdin=second) == 0
    assert console.err == ""
    assert console("rotate", "alice") == 0
    third = console.out.strip()
    assert console("verify", stdin=second) == 1
    assert console("verify", stdin=third) == 0
    parsed = [parse_key(key) for key in (first, second, third)]
    assert len({key.key_id for key in parsed if key is not None}) == 1


def test_the_plans_key_works_after_import(console: Console) -> None:
    """`sk-test-key` is guessable: refused without --weak, valid with it, with a warning."""
    assert console("import", "test", stdin="sk-test-key") == 1
    assert "--weak" in console.err
    assert not console.file.exists()
    assert console("import", "test", "--weak", stdin="sk-test-key\n") == 0
    assert "keep its hash out of git" in console.err
    for written in ("sk-test-key", "\ufeffsk-test-key\r\n"):  # as a file from an editor on Windows holds it
        assert console("verify", stdin=written) == 0
        assert "test" in console.out
    assert "sk-test-key" not in console.file.read_text()


def test_a_strong_foreign_key_is_imported_once(console: Console) -> None:
    """It needs no --weak, is not marked weak even with it, and is refused under a second name."""
    assert console("import", "bob", "--weak", stdin=FOREIGN) == 0
    (record,) = read_key_file(console.file).records
    assert record.imported
    assert not record.weak
    assert console("import", "carol", stdin=FOREIGN) == 1
    assert "already, as bob" in console.err
    assert FOREIGN not in console.err


@pytest.mark.parametrize("stdin", ["", "\n", "a\nb\n"], ids=["nothing", "a line end", "two lines"])
def test_stdin_holds_one_key(console: Console, stdin: str) -> None:
    """Nothing and two keys are wrong usage."""
    console("create", "alice")
    assert console("verify", stdin=stdin) == 2
    assert console("import", "bob", stdin=stdin) == 2


@pytest.mark.parametrize(
    "key", ["junk", "ü", "\x00\xff", FOREIGN, "x" * 100_000], ids=["junk", "umlaut", "bytes", "foreign", "huge"]
)
def test_a_key_that_is_none_is_not_valid(console: Console, key: str) -> None:
    """Exit code 1 and one line that does not repeat the key."""
    console("create", "alice")
    assert console("verify", stdin=key) == 1
    assert console.err == "aiaas: not valid: no key in keys.yaml matches\n"


def test_generated_key_is_stored_as_a_digest(console: Console) -> None:
    """`create` and `rotate`; an imported key has argon2id, also where it has the form of our own."""
    console("create", "alice")
    first = console.out.strip()
    console("rotate", "alice", "--overlap", "1h")
    (record,) = read_key_file(console.file).records
    assert record.previous is not None
    assert [verify_key(first, record.previous.hash), verify_key(console.out.strip(), record.hash)] == [True, True]
    assert [is_digest(record.hash), is_digest(record.previous.hash), record.tag] == [True, True, None]
    for name, key in (("bob", FOREIGN), ("carol", make_key("sk-", secrets.token_bytes).text)):
        assert console("import", name, stdin=key) == 0
        assert read_key_file(console.file).records[-1].hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert console("verify", stdin=key) == 0
        assert console.err == ""


@pytest.mark.parametrize("own", [True, False], ids=["ours", "imported"])
def test_verify_renews_an_outdated_hash(console: Console, own: bool) -> None:
    """`verify` replaces a slow hash of a generated key by a digest, and an imported key's by today's argon2id."""
    assert console(*(("create", "alice") if own else ("import", "alice")), stdin=FOREIGN) == 0
    key = console.out.strip() if own else FOREIGN
    (record,) = read_key_file(console.file).records
    outdated = pbkdf2_sha256.using(rounds=1000).hash(key)
    console.file.write_text(console.file.read_text().replace(record.hash, outdated))
    assert console("verify", stdin=key) == 0
    assert "renewed" in console.err
    (renewed,) = read_key_file(console.file).records
    assert renewed.hash.startswith("{SSHA256}" if own else "$argon2id$v=19$m=19456,t=2,p=1$")
    assert console("verify", stdin=key) == 0
    assert console.err == ""


def test_a_hash_of_before_there_were_digests_is_accepted(console: Console) -> None:
    """argon2id and a tag, as the first versions stored a generated key: valid, and renewed by `verify` to a digest."""
    console("create", "alice")
    key = console.out.strip()
    (record,) = read_key_file(console.file).records
    with edit_key_file(console.file) as file:
        file.records = (replace(record, hash=hash_key(key), tag=tag_of(key)),)
    assert console("verify", stdin=key) == 0
    (renewed,) = read_key_file(console.file).records
    assert (is_digest(renewed.hash), renewed.tag) == (True, None)


def test_an_overlap_is_never_said_to_outlive_its_key(console: Console) -> None:
    """`rotate`, `show` and `verify` say what the gateway does."""
    console("create", "alice", "--expires", "2099-01-01")
    first = console.out.strip()
    console("rotate", "alice", "--overlap", "999999d")
    assert "valid until 2099-01-01T00:00:00Z" in console.err
    console("show", "alice")
    assert "until 2099-01-01T00:00:00Z" in console.out
    console("show", "alice", "-o", "json")
    assert json.loads(console.out)["previous"] == {"until": "2099-01-01T00:00:00Z"}
    assert console("verify", stdin=first) == 0
    assert "valid until 2099-01-01T00:00:00Z" in console.err


def test_prune_removes_what_no_longer_works(console: Console) -> None:
    """Names on stdout; --dry-run only lists them."""
    console("create", "alice")
    console("create", "bob")
    console("revoke", "alice")
    assert console("prune", "--dry-run") == 0
    assert console.out == "alice\n"
    assert len(read_key_file(console.file).records) == 2
    assert console("prune") == 0
    assert console.out == "alice\n"
    assert [record.name for record in read_key_file(console.file).records] == ["bob"]
    assert console("prune", "-o", "json") == 0
    assert json.loads(console.out) == []


def test_a_key_that_cannot_be_printed_is_said_to_be_lost(tmp_path: Path) -> None:
    """stdout on a full disk: exit 3, and advice."""
    command = [sys.executable, "-m", "aiaas", "keys", "create", "alice", "--keys-file", str(tmp_path / "keys.yaml")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "aiaas keys rotate alice" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_key_shows_in_a_traceback(console: Console) -> None:
    """Even --debug, on a failure after the key was read, does not print it."""
    assert console("--debug", "import", "a/b", stdin=FOREIGN) == 1
    assert "Traceback" in console.err
    assert FOREIGN not in console.err


@pytest.mark.parametrize("option", ["--rpm", "--burst", "--tpm", "--tpd", "--tokens-per-month", "--concurrency"])
def test_a_limit_beyond_the_bound_is_wrong_usage(console: Console, option: str) -> None:
    """The message names the option and its limit, not a line of an unwritten file. The limit itself is valid."""
    assert console("create", "bob", option, str(10**15 + 1)) == 2
    assert option in console.err
    assert str(10**15) in console.err
    assert not console.file.exists()
    assert console("create", "bob", option, str(10**15)) == 0


CONFIG = """
backends:
  vllm:
    url: http://vllm:8000
    models: [gpt-oss-20b]
auth: {api_key_prefix: "ak_", keys_file: sub/keys.yaml}
"""


def test_the_config_says_where_keys_are_and_how_they_begin(console: Console, tmp_path: Path) -> None:
    """The key file is relative to the config, and the prefix is the config's."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "aiaas.yaml").write_text(CONFIG)
    assert console("create", "alice", "--model", "gpt-oss-20b") == 0
    assert console.out.startswith("ak_")
    assert read_key_file(tmp_path / "sub" / "keys.yaml").records


@pytest.mark.parametrize(("command", "stdin"), [("create", None), ("import", FOREIGN)], ids=["create", "import"])
def test_a_model_that_the_config_lacks_needs_force(
    console: Console, tmp_path: Path, command: str, stdin: str | None
) -> None:
    """Refused with a suggestion, and nothing is stored; with --force a warning, for a model that comes later."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "aiaas.yaml").write_text(CONFIG)
    file = tmp_path / "sub" / "keys.yaml"
    assert console(command, "alice", "--model", "gpt-oss-20", stdin=stdin) == 1
    assert (console.out, console.err.count("\n")) == ("", 1)
    assert "did you mean gpt-oss-20b?" in console.err
    assert not file.exists()
    assert console(command, "alice", "--model", "gpt-oss-20", "--force", stdin=stdin) == 0
    assert "warning: the config has no model 'gpt-oss-20'" in console.err
    assert read_key_file(file).records[0].models == ("gpt-oss-20",)


@pytest.mark.parametrize(("command", "stdin"), [("create", None), ("import", FOREIGN)], ids=["create", "import"])
def test_allowed_fields_are_kept_and_shown(console: Console, command: str, stdin: str | None) -> None:
    """Each once, in the order of the options; also after a rotation."""
    assert console(command, "bob", *["--allow-field", "priority"] * 2, "--allow-field", "uuid", stdin=stdin) == 0
    assert "allow_fields:\n  - priority\n  - uuid\n" in console.file.read_text()
    assert console("rotate", "bob") == 0
    assert console("create", "alice") == 0
    assert console("show", "bob") == 0
    assert "fields:     priority, uuid" in console.out
    assert console("list") == 0
    assert "priority, uuid" in console.out
    assert console("list", "-o", "json") == 0
    assert [key["allow_fields"] for key in json.loads(console.out)] == [["priority", "uuid"], []]


@pytest.mark.parametrize(("command", "stdin"), [("create", None), ("import", FOREIGN)], ids=["create", "import"])
def test_unknown_field_needs_force(console: Console, command: str, stdin: str | None) -> None:
    """It may be misspelt, and then would allow nothing; a field of the gateway's own is refused in any case."""
    assert console(command, "alice", "--allow-field", "priorty", stdin=stdin) == 1
    assert (console.out, console.err.count("\n")) == ("", 1)
    assert "did you mean priority?" in console.err
    assert console(command, "alice", "--allow-field", "stream", "--force", stdin=stdin) == 1
    assert not console.file.exists()
    assert console(command, "alice", "--allow-field", "priorty", "--force", stdin=stdin) == 0
    assert "warning: --allow-field priorty: is not a field" in console.err
    assert read_key_file(console.file).records[0].allow_fields == ("priorty",)


def test_limits_of_users_are_kept_and_shown(console: Console) -> None:
    """By `create` and `import`; without a header, or above the key's own, they are wrong usage."""
    limits = ("--user-rpm", "10", "--user-tokens-per-minute", "9", "--user-concurrency", "2")
    options = ("--users-header", "x-user", *limits)
    assert console("create", "app", "--rpm", "60", *options) == 0
    record = read_key_file(console.file).records[0]
    assert record.user_limits == KeyLimits(requests_per_minute=10, tokens_per_minute=9, max_concurrent=2)
    assert console("show", "app") == 0
    assert "by x-user, each with requests_per_minute=10, tokens_per_minute=9, max_concurrent=2\n" in console.out
    assert console("import", "old", *options, stdin=FOREIGN) == 0
    assert console("list", "-o", "json") == 0
    assert [key["user_limits"]["max_concurrent"] for key in json.loads(console.out)] == [2, 2]
    above = (*options, "--rpm", "9")
    for wrong, says in ((("--user-rpm", "5"), "need users_header"), (above, "above the key's own 9")):
        assert console("create", "bad", *wrong) == 2
        assert says in console.err


def test_header_of_users_is_kept_and_shown(console: Console) -> None:
    """Also by an import; a name that is none, or that every request has, is wrong usage."""
    assert console("create", "app", "--users-header", "X-OpenWebUI-User-Id") == 0
    assert "users_header: X-OpenWebUI-User-Id\n" in console.file.read_text()
    assert console("show", "app") == 0
    assert "users:      by X-OpenWebUI-User-Id" in console.out
    assert console("import", "old", "--users-header", "x-user", stdin=FOREIGN) == 0
    assert console("list", "-o", "json") == 0
    assert [key["users_header"] for key in json.loads(console.out)] == ["X-OpenWebUI-User-Id", "x-user"]
    for wrong, says in (("X User", "is not the name of a header"), ("Authorization", "does not name a user")):
        assert console("create", "bad", "--users-header", wrong) == 2
        assert says in console.err


def test_a_field_with_a_rule_in_the_config_can_be_allowed(console: Console, tmp_path: Path) -> None:
    """Even if the table does not know it."""
    (tmp_path / "sub").mkdir()
    rules = "request: {fields: {own_field: reject}, fields_by_class: {batch: {other_field: reject}}}\n"
    (tmp_path / "aiaas.yaml").write_text(CONFIG + rules)
    assert console("create", "alice", "--allow-field", "own_field", "--allow-field", "other_field") == 0
    assert console("create", "bob", "--allow-field", "own_feild") == 1
    assert "did you mean own_field?" in console.err


@pytest.mark.parametrize("value", [None, "no header value"])
def test_a_backends_own_key_is_not_needed_to_make_one(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """A machine that only makes keys runs no engine; the rest of the config (its key file, its models) holds."""
    monkeypatch.delenv("VLLM_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_KEY", value)
    (tmp_path / "sub").mkdir()
    (tmp_path / "aiaas.yaml").write_text(CONFIG.replace("models:", "api_key_env: VLLM_KEY\n    models:"))
    assert console("create", "alice") == 0
    assert read_key_file(tmp_path / "sub" / "keys.yaml").records[0].name == "alice"
    assert console("create", "bob", "--model", "gpt-oss-20") == 1
    assert "did you mean gpt-oss-20b?" in console.err


def test_a_config_with_errors_is_refused(console: Console, tmp_path: Path) -> None:
    """It might name another key file than intended; --keys-file works all the same."""
    (tmp_path / "aiaas.yaml").write_text(CONFIG + "bad: 1\n")
    assert console("create", "alice") == 1
    assert "`aiaas validate -c aiaas.yaml`" in console.err
    assert console("create", "alice", "--keys-file", "keys.yaml") == 0
