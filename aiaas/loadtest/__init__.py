"""Smoke and load tests: clients of a running gateway."""
