"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# No deadline: the machines are shared, and a slow example is not a wrong one (pytest-timeout bounds the whole test).
# Derandomized: a red CI must be red again when it is looked into.
settings.register_profile("aiaas", deadline=None, derandomize=True)
settings.load_profile("aiaas")
