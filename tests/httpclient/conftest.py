"""The scripted servers of the load test's tests."""

from tests.loadtest.conftest import certificate, event_loop_policy, fake, secure

__all__ = ["certificate", "event_loop_policy", "fake", "secure"]
