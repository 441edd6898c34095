"""The checks of `aiaas doctor` on this machine: Python, keys, files, certificate, ports, descriptors, disks."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import resource
import ssl
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from aiaas.cli.diagnosis import Diagnosis, DoctorState
from aiaas.errors import EnvironmentFault
from aiaas.keys.file import KeyFileError, read_key_file
from aiaas.keys.model import KeyRecord
from aiaas.plan.model import Plan, TlsPlan
from aiaas.proxy.admin.port import LOOPBACK
from aiaas.proxy.client.descriptors import connections_for, descriptors_for
from aiaas.proxy.client.incoming import require_c_parser
from aiaas.proxy.client.ports import PortTakenError, bind
from aiaas.proxy.client.tls import TlsError, read_pair
from aiaas.units import DAY

EXPIRES_SOON: Final = timedelta(days=7)
# Bytes of free disk: below the first a second of logs may fail, below the second somebody should look.
DISK_FULL: Final = 1024 * 1024
DISK_LOW: Final = 100 * 1024 * 1024
# The share of its descriptors beyond which a gateway is about to refuse connections.
MOSTLY_USED: Final = 0.9
# The gateway, its workers, a quickstart, and the engines that they start.
_GATEWAY: Final = re.compile(r"\baiaas(?:[.]cli[.]|[.]simulator|[.]engines| serve| quickstart)")
_LISTENING: Final = "0A"  # in /proc/net/tcp
ADMIN_FIELD: Final = "monitoring.admin_port"


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A process that listens on one of our ports, at `addresses`. `pid` is None where it belongs to a user whose
    processes we cannot look at."""

    pid: int | None
    command: str = ""
    addresses: tuple[str, ...] = ()

    @property
    def is_gateway(self) -> bool:
        """Whether it is aiaas, as far as its command line shows."""
        return _GATEWAY.search(self.command) is not None

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"process {self.pid}, {self.command[:80]}"


def check_python() -> Diagnosis:
    """The interpreter, the event loop, and aiohttp's parser in C."""
    try:
        require_c_parser()
    except EnvironmentFault as error:
        return Diagnosis("FAIL", "python", str(error))
    return Diagnosis("ok", "python", f"{platform.python_version()} ({sys.executable}), uvloop {version('uvloop')}")


# -- keys and files ---------------------------------------------------------------------------------------------------


def check_keys_of(plan: Plan) -> Iterator[Diagnosis]:
    """The keys that work, those that have expired, and those that soon will. A broken file, and no authentication at
    all, are the config's findings."""
    if not plan.auth.enabled:
        return
    try:
        records = read_key_file(plan.auth.keys_file).records
    except KeyFileError:
        return
    now = datetime.now(UTC)
    yield from _expired(records, now)
    usable = sum(not record.disabled and (record.expires is None or record.expires > now) for record in records)
    if usable:
        yield Diagnosis("ok", "keys", f"{usable} of {len(records)} in {plan.auth.keys_file} can be used")
    else:
        yield Diagnosis("FAIL", "keys", f"{plan.auth.keys_file} has no key that can be used; aiaas keys create NAME")


def _expired(records: tuple[KeyRecord, ...], now: datetime) -> Iterator[Diagnosis]:
    for record in records:
        if record.disabled or record.expires is None or record.expires - now > EXPIRES_SOON:
            continue
        word = "expired" if record.expires <= now else "expires"
        fix = f"its client gets 401; make a new one: aiaas keys create {record.name}-2"
        yield Diagnosis("warn", "keys", f"{record.name} {word} on {record.expires:%Y-%m-%d %H:%M} UTC; {fix}")


def check_files(plan: Plan) -> Iterator[Diagnosis]:
    """Report wrong permissions of the config's files, the key file and the certificate's key."""
    secret = {plan.auth.keys_file} if plan.auth.enabled else set()
    if plan.server.tls is not None:
        secret.add(plan.server.tls.key_file)
    findings = [finding for file in (*plan.files, *sorted(secret)) for finding in _permissions(file, file in secret)]
    yield from findings or [Diagnosis("ok", "files", "not everybody may write the config or read the keys")]


def _permissions(file: Path, is_secret: bool) -> Iterator[Diagnosis]:
    try:
        status = file.stat()
    except OSError:  # missing: reported with its field
        return
    who = f"{file} is {stat.filemode(status.st_mode)} of {_owner(status)}"
    if not os.access(file, os.R_OK):
        yield Diagnosis(
            "FAIL", "files", f"{who}: not readable for this user; run this as the gateway's user, or chgrp it"
        )
    if status.st_mode & stat.S_IWOTH:
        yield Diagnosis("FAIL", "files", f"{who}: everybody may change it; chmod o-w {file}")
    elif is_secret and status.st_mode & stat.S_IROTH:
        yield Diagnosis("warn", "files", f"{who}: everybody on this machine may read it; chmod o-r {file}")


def _owner(status: os.stat_result) -> str:
    try:
        user = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:  # a container's user has no name
        user = str(status.st_uid)
    try:
        return f"{user}:{grp.getgrgid(status.st_gid).gr_name}"
    except KeyError:
        return f"{user}:{status.st_gid}"


# -- certificate ------------------------------------------------------------------------------------------------------


def check_certificate(plan: Plan, host: str | None) -> Iterator[Diagnosis]:
    """Its days, its names, and whether it is for `host`, if that is known. A pair that does not fit is the config's
    finding."""
    tls = plan.server.tls
    if tls is None:
        return
    try:
        pair = read_pair(tls)
    except TlsError:
        return
    now = time.time()
    warning = pair.validity.warning(now)
    if warning is not None:
        is_valid = pair.validity.begins <= now < pair.validity.ends
        yield Diagnosis("warn" if is_valid else "FAIL", "certificate", f"{tls.cert_file} {warning}")
        return
    names = certificate_names(tls, pair.context)
    seen = f"{tls.cert_file}: {(pair.validity.ends - now) / DAY:.0f} days left, for {', '.join(names) or 'no name'}"
    if host is not None and names and not any(_covers(name, host) for name in names):
        yield Diagnosis("FAIL", "certificate", f"{seen}, and not for kubernetes.host {host}; clients refuse it")
    else:
        yield Diagnosis("ok", "certificate", seen)


def certificate_names(tls: TlsPlan, server: ssl.SSLContext) -> tuple[str, ...]:
    """The certificate's names. Python reads them only in a handshake, so it has one with itself, in memory."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trust the certificate itself, and not its authority
    client.load_verify_locations(tls.cert_file)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    its = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (ours, its, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLError:  # not valid yet, say
        return ()
    shown = ours.getpeercert() or {}
    return tuple(str(pair[1]) for pair in shown.get("subjectAltName", ()))


def _covers(name: str, host: str) -> bool:
    return name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:])


# -- ports, descriptors, disks ----------------------------------------------------------------------------------------


def wanted_ports(plan: Plan) -> list[tuple[str, int, str]]:
    """Host, port and field of everything that a gateway listens on, its engines included."""
    wanted = [(plan.server.host, plan.server.port, "server.port")]
    if plan.monitoring.prometheus:
        wanted.append((plan.server.host, plan.monitoring.metrics_port, "monitoring.metrics_port"))
    engines = ((backend.name, backend.engine) for backend in plan.backends)
    if plan.monitoring.admin_port:
        wanted.append((LOOPBACK, plan.monitoring.admin_port, ADMIN_FIELD))
    return wanted + [(LOOPBACK, engine.port, f"backends.{name}.engine.port") for name, engine in engines if engine]


def holders_of_ports(plan: Plan) -> Mapping[int, tuple[PortHolder, ...]]:
    """The processes that listen on our ports, by port."""
    return {port: holders_of(port) for _, port, _ in wanted_ports(plan)}


def holders_of(port: int) -> tuple[PortHolder, ...]:
    """The processes that listen on a port of this machine; empty where there are none, and where /proc is missing."""
    sockets = dict(pair for name in ("tcp", "tcp6") for pair in _listeners(Path("/proc/net") / name, port))
    if not sockets:
        return ()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        its = {sockets[link] for descriptor in _entries(folder / "fd") if (link := _link(descriptor)) in sockets}
        if its:
            found.append(PortHolder(int(folder.name), _command(folder), tuple(sorted(its))))
    return tuple(found) or (PortHolder(None, "", tuple(sorted(set(sockets.values())))),)


def _listeners(table: Path, port: int) -> Iterator[tuple[str, str]]:
    """The sockets that listen on a port, as the links of their descriptors, each with its address."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        address, _, its_port = fields[1].rpartition(":")
        if fields[3] == _LISTENING and int(its_port, 16) == port:
            yield f"socket:[{fields[9]}]", address_of(address)


def address_of(digits: str) -> str:
    """An address of /proc/net/tcp or tcp6: words of four bytes, in the machine's own order."""
    raw = bytes.fromhex(digits)
    step = -1 if sys.byteorder == "little" else 1
    address = ip_address(b"".join(raw[at : at + 4][::step] for at in range(0, len(raw), 4)))
    return str(getattr(address, "ipv4_mapped", None) or address)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # another user's, or it has just ended
        return []


def _link(file: Path) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def check_ports(plan: Plan, holders: Mapping[int, tuple[PortHolder, ...]]) -> Iterator[Diagnosis]:
    """Each port is free, or this gateway has it already, or an engine that it has started."""
    free, admin_port_lost = [], not plan.monitoring.admin_port
    runs = any(holder.is_gateway for holder in holders.get(plan.server.port, ()))
    for host, port, field in wanted_ports(plan):
        there = holders.get(port, ())
        try:
            bind(host, port, field).close()
            free.append(str(port))
        except PortTakenError as error:
            if field == ADMIN_FIELD:
                found = _admin_port_taken(port, error, there, holders.get(plan.server.port, ()))
                admin_port_lost = found.state != "ok"
                yield found
                continue
            gateway = next((holder for holder in there if holder.is_gateway), None)
            if gateway is not None:
                yield Diagnosis("ok", "ports", f"{port} ({field}): the gateway runs there, process {gateway.pid}")
                continue
            if runs and field.startswith("backends."):
                yield Diagnosis("ok", "ports", f"{port} ({field}): the gateway's engine runs there")
                continue
            yield Diagnosis("FAIL", "ports", f"{error}; {_first(there)} has it")
        except EnvironmentFault as error:
            yield Diagnosis("FAIL", "ports", str(error))
    if free:
        yield Diagnosis("ok", "ports", f"{', '.join(free)} free")
    if not admin_port_lost:
        yield from _admin_port_outside(plan.monitoring.admin_port, holders.get(plan.monitoring.admin_port, ()))


def _first(holders: Sequence[PortHolder]) -> PortHolder:
    return next((holder for holder in holders if holder.pid is not None), PortHolder(None))


def _admin_port_taken(
    port: int, error: PortTakenError, there: Sequence[PortHolder], serving: Sequence[PortHolder]
) -> Diagnosis:
    """A second gateway on this machine wants the same default port; ours is that of the process that serves."""
    ours = {holder.pid for holder in serving if holder.is_gateway}
    gateway = next((holder for holder in there if holder.pid in ours and holder.pid is not None), None)
    if gateway is not None:
        return Diagnosis("ok", "ports", f"{port} ({ADMIN_FIELD}): the gateway runs there, process {gateway.pid}")
    lost = "the gateway serves without it: no page, no `aiaas top` or `aiaas status`"
    return Diagnosis("warn", "ports", f"{error}; {_first(there)} has it; {lost}")


def _admin_port_outside(port: int, there: Sequence[PortHolder]) -> Iterator[Diagnosis]:
    """The gateway listens on 127.0.0.1 only, without keys. A program that listens on the same port at an address of the
    network usually passes it on (`socat`, `kubectl port-forward --address`)."""
    for holder in there:
        outside = [address for address in holder.addresses if not ip_address(address).is_loopback]
        if outside:
            seen = f"{port} ({ADMIN_FIELD}): {holder} listens on {', '.join(outside)}, so other machines reach it"
            fix = "the admin port has no keys: stop that program, or choose another port"
            yield Diagnosis("warn", "ports", f"{seen}; {fix}")


def check_descriptors(plan: Plan, holders: Mapping[int, tuple[PortHolder, ...]]) -> Iterator[Diagnosis]:
    """The limit against `max_connections`, and how many of its own a running gateway has open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = descriptors_for(plan.server.max_connections)
    if limit != resource.RLIM_INFINITY and limit < needed:
        seen = f"the hard limit of {limit} allows {connections_for(limit)} connections"
        fix = f"server.max_connections needs {needed}: raise it (ulimit -Hn, LimitNOFILE= of a unit)"
        yield Diagnosis("warn", "descriptors", f"{seen}; {fix}")
    else:
        enough = f"enough for {plan.server.max_connections} connections of a process"
        yield Diagnosis("ok", "descriptors", f"{'no limit' if limit == resource.RLIM_INFINITY else limit}, {enough}")
    for pid in _gateways(holders):
        used, most = len(_entries(Path(f"/proc/{pid}/fd"))), _descriptor_limit(Path(f"/proc/{pid}/limits"))
        if most and used > most * MOSTLY_USED:
            fix = "new connections are refused; raise its limit, or lower server.max_connections"
            yield Diagnosis("FAIL", "descriptors", f"the gateway, process {pid}, has {used} of {most} open; {fix}")


def _gateways(holders: Mapping[int, tuple[PortHolder, ...]]) -> list[int]:
    return sorted({each.pid for found in holders.values() for each in found if each.is_gateway and each.pid})


def _descriptor_limit(table: Path) -> int | None:
    try:
        line = next(line for line in table.read_text().splitlines() if line.startswith("Max open files"))
        return int(line.split()[3])
    except (OSError, StopIteration, ValueError):  # "unlimited" among them
        return None


def check_disks(plan: Plan, holders: Mapping[int, tuple[PortHolder, ...]]) -> Iterator[Diagnosis]:
    """Free space where the gateway writes: usage, keys (`aiaas keys` writes them), and a running gateway's log."""
    written = {"usage": plan.monitoring.usage_file, "keys": plan.auth.keys_file if plan.auth.enabled else None}
    for pid in _gateways(holders):
        log = Path(_link(Path(f"/proc/{pid}/fd/1")))
        written["log"] = log if log.is_file() else None
    by_disk: dict[int, list[tuple[str, Path]]] = {}
    for what, file in written.items():
        if file is None:
            continue
        folder = file.absolute().parent
        try:
            by_disk.setdefault(folder.stat().st_dev, []).append((what, folder))
        except OSError as error:
            yield Diagnosis("FAIL", "disk", f"{folder} ({what}): {error.strerror}; make the folder")
    for places in by_disk.values():
        yield _disk(", ".join(what for what, _ in places), places[0][1])


def _disk(what: str, folder: Path) -> Diagnosis:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    state: DoctorState = "ok"
    if free < DISK_FULL or (disk.f_files and not disk.f_favail):
        state = "FAIL"
    elif free < DISK_LOW:
        state = "warn"
    fix = "" if state == "ok" else "; make room, or what is written there is lost"
    inodes = ", no inodes" if disk.f_files and not disk.f_favail else ""
    return Diagnosis(state, "disk", f"{folder} ({what}): {free / 1024**2:.0f} MiB free{inodes}{fix}")
