"""Requests and LLM tokens by key: plain sums, written out as text.

prometheus_client takes 6 us for each series of a scrape, and three objects: a second for 50,000 keys, and a collection
of its objects stops every stream meanwhile. Sums in a dict are written out in a twentieth of that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from aiaas.proxy.telemetry.record import NO_KEY

_REQUESTS: Final = "aiaas_key_requests_total"
_TOKENS: Final = "aiaas_key_tokens_total"
_REQUESTS_HEAD: Final = f"# HELP {_REQUESTS} Inference requests by key\n# TYPE {_REQUESTS} counter\n"
_TOKENS_HEAD: Final = f"# HELP {_TOKENS} LLM tokens by key\n# TYPE {_TOKENS} counter\n"
_PIECE: Final = 1000  # keys that are written out without the GIL being given up in between, for a millisecond


class KeySums(msgspec.Struct, array_like=True, gc=False):
    """Requests and LLM tokens of one key. `gc=False`: the collector has nothing to visit in 50,000 of them."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Count more."""
        self.requests += requests
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


class KeyCounters:
    """The sums of the keys that the key file holds: a key that was removed has no series.

    sums  by key id; letters and digits, or NO_KEY

    `keep` is called on the event loop, the rest by one scrape at a time.
    """

    def __init__(self) -> None:
        self.sums: dict[str, KeySums] = {}
        self._kept: frozenset[str] | None = None

    def keep(self, key_ids: frozenset[str]) -> None:
        """The ids of all keys that there are now."""
        self._kept = key_ids

    def count(self, key_id: str, requests: int, input_tokens: int, output_tokens: int) -> None:
        """Add requests that ended alike."""
        sums = self.sums.get(key_id)
        if sums is None:
            sums = self.sums[key_id] = KeySums()
        sums.add(requests, input_tokens, output_tokens)

    def forget_removed(self) -> None:
        """Drop the series of removed keys; after `count`, since a request may outlive its key."""
        if self._kept is not None:
            forget(self.sums, self._kept)


def forget(sums: dict[str, KeySums], kept: Collection[str]) -> None:
    """Drop the sums of all keys but those `kept`."""
    for key_id in [key_id for key_id in sums if key_id not in kept and key_id != NO_KEY]:
        del sums[key_id]


def exposed(registry: CollectorRegistry, sums: Mapping[str, KeySums]) -> bytes:
    """The text exposition format 0.0.4 of all that a gateway counts."""
    text: bytes = generate_latest(registry)
    return b"".join((text, *_pieces(sums)))


def _pieces(sums: Mapping[str, KeySums]) -> Iterator[bytes]:
    if not sums:
        return
    yield _REQUESTS_HEAD.encode()
    for piece in _in_pieces(sums):
        lines = [f'{_REQUESTS}{{key_id="{key_id}"}} {used.requests}.0\n' for key_id, used in piece]
        yield "".join(lines).encode()
    yield _TOKENS_HEAD.encode()
    for piece in _in_pieces(sums):
        lines = [
            f'{_TOKENS}{{key_id="{key_id}",type="input"}} {used.input_tokens}.0\n'
            f'{_TOKENS}{{key_id="{key_id}",type="output"}} {used.output_tokens}.0\n'
            for key_id, used in piece
        ]
        yield "".join(lines).encode()


def _in_pieces(sums: Mapping[str, KeySums]) -> Iterator[list[tuple[str, KeySums]]]:
    items = iter(sums.items())
    while piece := list(islice(items, _PIECE)):
        yield piece
