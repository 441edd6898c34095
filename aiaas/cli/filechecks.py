"""Checks of the files beside a config: the key file, the certificate, the authorities of backends, and the files in the
store's address."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from aiaas.authorities import AuthoritiesError, AuthoritiesMissing, last_day, trusting
from aiaas.config import codes
from aiaas.config.crosslayer import check_keys_secret
from aiaas.config.problem import Problem, Severity
from aiaas.config.tree import problem_at
from aiaas.keys.file import KeyFileError, KeyFileMissingError, read_key_file
from aiaas.limits.connection import StoreTlsError, tls_context
from aiaas.plan.keycheck import check_keys
from aiaas.plan.read import Reading
from aiaas.proxy.client.tls import TlsError, TlsFileMissing, read_pair
from aiaas.yamltree import Path

_MADE_BY: Final = "`aiaas keys create NAME` makes it"


def key_file_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """A missing key file is a warning, since it may come later than the config.

    deployed  the Secret of a cluster is made of it, unless the config says otherwise
    """
    plan, config = reading.plan, reading.loaded.config
    if plan is None or config is None or not plan.auth.enabled:
        return ()
    path = ("auth", "keys_file")
    place, file = reading.loaded.place(path), plan.auth.keys_file
    renders = deployed and config.kubernetes.keys_secret.create
    try:
        records = read_key_file(file).records
    except KeyFileMissingError:
        message = f"{file} does not exist, so every request is refused; {_MADE_BY}"
        if renders:
            message = (
                f"{file} does not exist, so its Secret is not rendered: one in the cluster stays as it is, and without "
                f"one the pods wait for it; {_MADE_BY}"
            )
        return (problem_at(codes.KEYS_FILE, "warning", path, message, place),)
    except KeyFileError as error:
        return (problem_at(codes.KEYS_UNREADABLE, "error", path, str(error), place),)
    problems = check_keys(plan, records)
    if renders and not records:
        message = f"{file} has no keys; applying the Secret replaces one that has keys"
        problems += (problem_at(codes.KEYS_FILE, "warning", path, message, place),)
    if deployed:
        found = check_keys_secret(config, file.stat().st_size)
        problems += tuple(problem_at(code, severity, at, message, place) for code, severity, at, message in found)
    return problems


def tls_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """In a cluster the files come from a Secret, so missing files are only a warning."""
    tls = None if reading.plan is None else reading.plan.server.tls
    if tls is None:
        return ()
    section = ("server", "tls")
    try:
        warning = read_pair(tls).validity.warning(time.time())
    except TlsFileMissing as error:
        severity: Severity = "warning" if deployed else "error"
        return (problem_at(codes.TLS_FILES, severity, section, str(error), reading.loaded.place(section)),)
    except TlsError as error:
        return (problem_at(codes.TLS_FILES, "error", section, str(error), reading.loaded.place(section)),)
    if warning is None:
        return ()
    path = (*section, "cert_file")
    message = f"the certificate in {tls.cert_file} {warning}"
    return (problem_at(codes.TLS_VALIDITY, "warning", path, message, reading.loaded.place(path)),)


def authority_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """The authorities that backends are verified with. In a cluster they come from a ConfigMap or Secret, so a missing
    file is only a warning."""
    found: list[tuple[str, Severity, Path, str]] = []
    for file, section in ({} if reading.plan is None else reading.plan.ca_files).items():
        path = (*section.split("."), "ca_file")
        try:
            ends = last_day(trusting(file))
        except AuthoritiesMissing as error:
            found.append((codes.TLS_FILES, "warning" if deployed else "error", path, str(error)))
        except AuthoritiesError as error:
            found.append((codes.TLS_FILES, "error", path, str(error)))
        else:
            if ends is not None and ends <= time.time():
                day = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d")
                message = f"the authority in {file} expired on {day}, so no certificate verifies; renew it"
                found.append((codes.TLS_VALIDITY, "warning", path, message))
    return tuple(problem_at(*finding, reading.loaded.place(finding[2])) for finding in found)


def store_problems(reading: Reading, *, deployed: bool) -> tuple[Problem, ...]:
    """The files that the address of the shared store names."""
    url = None if reading.plan is None else reading.plan.limits.store_url
    if url is None:
        return ()
    path = ("rate_limit", "store")
    try:
        tls_context(url)
    except StoreTlsError as error:
        severity: Severity = "warning" if deployed else "error"
        return (problem_at(codes.TLS_FILES, severity, path, str(error), reading.loaded.place(path)),)
    return ()
