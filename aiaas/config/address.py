"""Parse a backend's URL or DNS name, for the checker and for the compiler."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import SplitResult, urlsplit

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_DNS_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z_-][A-Za-z0-9_.-]*")  # not all digits and dots, as IPv4 is
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")


@dataclass(frozen=True, slots=True)
class Address:
    """The address that a backend's requests go to.

    host       name or IP address, IPv6 without brackets
    authority  the value of the Host header: IPv6 in brackets, the port unless it is the scheme's default
    base_path  the prefix of every path; "" or "/something", never with a slash at its end
    """

    host: str
    port: int
    tls: bool
    base_path: str
    authority: str

    @property
    def url(self) -> str:
        """The address as a normalized URL, so that two addresses can be compared."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.base_path}"


def parse_url(text: str) -> Address:
    """Parse a backend's URL. Raises ValueError with the error and the allowed form; never repeats a password."""
    if not text.isascii() or any(character.isspace() for character in text):
        raise ValueError("must not contain spaces or non-ASCII characters; write http://host:port")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        reason = "its port must be a number from 1 to 65535" if "ort" in str(error) else "an IPv6 host needs [ ]"
        raise ValueError(f"is not a URL: {reason}; write http://host:port") from error
    _refuse_parts(text, parts, port)
    host = (parts.hostname or "").rstrip(".") or ""
    tls = parts.scheme == "https"
    shown = f"[{host}]" if ":" in host else host
    number = port if port is not None else DEFAULT_PORTS[parts.scheme]
    authority = shown if number == DEFAULT_PORTS[parts.scheme] else f"{shown}:{number}"
    return Address(host, number, tls, parts.path.rstrip("/"), authority)


def parse_dns(text: str) -> Address:
    """Parse the `name:port` of a `dns` backend. Raises ValueError with the error and the allowed form.

    `host` keeps a dot at the name's end: it stops the resolver from trying the search domains, of which a pod has
    four (ndots: 5). The Host header is sent without the dot.
    """
    name, _, port = text.rpartition(":")
    if not _DNS_NAME.fullmatch(name) or not port.isdecimal():
        raise ValueError(
            "must be name:port with a host name, such as vllm-headless.system:8000, without an IP address, http:// "
            "or path"
        )
    address = parse_url(f"http://{text}")
    return replace(address, host=name)


def _refuse_parts(text: str, parts: SplitResult, port: int | None) -> None:
    if parts.scheme not in DEFAULT_PORTS or not text.lower().startswith(f"{parts.scheme}://"):
        raise ValueError("must start with http:// or https://, such as http://vllm:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user or password; vLLM's key goes into api_key_env")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise ValueError("must not contain ? or #; write http://host:port")
    if not parts.hostname:
        raise ValueError("has no host; write http://host:port")
    if not _is_host(parts.hostname):
        raise ValueError("has a host that is neither a name nor an IP address; write http://host:port")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("has no port after the colon; a port is a number from 1 to 65535")
    if not _PATH.fullmatch(parts.path):
        raise ValueError("has characters in its path that must be percent-encoded")
    if re.search(r"/v1(/|$)", parts.path):
        raise ValueError(f"must not contain /v1, since requests include it; write {text[: text.index('/v1', 8)]}")


def _is_host(host: str) -> bool:
    if ":" in host or re.fullmatch(r"[\d.]+", host):
        return is_address(host)
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.rstrip(".").split("."))


def is_address(host: str) -> bool:
    """Whether a host is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def namespace_in(host: str, own_namespace: str, *, tls: bool) -> str | None:
    """The namespace in a Service's host name, or None if `host` does not look like a Service's name."""
    if is_address(host):
        return None
    labels = host.rstrip(".").split(".")
    if len(labels) == 1:
        return own_namespace
    if len(labels) == 2 and not tls:
        return labels[1]
    return labels[1] if len(labels) > 2 and labels[2] == "svc" else None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
