"""The chat of a quickstart's page: `POST /chat` becomes a request to the gateway's own client port.

It is the one route of the admin port that is not read-only, and only `aiaas quickstart` opens it. The key of the
quickstart stays in this process: a page gets answers with it, and never the key. So that no page of another site gets
them either, the request must say that it comes from this port's own page (`Origin`, `Sec-Fetch-Site`), and be JSON: a
browser asks before it sends that anywhere else, and the port does not answer such a question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from aiaas.openai.paths import CHAT
from aiaas.proxy.client.connection import ClientConnection
from aiaas.proxy.client.handler import in_task
from aiaas.proxy.client.incoming import HttpRequest

MOST_CONVERSATION: Final = 256 * 1024  # of a conversation
BODY_TIMEOUT: Final = 10.0  # seconds
ANSWER_TOKENS: Final = 1024  # of an answer
CHAT_PATH: Final = "/chat"
_JSON: Final = "application/json"
_PART: Final = 64 * 1024


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


class _Conversation(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    messages: list[_Message]


class _ChatRequest(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int = ANSWER_TOKENS
    stream: bool = True


class NoChatError(Exception):
    """A request to the chat is refused, with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Chat:
    """Sends conversations to `host` and `port` with `key`."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host = host
        self._port = port
        self._key = key

    def __repr__(self) -> str:
        return f"<Chat {self._host}:{self._port}>"

    async def relay(self, request: HttpRequest, client: ClientConnection) -> None:
        """Answer with the gateway's own answer, as it comes. Raises NoChatError before anything is written."""
        require_own_page(request.headers)
        await in_task(client.handler)
        body = _body_for_gateway(await _whole(request))
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: {_JSON}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise NoChatError(502, f"The gateway cannot be reached: {error.strerror or error}.") from error
        try:
            writer.write(head.encode() + body)
            # The answer ends with its connection, and has ANSWER_TOKENS at most: it needs no bound of its own.
            while (part := await reader.read(_PART)) and client.transport is not None:
                client.begun = True
                client.transport.write(part)
        except OSError as error:
            raise NoChatError(502, f"The gateway broke off: {error.strerror or error}.") from error
        finally:
            writer.close()


def require_own_page(headers: Mapping[str, str]) -> None:
    """Raises NoChatError unless the request says that it comes from this port's own page, and is JSON."""
    if headers.get("origin") != f"http://{headers.get('host')}":
        raise NoChatError(403, "The chat answers its own page only.")
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise NoChatError(403, "The chat answers its own page only.")
    if headers.get("content-type") != _JSON:
        raise NoChatError(415, f"Send JSON, with `Content-Type: {_JSON}`.")


async def _whole(request: HttpRequest) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while part := await request.content.readany():
                body += part
                if len(body) > MOST_CONVERSATION:
                    raise NoChatError(413, "The conversation is too long; reload the page to begin anew.")
    except TimeoutError as error:
        raise NoChatError(408, f"The body did not arrive within {BODY_TIMEOUT:g} s.") from error
    return body


def _body_for_gateway(body: bytes) -> bytes:
    """The page sends a model and messages; all other fields are set here."""
    try:
        given = msgspec.json.decode(body, type=_Conversation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoChatError(400, f"Send a model and messages: {error}.") from error
    return msgspec.json.encode(_ChatRequest(given.model, given.messages))
