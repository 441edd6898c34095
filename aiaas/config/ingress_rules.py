"""Rules about the Ingress in front of the gateway: its controller, and the annotations that the operator wrote.

An annotation of the operator overrides ours. Here is what must not be overridden: a hop that gives up or refuses
before the gateway does, sends a generation a second time, changes the paths, or lets keys cross the internet in the
clear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from aiaas.config import codes
from aiaas.config.chain import largest_body
from aiaas.config.hops import longest_silence, usual_silence
from aiaas.config.ingress import ENTRY_POINTS, Controller, bytes_of, controllers_of, seconds_of, usual_controller
from aiaas.config.model import Config
from aiaas.config.problem import Finding
from aiaas.units import format_duration, format_size
from aiaas.yamltree import Path

_ANNOTATIONS: Final[Path] = ("kubernetes", "ingress", "annotations")
_REMOVE: Final = "remove the annotation, so that aiaas derives it"

IngressRule = Callable[[Config], Iterator[Finding]]


def _timeouts_grow_outwards(config: Config) -> Iterator[Finding]:
    silence, longest = usual_silence(config), longest_silence(config)
    for controller, name, value in _written(config, "silences"):
        seconds, at = seconds_of(value), (*_ANNOTATIONS, name)
        if seconds is None:
            yield codes.HOP_TIMEOUT, "error", at, f"{value!r} is not a timeout; {_REMOVE}"
        elif controller.unitless and not value.strip().isdigit():
            message = (
                f"{controller.name} reads whole seconds only and ignores {value!r}, so it gives up after 60 s; "
                f"write '{int(seconds)}', or {_REMOVE}"
            )
            yield codes.HOP_TIMEOUT, "error", at, message
        elif seconds < longest:
            often = seconds < silence
            message = (
                f"the ingress gives up after {format_duration(seconds)}, but the gateway may be silent for "
                f"{format_duration(silence if often else longest)}{'' if often else ' when it retries'}; {_REMOVE}"
            )
            yield codes.HOP_TIMEOUT, "error" if often else "warning", at, message


def _bodies_are_no_smaller(config: Config) -> Iterator[Finding]:
    most = largest_body(config)
    field = "max_body_size" if most == config.server.max_body_size else "max_upload_size"
    for _, name, value in _written(config, "bodies"):
        size, at = bytes_of(value), (*_ANNOTATIONS, name)
        if size is None:
            yield codes.HOP_BODY, "error", at, f"{value!r} is not a size; write a size such as 10m"
        elif size and size < most:
            message = (
                f"the ingress rejects bodies over {format_size(size)} with an HTML page, but the gateway accepts "
                f"{format_size(most)} (server.{field}); {_REMOVE}"
            )
            yield codes.HOP_BODY, "error", at, message


def _nothing_is_sent_twice(config: Config) -> Iterator[Finding]:
    for _, name, value in _written(config, "resends"):
        if "non_idempotent" in value.replace(",", " ").split():
            message = (
                "the ingress sends a generation again that another gateway has begun, so vLLM makes it twice or three "
                "times; leave out non_idempotent (aiaas retries what is safe)"
            )
            yield codes.INGRESS_HARM, "error", (*_ANNOTATIONS, name), message


def _paths_stay(config: Config) -> Iterator[Finding]:
    for _, name, value in _written(config, "rewrites"):
        message = (
            f"{value!r} changes the paths, and the gateway answers 404 to others than its own; remove it, and write a "
            "prefix into server.path_prefix"
        )
        yield codes.INGRESS_HARM, "error", (*_ANNOTATIONS, name), message


def _limits_are_the_gateways(config: Config) -> Iterator[Finding]:
    for _, name, _value in _written(config, "refuses"):
        message = (
            "the ingress refuses with an HTML page and no Retry-After, for all clients of an address together; remove "
            "it, and set the limits of a key (rate_limit)"
        )
        yield codes.INGRESS_HARM, "warning", (*_ANNOTATIONS, name), message


def _https_only(config: Config) -> Iterator[Finding]:
    settings = config.kubernetes.ingress
    if not settings.tls and _is_used(config):
        message = "keys cross the network in the clear up to the ingress, unless TLS ends in front of it; leave it on"
        yield codes.PLAIN_HTTP, "warning", ("kubernetes", "ingress", "tls"), message
        return
    for controller, name, value in _written(config, "redirects"):
        if value.lower() not in (("443",) if controller.name == "alb" else ("true",)):
            message = "plain HTTP is answered instead of redirected, so keys cross the internet in the clear; remove it"
            yield codes.PLAIN_HTTP, "error", (*_ANNOTATIONS, name), message
    if _is_used(config) and "web" in settings.annotations.get(ENTRY_POINTS, "").split(","):
        message = "the entry point `web` is plain HTTP, so keys cross the internet in the clear; remove it"
        yield codes.PLAIN_HTTP, "error", (*_ANNOTATIONS, ENTRY_POINTS), message


def _controller(config: Config) -> Iterator[Finding]:
    settings = config.kubernetes.ingress
    if not _is_used(config):
        return
    guessed = controllers_of(settings.class_name)
    named = settings.controllers()
    if any(controller.name == "ingress-nginx" for controller in named):
        message = (
            "ingress-nginx has had no fixes since March 2026; use another class (and its controller_namespace), "
            f"or expose: gateway{'' if len(named) == 1 else '; if it is that of F5, write controller: nginx-inc'}"
        )
        yield codes.INGRESS_RETIRED, "warning", ("kubernetes", "ingress", "class"), message
    if guessed and named and not {*named} & {*guessed}:
        usual = " or ".join(controller.name for controller in guessed)
        message = (
            f"is {settings.controller}, but the class {settings.class_name} is usually that of {usual}; change one"
        )
        yield codes.INGRESS_CONTROLLER, "warning", ("kubernetes", "ingress", "controller"), message
    owner = usual_controller(settings.controller_namespace)
    written = "controller_namespace" in settings.model_fields_set and config.kubernetes.network_policy.enabled
    if written and owner is not None and named and owner not in {controller.name for controller in named}:
        message = (
            f"{settings.controller_namespace} is usually the namespace of {owner}, and the controller is "
            f"{' or '.join(controller.name for controller in named)}, whose traffic the NetworkPolicy would block; "
            "name the namespace of its pods"
        )
        yield codes.INGRESS_CONTROLLER, "warning", ("kubernetes", "ingress", "controller_namespace"), message


def _is_used(config: Config) -> bool:
    return config.kubernetes.expose == "ingress"


def _written(config: Config, kind: str) -> Iterator[tuple[Controller, str, str]]:
    """Yield the annotations that the operator wrote, of a kind that the class's controllers read."""
    settings = config.kubernetes.ingress
    for controller in settings.controllers() if _is_used(config) else ():
        names: tuple[str, ...] = getattr(controller, kind)
        yield from ((controller, name, settings.annotations[name]) for name in names if name in settings.annotations)


INGRESS_RULES: Final[tuple[IngressRule, ...]] = (
    _timeouts_grow_outwards,
    _bodies_are_no_smaller,
    _nothing_is_sent_twice,
    _paths_stay,
    _limits_are_the_gateways,
    _https_only,
    _controller,
)
