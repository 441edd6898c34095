"""Requests whose bodies are being read: how many a key may have, and the bytes that bodies take.

Limits are checked when a body has been read, since they depend on its content. Until then a request is cheap for its
client and expensive for us: a key with one request a minute once killed the pod, by 8,000 connections that held back
the last bytes of a small body. So requests whose body is being read have bounds of their own:

- for its key's `max_concurrent`, from the moment at which the key is known;
- for READING_PART of all connections, which one key's requests may take while they are read;
- with the bytes that have arrived, for the budget of all bodies, of which one key may take half. An announced length
  does not count: eight clients that announced 10 MiB and sent a byte now and then once shut all others out.

A small body, as nearly all are, counts only while it is read; afterwards its key's limits bound it. Without keys, count
by address.
"""

from __future__ import annotations

from typing import Final

from aiaas.config.memory import body_budget
from aiaas.keys.throttle import source_of
from aiaas.limits.headers import refusal
from aiaas.limits.model import AdmissionResult, Decision
from aiaas.limits.state import SLOT_RETRY
from aiaas.plan.model import ServerPlan
from aiaas.proxy.client.places import Places, overloaded
from aiaas.proxy.telemetry.record import NO_KEY, Record, Share

# Bodies up to this count only while they are read: nearly all prompts are smaller.
SMALL_BODY: Final = 64 * 1024
# One key's part of the budget: of the default, four uploads of the largest size at once.
SHARE_OF_ONE: Final = 2
# One key's part of the connections, and the least number of them, for requests that are being read.
READING_PART: Final = 8
READING_LEAST: Final = 8


class BodyBudget:
    """The memory that the bodies of all keys hold.

    most  bytes that bodies may take; bodies that are held when a reload lowers it stay
    held  bytes that they take now
    """

    def __init__(self, server: ServerPlan, places: Places) -> None:
        self._places = places
        self._shares: dict[str | None, Share] = {}
        self.held = 0
        self.follow(server)

    def __repr__(self) -> str:
        return f"<BodyBudget {self.held} of {self.most} bytes, {len(self._shares)} keys>"

    def follow(self, server: ServerPlan) -> None:
        """Keep to these bounds from now on."""
        self.most = body_budget(server.max_body_size)
        self.most_reading = max(server.max_connections // READING_PART, READING_LEAST)

    def begin(self, record: Record, concurrent: int) -> None:
        """Count the request for its key's `concurrent`, or remember that it exceeds it."""
        share = self._share(record)
        if share.begun >= concurrent:
            record.beyond = concurrent
        else:
            share.begun += 1
            record.begun = True

    def refuse_beyond(self, record: Record) -> None:
        """Raises LimitError 429 if the request exceeds its key's `concurrent`."""
        if record.beyond:
            decision = Decision(False, record.beyond, 0, SLOT_RETRY, SLOT_RETRY)
            raise refusal(AdmissionResult("concurrency", None, None, decision, None))

    def start_reading(self, record: Record, announced: int) -> None:
        """Count a body that has not arrived yet. Raises LimitError 429, or UpstreamError 503 if the budget is spent."""
        self.refuse_beyond(record)
        share = self._share(record)
        if share.reading >= self.most_reading:
            raise overloaded("You are sending too many requests at once; try again shortly.")
        self._refuse_without_room(share, announced)
        share.reading += 1
        record.reading = True

    def take(self, record: Record, size: int) -> None:
        """Let `record`'s request hold `size` bytes in all. Raises UpstreamError 503; then nothing changes."""
        share = self._share(record)
        more = size - record.body_held
        self._refuse_without_room(share, more)
        if not self._places.hold(more):
            raise overloaded("Too many large requests are being sent at once; try again shortly.")
        self.held += more
        share.held += more
        record.body_held = size

    def stop_reading(self, record: Record) -> None:
        """The request's body is complete."""
        share = self._share(record)
        share.reading -= 1
        record.reading = False
        if record.body_held <= SMALL_BODY:
            self._give_back(record, share)

    def give_back(self, record: Record) -> None:
        """The request's body is no longer in memory; `record.share` is not None."""
        self._give_back(record, self._share(record))

    def leave(self, record: Record) -> None:
        """The request has ended; `record.share` is not None."""
        share = self._share(record)
        share.begun -= record.begun
        share.reading -= record.reading
        self._give_back(record, share)
        share.requests -= 1
        if not share.requests:
            del self._shares[share.owner]
        record.share = None

    def _share(self, record: Record) -> Share:
        share = record.share
        if share is None:
            owner = _owner(record)
            share = self._shares.get(owner)
            if share is None:
                share = self._shares[owner] = Share(owner)
            share.requests += 1
            record.share = share
        return share

    def _refuse_without_room(self, share: Share, more: int) -> None:
        if share.held + more > self.most // SHARE_OF_ONE:
            raise overloaded("You are sending too many large requests at once; try again shortly.")
        if self.held + more > self.most:
            raise overloaded("Too many large requests are being sent at once; try again shortly.")

    def _give_back(self, record: Record, share: Share) -> None:
        share.held -= record.body_held
        self.held -= record.body_held
        self._places.give_back(record.body_held)
        record.body_held = 0


def _owner(record: Record) -> str | None:
    """The owner of the request: the key's id, or without keys the network of the address, which is then the user."""
    if record.key_id == NO_KEY and record.user is not None:
        return source_of(record.user)
    return record.key_id
