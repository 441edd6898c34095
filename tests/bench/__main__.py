"""`python -m tests.bench`: measure, print a table. Recorded, never asserted; exit 1 only where nothing was measured."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.bench.load import BadAnswerError
from tests.bench.measure import QUICK, Settings, measure
from tests.bench.process import NotStartedError
from tests.bench.report import as_json, as_page, as_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bench.md"


def main(arguments: list[str]) -> int:
    """Run the benchmark with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="CPU of aiaas beside nginx, in one run.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures to FILE")
    parser.add_argument("--write-docs", action="store_true", help="write docs/bench.md")
    parser.add_argument("--quick", action="store_true", help="ten seconds, to see that it works; the figures are rough")
    options = parser.parse_args(arguments)
    if options.quick and options.write_docs:
        parser.error("--quick is too rough to be written into the docs")
    try:
        results = measure(QUICK if options.quick else Settings(), lambda text: print(text, file=sys.stderr, flush=True))
    except (NotStartedError, BadAnswerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(as_text(results))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    if options.write_docs:
        PAGE.write_text(as_page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
