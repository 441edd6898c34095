"""`aiaas validate`: problems on stdout, a summary on stderr, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from aiaas.cli.main import run
from tests.certificate import authority_until

VALID = "backends:\n  vllm:\n    url: http://vllm:8000\n    models: [m, alias]\n"
OVERRIDES = ("VLLM_BACKEND_URL", "VLLM_TIMEOUT", "VLLM_MAX_RETRIES", "LOG_LEVEL", "PROMETHEUS_PORT", "AIAAS_CONFIG")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in OVERRIDES:
        monkeypatch.delenv(name, raising=False)


def write(text: str, *, keys: bool = True) -> None:
    """A config, and a key file beside it, in the working directory."""
    Path("aiaas.yaml").write_text(text)
    if keys:
        Path("keys.yaml").write_text("version: 1\nkeys: []\n")


def test_a_valid_config_says_what_it_amounts_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on stdout, one line on stderr, exit code 0."""
    write(VALID)
    assert run(["validate"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "aiaas.yaml is valid: 1 backend, 1 model, 1 alias, limits per key: 10 requests a minute (burst 10) (digest "
    )


def test_all_problems_come_at_once_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Each problem is a line with file, line, column and code; the count is on stderr; exit code 1."""
    write(VALID + "foo: 1\nserver: {port: 0}\nauth: {enabled: false}\n")
    assert run(["validate"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        "aiaas.yaml:5:1",
        "aiaas.yaml:6:16",
        "aiaas.yaml:7:17",
    ]
    assert err == "aiaas.yaml is not valid: 2 errors, 1 warning\n"


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--strict"], 1)], ids=["as it is", "strict"])
def test_warnings_fail_only_when_strict(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Authentication off is a warning: shown either way, a failure with --strict."""
    write(VALID + "auth: {enabled: false}\n")
    assert run(["validate", *arguments]) == code
    assert "warning AIA209 auth.enabled" in capsys.readouterr().out


def test_a_missing_key_file_is_a_warning_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """The warning names the path and the command that makes the file, at the line that names it."""
    write(VALID + "auth:\n  keys_file: some/keys.yaml\n", keys=False)
    assert run(["validate"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("aiaas.yaml:6:14: warning AIA401 auth.keys_file: some/keys.yaml does not exist")
    assert "`aiaas keys create NAME`" in out


def test_the_overrides_in_force_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """stderr names the variables that changed the config."""
    write(VALID)
    monkeypatch.setenv("VLLM_TIMEOUT", "30s")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert run(["validate"]) == 0
    assert "overridden by the environment: VLLM_TIMEOUT, LOG_LEVEL\n" in capsys.readouterr().err


def test_the_result_is_there_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`-o json` prints one object with every problem's parts."""
    write(VALID + "foo: 1\n")
    assert run(["validate", "-o", "json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["file"], result["valid"], result["digest"]) == ("aiaas.yaml", False, None)
    [problem] = result["problems"]
    assert problem["code"] == "AIA101"
    assert (problem["severity"], problem["path"], problem["line"], problem["column"]) == ("error", "foo", 5, 1)


def test_a_missing_config_is_exit_code_3(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file is an environment error, with one line on stderr."""
    assert run(["validate", "-c", "none.yaml"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "aiaas: none.yaml: no such file; `aiaas init` writes one, --config names another\n"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{enabled: false}", "no limits"),
        ("{requests_per_minute: null, tokens_per_day: 5}", "limits per key: 5 tokens a day"),
        (
            "{tokens_per_minute: 7, tokens_per_month: 9, max_concurrent: 2}",
            "7 tokens a minute, 9 tokens a month, 2 at once",
        ),
    ],
)
def test_the_limits_are_summed_up(section: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary names each limit in force."""
    write(f"{VALID}rate_limit: {section}\n")
    assert run(["validate"]) == 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("keys: [", 1, "error AIA402 auth.keys_file"),
        ("version: 1\nkeys:\n- {id: abcdefgh}\n", 1, "error AIA402 auth.keys_file"),
    ],
    ids=["half written", "a record without a hash"],
)
def test_a_key_file_that_cannot_be_used_is_an_error(
    text: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway that starts with such a file would refuse every request."""
    write(VALID)
    Path("keys.yaml").write_text(text)
    assert run(["validate"]) == code
    assert words in capsys.readouterr().out


CLUSTER = """backends:
  vllm: {url: 'http://vllm:8000', models: [m]}
kubernetes:
  image: r/aiaas:1
  host: api.example.com
  ingress: {class: nginx-internal, annotations: {nginx.ingress.kubernetes.io/proxy-read-timeout: "60"}}
"""


def test_the_chain_of_hops_is_shown_with_the_weakest_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, beside the problem that it explains; each hop with its limits."""
    Path("aiaas.yaml").write_text(CLUSTER)
    assert run(["validate"]) == 1
    out, err = capsys.readouterr()
    assert "error AIA501" in out
    rows = [line.split(maxsplit=4) for line in err.splitlines() if line.startswith("ingress")]
    assert rows == [["ingress", "(nginx-internal)", "1m", "64MiB", "<- weakest: gives up 105s before the gateway"]]


def test_the_chain_is_there_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """For a config with a cluster; empty otherwise."""
    Path("aiaas.yaml").write_text(CLUSTER)
    run(["validate", "-o", "json"])
    chain = json.loads(capsys.readouterr().out)["chain"]
    assert [(hop["name"], hop["silence"]) for hop in chain][1:3] == [("ingress (nginx-internal)", 60), ("gateway", 165)]
    Path("aiaas.yaml").write_text(CLUSTER.partition("kubernetes:")[0])
    run(["validate", "-o", "json"])
    assert json.loads(capsys.readouterr().out)["chain"] == []


def test_keys_that_do_not_fit_into_a_secret_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The size of the key file is what counts, comments included."""
    Path("aiaas.yaml").write_text(CLUSTER.replace('"60"', '"600"'))
    Path("keys.yaml").write_text("version: 1\nkeys: []\n" + "# padding\n" * 110_000)
    assert run(["validate"]) == 1
    assert "error AIA516 auth.keys_file" in capsys.readouterr().out


TLS = VALID + "server:\n  tls: {cert_file: tls.crt, key_file: tls.key}\n  max_connections_per_address: 200\n"


def write_certificate(not_after: datetime) -> None:
    """A certificate and its key, in the working directory."""
    made = trustme.CA().issue_cert("localhost", not_after=not_after)
    Path("tls.crt").write_bytes(made.cert_chain_pems[0].bytes())
    Path("tls.key").write_bytes(made.private_key_pem.bytes())


@pytest.mark.parametrize(
    ("days", "code", "words"),
    [(300, 0, ""), (5, 0, "warning AIA407 server.tls.cert_file: the certificate in tls.crt expires on "),
     (-5, 0, "warning AIA407 server.tls.cert_file: the certificate in tls.crt expired on ")],
    ids=["good", "soon over", "over"],
)  # fmt: skip
def test_the_end_of_the_certificate_is_told(
    days: int, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning, since a pair is renewed without a restart."""
    write(TLS)
    write_certificate(datetime.now(UTC) + timedelta(days=days))
    assert run(["validate"]) == code
    out = capsys.readouterr().out
    assert out.startswith(f"aiaas.yaml:6:20: {words}") if words else out == ""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda: Path("tls.key").unlink(), "tls.key does not exist"),
        (lambda: Path("tls.crt").write_text("x"), "tls.crt does not contain a PEM certificate"),
        (
            lambda: Path("tls.key").write_bytes(trustme.CA().private_key_pem.bytes()),
            "tls.key is not the key of the certificate in tls.crt",
        ),
    ],
    ids=["missing", "no certificate", "another's key"],
)
def test_a_pair_that_cannot_be_used_is_an_error(
    spoil: Callable[[], object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway would not start with that pair."""
    write(TLS)
    write_certificate(datetime.now(UTC) + timedelta(days=300))
    spoil()
    assert run(["validate"]) == 1
    assert capsys.readouterr().out == f"aiaas.yaml:6:3: error AIA406 server.tls: {words}\n"


def test_in_a_cluster_the_pair_may_be_missing_here(capsys: pytest.CaptureFixture[str]) -> None:
    """In a cluster the pair comes from a Secret."""
    write(CLUSTER.replace('"60"', '"600"') + TLS.removeprefix(VALID))
    assert run(["validate"]) == 0
    assert "warning AIA406 server.tls: tls.crt does not exist" in capsys.readouterr().out


SECURE = "backends:\n  s:\n    url: https://vllm.models:8443\n    models: [m]\n    tls: {ca_file: ca.pem}\n"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: None, "error AIA406 backends.s.tls.ca_file: ca.pem does not exist"),
        (lambda: Path("ca.pem").write_text("x"), "error AIA406 backends.s.tls.ca_file: ca.pem does not contain"),
        (lambda: Path("ca.pem").mkdir(), "error AIA406 backends.s.tls.ca_file: ca.pem cannot be read"),
        (
            lambda: authority_until(datetime(2021, 2, 3, tzinfo=UTC), Path()),
            "warning AIA407 backends.s.tls.ca_file: the authority in ca.pem expired on 2021-02-03",
        ),
        (lambda: authority_until(datetime(2999, 2, 3, tzinfo=UTC), Path()), ""),
    ],
    ids=["missing", "not PEM", "a folder", "expired", "good"],
)
def test_authorities_of_a_backend_are_read(
    made: Callable[[], bytes | None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway would not start, or would not connect."""
    write(SECURE)
    if isinstance(pem := made(), bytes):
        Path("ca.pem").write_bytes(pem)
    assert run(["validate"]) == (1 if words.startswith("error") else 0)
    out = capsys.readouterr().out
    assert words in out
    assert out.count("\n") == (1 if words else 0)


def test_in_a_cluster_authorities_come_from_an_object(capsys: pytest.CaptureFixture[str]) -> None:
    """There the file may be missing here, and with --deployed nobody looks."""
    authorities = "kubernetes: {host: api.example.com, image: 'x:1', authorities: {config_map: company}}\n"
    write(SECURE + authorities)
    assert run(["validate"]) == 0
    assert "warning AIA406 backends.s.tls.ca_file: ca.pem does not exist" in capsys.readouterr().out
    Path("ca.pem").write_text("not read")
    assert run(["validate", "--deployed"]) == 0
    assert "ca_file" not in capsys.readouterr().out


def test_an_authority_of_the_store_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A gateway would not start with it either."""
    write(VALID + 'rate_limit:\n  store: "rediss://redis:6379?ssl_ca_certs=ca.pem"\n')
    assert run(["validate"]) == 1
    words = "ca.pem does not exist"
    assert capsys.readouterr().out == f"aiaas.yaml:6:10: error AIA406 rate_limit.store: {words}\n"


def test_config_that_render_refuses_is_an_error_with_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    """A config with a `kubernetes` section is meant for pods: there a loopback address leads nowhere."""
    text = "server: {host: 127.0.0.1}\nbackends: {v: {url: 'http://localhost:8000', models: [m]}}\n"
    Path("aiaas.yaml").write_text(text + "auth: {enabled: false}\n")
    assert run(["validate"]) == 0
    Path("aiaas.yaml").write_text(text + "auth: {enabled: false}\nkubernetes: {host: api.example.com, image: 'x:1'}\n")
    capsys.readouterr()
    assert run(["validate"]) == 1
    out = capsys.readouterr().out
    assert "error AIA405 server.host: 127.0.0.1 cannot be reached from outside the pod" in out
    assert "error AIA405 backends.v.url: localhost is the gateway's own pod" in out
