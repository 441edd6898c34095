"""The gauges of each endpoint, by backend and address."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge


class EndpointGauges:
    """The state of each endpoint. One that drains has `draining` and not `up`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["backend", "endpoint"], registry=registry)

        self.up = gauge("aiaas_endpoint_up", "Whether an endpoint gets requests; absent while it drains")
        self.draining = gauge("aiaas_endpoint_draining", "1 while an endpoint drains by the config")
        self.bound = gauge("aiaas_endpoint_max_inflight", "Requests that an endpoint may have at once")
        self.models_wrong = gauge(
            "aiaas_models_wrong", "Model names in the config that an endpoint does not serve as configured"
        )

    def remove(self, backend: str, endpoint: str) -> None:
        """Remove an endpoint's series."""
        for gauge in (self.up, self.draining, self.bound, self.models_wrong):
            gauge.remove(backend, endpoint)
