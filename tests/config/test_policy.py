"""The section `network_policy`; its rules are in cases/cluster-policy-*, its rules' rendering in tests/manifests."""

from __future__ import annotations

from aiaas.config.policy import ClusterDns, NetworkPolicy


def test_a_policy_without_fields_is_on() -> None:
    """With the usual places of DNS, scraping from monitoring, and nobody else."""
    policy = NetworkPolicy()
    assert policy.enabled
    assert policy.dns == ClusterDns()
    assert (policy.ingress, policy.egress) == ((), ())
