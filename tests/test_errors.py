"""The exception tree: whose fault it is decides the type on the wire, and the exit code of a command."""

from __future__ import annotations

import pytest

from aiaas.errors import (
    AiaasError,
    ApiError,
    CheckFailed,
    ClientError,
    CommandError,
    EnvironmentFault,
    LimitError,
    UpstreamError,
    UsageError,
)


@pytest.mark.parametrize(
    ("kind", "wire_type"),
    [
        pytest.param(ClientError, "invalid_request_error", id="the client's"),
        pytest.param(LimitError, "rate_limit_error", id="a limit's"),
        pytest.param(UpstreamError, "server_error", id="the backend's"),
    ],
)
def test_an_api_error_says_on_the_wire_whose_fault_it_is(kind: type[ApiError], wire_type: str) -> None:
    """The SDKs show `type` to their users; it has OpenAI's words."""
    assert kind(400, "code", "message").type == wire_type
    assert issubclass(kind, ApiError)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param(CheckFailed, 1, id="a check failed"),
        pytest.param(UsageError, 2, id="called wrongly"),
        pytest.param(EnvironmentFault, 3, id="environment error"),
    ],
)
def test_a_command_error_carries_its_exit_code(kind: type[CommandError], code: int) -> None:
    """Exit codes do not change: scripts branch on them."""
    error = kind("one line")
    assert error.exit_code == code
    assert str(error) == error.message == "one line"


def test_everything_raised_on_purpose_has_one_root() -> None:
    """A caller that wants all of it catches one class."""
    assert issubclass(ApiError, AiaasError)
    assert issubclass(CommandError, AiaasError)


def test_an_api_error_is_readable_in_a_log() -> None:
    """The repr names status, code and message, and no header: a header may hold what is not for logs."""
    error = ClientError(401, "invalid_api_key", "Not valid.", param="key", headers=(("www-authenticate", "Bearer"),))
    assert repr(error) == "ClientError(401, 'invalid_api_key', 'Not valid.')"
    assert error.headers == (("www-authenticate", "Bearer"),)
    assert error.param == "key"
