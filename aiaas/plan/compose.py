"""Config -> ComposePlan: make every decision that a compose file needs. Pure.

`aiaas.manifests.compose` only writes the plan out. The gateway runs the deployed form of the config
(`aiaas.plan.deployed`) with these further changes:

  1. `kubernetes` is left out: there is one gateway, which has all of every limit.
  2. `server.host` is an address of the machine, where Docker publishes the port. In its container the gateway listens
     on all addresses.
  3. Behind Caddy the gateway believes X-Forwarded-For from private networks: nothing else reaches its port.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiaas import __version__
from aiaas.config.chain import largest_body
from aiaas.config.compose import MACHINE
from aiaas.config.deployment import addresses
from aiaas.config.hops import grace_period, ingress_timeout
from aiaas.config.kubernetes import Kubernetes
from aiaas.config.load import Loaded
from aiaas.config.model import Config
from aiaas.config.write import to_yaml
from aiaas.limits.redis_url import REDIS_PORT
from aiaas.plan.compile import compile_plan
from aiaas.plan.deployed import AUTHORITIES_FOLDER, ENGINE_PORT, deployed_form
from aiaas.plan.kubernetes import EngineDeployment, engine_names, engines_of, plan_of_text, variables_of
from aiaas.plan.model import Plan

EVERYWHERE: Final = ("0.0.0.0", "::")
GATEWAY, CADDY, OWNER = (
    "gateway",
    "caddy",
    "volume-owner",
)  # services of every compose file, beside engines and the store
ENGINE_STEM: Final = "engine"
# The networks from which Docker takes those of containers.
PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")

# A store that a compose file can run: a plain server by a name without dots, its password from the environment.
_OWN_STORE: Final = re.compile(
    r"(?:redis|valkey)://(?:(?:default)?:\$\{(?P<password>\w+)\}@)?(?P<host>[a-z][a-z0-9-]*)(?::(?P<port>\d+))?(?:/\d*)?"
)
_TAKEN: Final = re.compile(rf"{GATEWAY}|{CADDY}|{OWNER}|localhost|{ENGINE_STEM}-.*")


@dataclass(frozen=True, slots=True)
class StoreService:
    """A shared store that runs beside the gateway. `password` is the variable that has it, None if it needs none."""

    name: str
    port: int
    password: str | None


@dataclass(frozen=True, slots=True)
class ComposePlan:
    """The content of a compose file and of the files beside it.

    settings         the `kubernetes` section, for the image, the resources and plain variables
    written          the fields of that section in the file, for notes
    gateway          the Plan that the container runs, compiled from `config_text`
    config_text      the config in the container
    variables        the names whose values the gateway takes from its environment, sorted
    values           those that the config itself gives
    address          the machine's address for the port; None publishes it at all addresses
    domain           the public name for which Caddy ends TLS; None without Caddy
    knows_machine    whether the config names the machine itself (`host.docker.internal`)
    ingress_timeout  seconds of silence that Caddy must allow
    largest_body     bytes of a body that Caddy must allow
    grace            seconds from SIGTERM to the gateway's end at the latest
    """

    settings: Kubernetes
    written: frozenset[str]
    gateway: Plan
    config_text: str = field(repr=False)
    image: str
    variables: tuple[str, ...]
    values: Mapping[str, str]
    engines: tuple[EngineDeployment, ...]
    store: StoreService | None
    address: str | None
    domain: str | None
    knows_machine: bool
    ingress_timeout: int
    largest_body: int
    grace: int

    @property
    def authorities(self) -> tuple[str, ...]:
        """The names of the files that the container finds in the folder `authorities/`, sorted."""
        store = self.gateway.limits.store_url
        named = {*self.gateway.ca_files, *(() if store is None or store.ca_file is None else (store.ca_file,))}
        given = set() if self.settings.authorities is None else {self.settings.authorities.key}
        return tuple(sorted(given | {file.name for file in named if file.is_relative_to(AUTHORITIES_FOLDER)}))


def plan_compose(loaded: Loaded, env: Mapping[str, str], *, domain: str | None) -> ComposePlan:
    """The ComposePlan of a config in which neither `check` nor `check_compose` finds an error.

    env     a value for every `${NAME}`; values may decide an address, but are not rendered
    domain  the public name for which Caddy ends TLS
    """
    config = loaded.config
    assert config is not None
    names = engine_names(config, ENGINE_STEM)
    urls = {backend: f"http://{name}:{ENGINE_PORT}" for backend, name in names.items()}
    text = to_yaml(_in_container(loaded.written, config, urls, domain))
    gateway = plan_of_text(text, env)
    host = config.server.host
    return ComposePlan(
        settings=config.kubernetes,
        written=frozenset(config.kubernetes.model_fields_set),
        gateway=gateway,
        config_text=text,
        image=config.kubernetes.image or f"aiaas:{__version__}",
        variables=variables_of(config, text),
        values={name: each.value for name, each in config.kubernetes.env.items() if each.value is not None},
        engines=tuple(engines_of(loaded, names, compile_plan(config, env=env))),
        store=_store(loaded.written),
        address=None if host in EVERYWHERE else "127.0.0.1" if host == "localhost" else host,
        domain=domain,
        knows_machine=any(named == MACHINE for _, named in addresses(config)),
        ingress_timeout=ingress_timeout(config),
        largest_body=largest_body(config),
        grace=grace_period(gateway.server.drain_timeout, before=0),
    )


def _in_container(
    written: dict[str, Any], config: Config, engine_urls: dict[str, str], domain: str | None
) -> dict[str, Any]:
    form = deployed_form(written, config, engine_urls)
    form.pop("kubernetes", None)
    server = dict(form.get("server") or {})
    if config.server.host not in EVERYWHERE:
        server["host"] = EVERYWHERE[0]
    if domain is not None:
        server["trusted_proxies"] = list(dict.fromkeys([*(server.get("trusted_proxies") or ()), *PRIVATE]))
    return form | ({"server": server} if server else {})


def _store(written: dict[str, Any]) -> StoreService | None:
    """The store that the config asks for, if a compose file can run it."""
    address = (written.get("rate_limit") or {}).get("store", "memory")
    match = _OWN_STORE.fullmatch(address)
    if match is None or _TAKEN.fullmatch(match["host"]):
        return None
    return StoreService(match["host"], int(match["port"] or REDIS_PORT), match["password"])
