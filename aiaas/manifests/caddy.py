"""The Caddyfile: Caddy in front of the gateway on one machine, with a certificate that it gets and renews by itself.

It does these things for the gateway:

  1. No buffering. Caddy sends each event of a stream on at once by itself. With `flush_interval -1` Caddy 2.6 would let
     a request run whose client left before the first token.
  2. Longer patience than the gateway's, and larger bodies, so that clients get the gateway's own errors. Only the head
     of a request has a timeout: the gateway bounds bodies itself, and a stream may last for hours.
  3. Idle connections to the gateway end before the gateway closes them (75 s): a request on a connection that is just
     being closed would fail.
  4. While the gateway restarts, new requests wait for it.
"""

from __future__ import annotations

import math
from typing import Final

from aiaas.config.ingress import BODY_ROOM
from aiaas.plan.compose import GATEWAY, ComposePlan

CADDY_KEEP_ALIVE: Final = 30  # seconds; the gateway keeps idle connections for 75
RESTART_PATIENCE: Final = 30  # seconds that a new request waits for a gateway that restarts


def caddyfile(plan: ComposePlan) -> str:
    """The text of the Caddyfile, without the comment that names its source."""
    server = plan.gateway.server
    return f"""{{
\tgrace_period {math.ceil(server.drain_timeout)}s
\tservers {{
\t\ttimeouts {{
\t\t\tread_header {math.ceil(server.header_timeout)}s
\t\t}}
\t}}
}}

{plan.domain} {{
\trequest_body {{
\t\tmax_size {BODY_ROOM * plan.largest_body}
\t}}
\treverse_proxy {GATEWAY}:{server.port} {{
\t\tlb_try_duration {RESTART_PATIENCE}s
\t\ttransport http {{
\t\t\tcompression off
\t\t\tdial_timeout 5s
\t\t\tkeepalive {CADDY_KEEP_ALIVE}s
\t\t\tresponse_header_timeout {plan.ingress_timeout}s
\t\t}}
\t}}
}}
"""
