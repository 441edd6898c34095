"""`python -m tests.bench`: measure, print a table. Recorded, never judged; exit 1 where aiaas could not be measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.bench.measure import QUICK, Settings, measure
from tests.bench.page import as_page
from tests.bench.process import NotStartedError
from tests.bench.report import OURS, as_json, as_text
from tests.bench.subjects import SUBJECTS, USUAL

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bench.md"


def main(arguments: list[str]) -> int:
    """Run the benchmark with the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure the cost of aiaas beside other proxies."
    )
    parser.add_argument("--only", metavar="NAMES", default=",".join(USUAL), help=f"some of {','.join(SUBJECTS)}")
    parser.add_argument("--python", metavar="FILE", default=sys.executable,
                        help="run aiaas under this interpreter, which has it installed")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to FILE")
    parser.add_argument("--write-docs", action="store_true", help="write docs/bench.md")
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works; the figures are rough")
    options = parser.parse_args(arguments)
    names = [name for name in SUBJECTS if name in options.only.split(",")]
    if unknown := set(options.only.split(",")) - set(SUBJECTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown; there are {', '.join(SUBJECTS)}")
    if options.write_docs and (options.quick or names != list(USUAL)):
        parser.error("the docs take a whole run: --write-docs goes neither with --quick nor with --only")
    try:
        settings = QUICK if options.quick else Settings()
        results = measure(settings, names, lambda text: print(text, file=sys.stderr), options.python)
    except NotStartedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(as_text(results))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    if options.write_docs:
        PAGE.write_text(as_page(results))
    failed = any(each.missing or each.problems for each in [results.direct, *results.findings]
                 if each.name in (OURS, results.direct.name))  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
