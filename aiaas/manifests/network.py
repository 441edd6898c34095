"""NetworkPolicies from the Plan's real edges: allow its clients and its peers, and nothing else.

A policy sees pods and pod ports, after the translation of a Service's address. Every network plugin lets the kubelet's
probes through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aiaas.config.hops import by_balancer
from aiaas.config.policy import ClusterDns, Peers
from aiaas.manifests.objects import Object, head, selector_of
from aiaas.plan.deployed import ENGINE_PORT
from aiaas.plan.kubernetes import EngineDeployment, KubernetesPlan
from aiaas.plan.network import Edge

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"  # the API server puts it on every namespace
DNS_PORT: Final = 53
POD_DNS_PORTS: Final = (DNS_PORT, 5353)  # 5353: OpenShift's, whose Service translates it
NODE_DNS: Final = ("169.254.20.10/32", "169.254.169.254/32")  # NodeLocal DNSCache; Cloud DNS of GKE


def gateway_policy(plan: KubernetesPlan) -> Object:
    """The plan's NetworkPolicy, with rules that the plan lacks: to resolve names, to scrape metrics, the operator's."""
    policy, port = plan.settings.network_policy, plan.gateway.server.port
    spec = {
        "podSelector": {"matchLabels": selector_of(plan.app)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            _clients(plan),
            *_scrapers(plan, plan.gateway.monitoring.metrics_port, plan.app),
            *(_rule("from", _peers(plan, each), *(each.ports or (port,))) for each in policy.ingress),
        ],
        "egress": [
            *_dns(plan),
            *(_to_engine(engine) for engine in plan.engines),
            *map(_to, plan.outgoing),
            *(_rule("to", _peers(plan, each), *each.ports) for each in policy.egress),
        ],
    }
    made = head(plan, "networking.k8s.io/v1", "NetworkPolicy", plan.named("network-policy"))
    return made | {"spec": spec}


def engine_policy(plan: KubernetesPlan, engine: EngineDeployment) -> Object:
    """Only the gateway may reach an engine, since an engine does not check keys. An engine may connect anywhere, since
    it downloads its weights."""
    rules = [_rule("from", [{"podSelector": {"matchLabels": selector_of(plan.app)}}], ENGINE_PORT)]
    spec = {
        "podSelector": {"matchLabels": selector_of(engine.name)},
        "policyTypes": ["Ingress"],
        "ingress": [*rules, *_scrapers(plan, ENGINE_PORT, engine.name)],
    }
    return head(plan, "networking.k8s.io/v1", "NetworkPolicy", engine.name, app=engine.name) | {"spec": spec}


def _clients(plan: KubernetesPlan) -> Object:
    """The sources of requests: the controller's pods, any pod if nothing is exposed, anywhere with a load balancer."""
    settings, port = plan.settings, plan.gateway.server.port
    if by_balancer(settings):
        return _rule("from", [], port)
    if settings.expose == "none":
        return _rule("from", [{"namespaceSelector": {}}], port)
    if settings.expose == "ingress":
        namespace = settings.ingress.controller_namespace
    else:
        gateway = settings.gateway
        namespace = gateway.controller_namespace or gateway.namespace or settings.namespace
    return _rule("from", [_namespace(namespace)], port)


def _scrapers(plan: KubernetesPlan, port: int, app: str) -> list[Object]:
    namespace = plan.settings.network_policy.monitoring_namespace
    if namespace is None or (app == plan.app and not plan.gateway.monitoring.prometheus):
        return []
    return [_rule("from", [_namespace(namespace)], port)]


def _dns(plan: KubernetesPlan) -> list[Object]:
    """Where names are resolved. 169.254.169.254 also serves the metadata of a cloud's machines, at other ports."""
    dns = plan.settings.network_policy.dns
    pods, cidrs = [], dns.cidrs
    if dns == ClusterDns():
        pods, cidrs = [_pods("kube-system", {"k8s-app": "kube-dns"}), _pods("openshift-dns", {})], NODE_DNS
    elif dns.namespace is not None or dns.pod_labels or dns.port is not None:
        pods = [_pods(dns.namespace or "kube-system", dns.pod_labels)]
    ports = POD_DNS_PORTS if dns.port is None else (dns.port,)
    blocks = [{"ipBlock": {"cidr": network}} for network in cidrs]
    return [_queries(peers, at) for peers, at in ((pods, ports), (blocks, (DNS_PORT,))) if peers]


def _queries(peers: list[Object], ports: Sequence[int]) -> Object:
    return {"to": peers, "ports": [{"protocol": name, "port": port} for port in ports for name in ("UDP", "TCP")]}


def _to_engine(engine: EngineDeployment) -> Object:
    return _rule("to", [{"podSelector": {"matchLabels": selector_of(engine.name)}}], ENGINE_PORT)


def _to(edge: Edge) -> Object:
    if edge.namespace is None:
        return _rule("to", [{"ipBlock": {"cidr": network}} for network in edge.networks], *edge.ports)
    return _rule("to", [_pods(edge.namespace, dict(edge.pod_labels))], *edge.ports)


def _pods(namespace: str, labels: Mapping[str, str]) -> Object:
    """The pods with these labels; without any, all of the namespace."""
    return _namespace(namespace) | ({"podSelector": {"matchLabels": dict(labels)}} if labels else {})


def _peers(plan: KubernetesPlan, peers: Peers) -> list[Object]:
    """The peers of an operator's rule."""
    found: list[Object] = [{"ipBlock": {"cidr": network}} for network in peers.cidrs]
    name = peers.namespace
    if name is None and not peers.namespace_labels and peers.pod_labels:
        name = plan.settings.namespace
    labels = ({} if name is None else {NAMESPACE_LABEL: name}) | peers.namespace_labels
    if labels:
        pods: Object = {"podSelector": {"matchLabels": dict(peers.pod_labels)}} if peers.pod_labels else {}
        found.append({"namespaceSelector": {"matchLabels": labels}} | pods)
    return found


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: name}}}


def _rule(direction: str, peers: list[Object], *ports: int) -> Object:
    """One rule; without peers it allows anybody, without ports every port."""
    rule: Object = {direction: peers} if peers else {}
    return rule | ({"ports": [{"protocol": "TCP", "port": port} for port in ports]} if ports else {})
