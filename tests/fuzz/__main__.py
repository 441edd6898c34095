"""`python -m tests.fuzz [SECONDS]`: fuzz each target with atheris. A failing input joins the corpus, exit 1.

    python -m tests.fuzz 60                     # the seconds are shared by the targets
    python -m tests.fuzz 600 --only peek

Each target runs in a process of its own, since libFuzzer ends its process. Its interesting inputs stay in a folder
of the cache, where the next run begins; a failing input is written to tests/fuzz/corpus/TARGET, where the suite runs it
from then on.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS

CORPUS: Final = Path(__file__).resolve().parent / "corpus"
# No reader of ours may take longer for one input (of 4 KiB at the most). Seconds.
SLOW: Final = 5


def main(arguments: list[str]) -> int:
    """Fuzz with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz everything that reads bytes.")
    parser.add_argument("seconds", type=int, nargs="?", default=60, help="for all targets together")
    parser.add_argument("--only", metavar="NAMES", default=",".join(TARGETS), help=f"some of {','.join(TARGETS)}")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("fuzz: atheris is not installed; `nox -s fuzz` installs it, or: pip install atheris", file=sys.stderr)
        return 1
    names = options.only.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown; there are {', '.join(TARGETS)}")
    failed = [name for name in names if not _run(name, max(1, options.seconds // len(names)))]
    print(f"fuzz: {', '.join(failed)} failed" if failed else f"fuzz: {len(names)} targets held")
    return 1 if failed else 0


def _run(name: str, seconds: int) -> bool:
    """One target in a process of its own; whether it held."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aiaas" / "fuzz" / name
    cache.mkdir(parents=True, exist_ok=True)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.one", name, f"-max_total_time={seconds}", f"-timeout={SLOW}",
               f"-artifact_prefix={CORPUS / name}/", "-max_len=4096", "-print_final_stats=1", "-verbosity=0",
               str(cache), str(CORPUS / name)]  # fmt: skip
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    said = [line for line in done.stdout.splitlines() if not line.startswith(("INFO:", "WARNING:"))]
    runs = next((line.rpartition(" ")[2] for line in said if "number_of_executed_units" in line), "?")
    print(f"fuzz: {name}: {runs} inputs in {seconds} s, {'held' if done.returncode == 0 else 'FAILED'}")
    if done.returncode != 0:
        print("\n".join(said[-40:]))
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
