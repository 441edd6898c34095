"""`python -m tests.bench.crosscheck`: three load generators on one server whose every figure is known.

First the simulator with scripts: what does each report, beside the truth? Then the scripted backend with more and more
events a second: up to where does each keep up on one core, at what cost, and does it say so when it no longer does?
Recorded, never judged; exit 1 where aiaas could not be measured. Takes some minutes and two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from tests.bench.crosspage import as_page, as_text
from tests.bench.crossrun import PACES, SCRIPTS, Outcome, run
from tests.bench.tools import GUIDELLM, OURS, VLLM, tools

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "loadtest-crosscheck.md"


def main(arguments: list[str]) -> int:
    """Run the cross-check with the options of the command line."""
    names = {"aiaas": OURS, "vllm": VLLM, "guidellm": GUIDELLM}
    parser = argparse.ArgumentParser(prog="python -m tests.bench.crosscheck", description="Do load generators agree?")
    parser.add_argument("--only", metavar="NAMES", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--quick", action="store_true", help="one round, one pace; the figures are rough")
    parser.add_argument("--write-docs", action="store_true", help="write docs/loadtest-crosscheck.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.only.split(",")) - set(names):
        parser.error(f"--only: {', '.join(sorted(unknown))} unknown; there are {', '.join(names)}")
    if options.write_docs and (options.quick or options.only != ",".join(names)):
        parser.error("the docs take a whole run: --write-docs goes neither with --quick nor with --only")
    before = " ".join(f"{each:.1f}" for each in os.getloadavg())
    outcomes = [Outcome(tool) for tool in tools([names[name] for name in options.only.split(",")])]
    for outcome in outcomes:
        if outcome.tool.missing:
            outcome.problems["not measured"] = outcome.tool.missing
    run(outcomes, rounds=1 if options.quick else 3, paces=PACES[:1] if options.quick else PACES)
    print(as_text(SCRIPTS, outcomes))
    if options.write_docs:
        PAGE.write_text(as_page(SCRIPTS, outcomes, before))
    return 1 if any(outcome.problems for outcome in outcomes if outcome.tool.name == OURS) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
