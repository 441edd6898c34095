"""Load tests of a running gateway."""
