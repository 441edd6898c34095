"""The one exception tree: an exception's class says who has to fix the error.

    AiaasError
      ApiError          an answer to an HTTP client
        ClientError       the client has to change its request
        LimitError        a limit is used up: the same request can succeed later
        UpstreamError     the backend or the gateway failed: the client did nothing wrong
      CommandError      the end of a command: one line and an exit code
        CheckFailed       1: a check failed, or the named key or file does not exist
        UsageError        2: the command was called wrongly
        EnvironmentFault  3: environment error (port taken, file missing, server unreachable)

A config's errors are `aiaas.config.problem.Problem` values, collected and shown together; they become a CheckFailed
only when a caller needs a valid config.
"""

from __future__ import annotations

from typing import ClassVar


class AiaasError(Exception):
    """The base class of all exceptions that aiaas raises on purpose."""


class ApiError(AiaasError):
    """An answer to an HTTP client, in the OpenAI error shape (`aiaas.openai.errors.error_body`).

    status   HTTP status
    code     a machine-readable code from docs/errors.md; part of the API
    message  one sentence for a person: the error and its fix; never contains a key, a prompt or an answer
    param    the request field at fault, in dotted form, or None
    headers  extra response headers, in order
    """

    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.status}, {self.code!r}, {self.message!r})"


class ClientError(ApiError):
    """The client has to change its request (4xx except 429)."""

    type = "invalid_request_error"


class LimitError(ApiError):
    """The same request can succeed later (429)."""

    type = "rate_limit_error"


class UpstreamError(ApiError):
    """The backend or the gateway failed, and the client did nothing wrong (5xx)."""

    type = "server_error"


class CommandError(AiaasError):
    """Ends a command: `message` goes to stderr, `exit_code` to the shell."""

    exit_code: int = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CheckFailed(CommandError):
    """A check failed or a name is unknown: an invalid config, an unknown key, a failed smoke test."""

    exit_code = 1


class UsageError(CommandError):
    """The command was called wrongly."""

    exit_code = 2


class EnvironmentFault(CommandError):
    """Something in the environment failed: port taken, file missing, server unreachable."""

    exit_code = 3
