"""The names of the checks, for completion: importing the checks themselves takes longer than a TAB may."""

from typing import Final

CHECK_NAMES: Final = (
    *("health", "ready", "certificate", "redirect", "unknown-path", "metrics-hidden", "no-key", "wrong-key", "models"),
    *("completion", "request-id", "stream", "stream-usage", "stream-pace", "unknown-model", "priority", "class"),
    *("body-too-large", "usage", "metrics", "abort", "abort-early", "direct", "rate-limit"),
)
