"""The interpreter that a measurement ran on, and how it was built: a Python built with PGO needs some 8 % less."""

from __future__ import annotations

import json
import subprocess
from typing import Final

from tests.bench.process import NotStartedError

ASK: Final = """\
import json, platform, sys, sysconfig
options = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps([platform.python_version(), sys.base_prefix, options]))
"""


def described(python: str) -> str:
    """Its version, and whether it was built with PGO and LTO. Raises NotStartedError where it does not run."""
    try:
        asked = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotStartedError(f"{python} does not run: {error}") from error
    return in_words(*json.loads(asked.stdout))


def in_words(version: str, prefix: str, options: str) -> str:
    """Debian turns both on in its packaging, and its Python's configure options do not name them."""
    if prefix == "/usr":
        return f"{version} (the distribution's package; Debian builds it with PGO and LTO)"
    pgo = "with" if "--enable-optimizations" in options else "without"
    lto = "with" if "--with-lto" in options else "without"
    return f"{version} (built {pgo} PGO, {lto} LTO)"
