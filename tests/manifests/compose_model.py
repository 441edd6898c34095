"""A strict model of the compose files that aiaas writes: the fields and forms of the Compose Specification that it
uses, and references that a schema cannot see. Unknown fields are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Duration = Annotated[str, Field(pattern=r"^\d+s$")]
Bytes = Annotated[str, Field(pattern=r"^\d+(b|k|m|g)$")]
Port = Annotated[str, Field(pattern=r"^((\d+\.){3}\d+:|\[[0-9a-f:]+\]:)?\d+:\d+(/udp)?$")]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]+$")]
VolumeMount = Annotated[str, Field(pattern=r"^[a-z0-9-]+:/[a-z0-9/-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Bind(_Strict):
    create_host_path: Literal[False]


class _Folder(_Strict):
    type: Literal["bind"]
    source: Annotated[str, Field(pattern=r"^\./[a-z]+$")]
    target: Annotated[str, Field(pattern=r"^/")]
    read_only: Literal[True]
    bind: _Bind


class _Devices(_Strict):
    driver: Literal["nvidia"]
    count: int | None = None
    device_ids: list[Annotated[str, Field(pattern=r"^\d+$")]] | None = None
    capabilities: list[Literal["gpu"]]


class _Limits(_Strict):
    cpus: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")] | None = None
    memory: Bytes | None = None


class _Reservations(_Strict):
    devices: list[_Devices]


class _Resources(_Strict):
    limits: _Limits | None = None
    reservations: _Reservations | None = None


class _Deploy(_Strict):
    resources: _Resources


class _Healthcheck(_Strict):
    test: list[str]
    interval: Duration
    timeout: Duration
    retries: int
    start_period: Duration


class _Dependency(_Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]
    required: bool = True


class _Logging(_Strict):
    driver: Literal["local"]
    options: dict[str, str]


class _Ulimits(_Strict):
    nofile: int


class Service(_Strict):
    """One service. Every service has the hardening; only an engine may write to its root file system."""

    image: str
    pull_policy: Literal["never"] | None = None
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    user: str | None = None
    init: bool = False
    restart: Literal["no", "unless-stopped"]
    stop_grace_period: Duration | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    ports: list[Port] = Field(default_factory=list)
    extra_hosts: list[str] = Field(default_factory=list)
    volumes: list[_Folder | VolumeMount] = Field(default_factory=list)
    secrets: list[Name] = Field(default_factory=list)
    tmpfs: list[str] = Field(default_factory=list)
    shm_size: Bytes | None = None
    ulimits: _Ulimits | None = None
    deploy: _Deploy | None = None
    healthcheck: _Healthcheck | None = None
    depends_on: dict[Name, _Dependency] = Field(default_factory=dict)
    network_mode: Literal["none"] | None = None
    read_only: bool = False
    cap_drop: Annotated[list[Literal["ALL"]], Field(min_length=1)]
    cap_add: list[str] = Field(default_factory=list)
    security_opt: Annotated[list[Literal["no-new-privileges:true"]], Field(min_length=1)]
    logging: _Logging


class _SecretFile(_Strict):
    file: Annotated[str, Field(pattern=r"^\./secrets/")]


class _Volume(_Strict):
    pass


class ComposeFile(_Strict):
    """The whole file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    services: dict[Name, Service]
    volumes: dict[Name, _Volume] = Field(default_factory=dict)
    secrets: dict[Name, _SecretFile] = Field(default_factory=dict)


# `$$`, `${NAME:?message}` and `${NAME:-default}`: how Compose expands text, of which aiaas uses these forms only.
_EXPANSION = re.compile(r"\$\$|\$\{\w+:\?[^${}]+\}|\$\{\w+:-\d+\}")


def findings(document: Any) -> list[str]:
    """The faults of a compose file. Raises pydantic's ValidationError for unknown fields and wrong forms."""
    made = ComposeFile.model_validate(document)
    return [*_dangling(made), *_unused(made), *_clashes(made), *_bare_dollars(document)]


def _dangling(made: ComposeFile) -> Iterator[str]:
    for name, service in made.services.items():
        for other in service.depends_on.keys() - made.services.keys():
            yield f"{name} depends on {other}, which does not exist"
        for secret in set(service.secrets) - made.secrets.keys():
            yield f"{name} uses the secret {secret}, which does not exist"
        for volume in _named(service) - made.volumes.keys():
            yield f"{name} mounts {volume}, which does not exist"


def _unused(made: ComposeFile) -> Iterator[str]:
    services = made.services.values()
    used = {name for service in services for name in (*_named(service), *service.secrets)}
    for name in (made.volumes.keys() | made.secrets.keys()) - used:
        yield f"nothing uses {name}"


def _clashes(made: ComposeFile) -> Iterator[str]:
    taken: set[str] = set()
    for name, service in made.services.items():
        for port in service.ports:
            published = port.rpartition(":")[0].rpartition(":")[2] + ("/udp" if port.endswith("/udp") else "")
            if published in taken:
                yield f"{name} publishes {published}, which another service has"
            taken.add(published)


def _named(service: Service) -> set[str]:
    return {mount.partition(":")[0] for mount in service.volumes if isinstance(mount, str)}


def _bare_dollars(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _bare_dollars(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _bare_dollars(inner)
    elif isinstance(value, str) and "$" in _EXPANSION.sub("", value):
        yield f"{value!r} has a $ that Compose would expand"
