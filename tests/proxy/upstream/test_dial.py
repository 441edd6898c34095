"""aiaas.proxy.upstream.dial: which address a connection goes to, and by which TLS context."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from aiaas.plan.model import EndpointPlan, TrustPlan
from aiaas.proxy.client.handler import with_pauses
from aiaas.proxy.upstream.dial import AVOIDED, ClientTls, Dialer, addresses_of, why_distrusted
from tests.certificate import self_signed
from tests.fakes.vllm import FakeVllm
from tests.ports import silent_port
from tests.proxy.conftest import StartFake
from tests.waiting import until

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def plan(port: int, host: str = "vllm.test", *, tls: bool = False) -> EndpointPlan:
    """An endpoint with a host name."""
    return EndpointPlan(f"http://{host}:{port}", host, port, tls, "", {})


class Script:
    """A resolver whose answers wait for `go`; each question takes the next one."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The answer to one question."""
        assert (host, port > 0) == ("vllm.test", True)
        self.asked += 1
        await self.go.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def opened(dialer: Dialer, timeout: float) -> tuple[asyncio.BaseTransport, asyncio.Protocol]:
    """A connection within `timeout` seconds."""
    until = asyncio.get_running_loop().time() + timeout
    return await with_pauses(dialer.open(asyncio.Protocol, until))


async def peer(dialer: Dialer, timeout: float = 5.0) -> str:
    """The address that a connection went to."""
    transport, _ = await opened(dialer, timeout)
    address: str = transport.get_extra_info("peername")[0]
    transport.close()
    return address


async def test_the_machines_own_resolver() -> None:
    """Each address once, however many socket types it is listed for."""
    found = await addresses_of("localhost", 80)
    assert found
    assert set(found) <= {"127.0.0.1", "::1"}
    assert len(found) == len(set(found))


async def test_an_address_is_never_looked_up(fake_vllm: FakeVllm) -> None:
    """Also where no resolver would answer."""
    script = Script()
    dialer = Dialer(plan(fake_vllm.port, "127.0.0.1"), ClientTls(), script)
    assert await peer(dialer) == "127.0.0.1"
    assert script.asked == 0


async def test_a_name_is_looked_up_once(fake_vllm: FakeVllm) -> None:
    """All that connect before the first answer share one look-up, those after it pay none."""
    script = Script(["127.0.0.1"])
    dialer = Dialer(plan(fake_vllm.port), ClientTls(), script)
    script.go.clear()
    first = [asyncio.create_task(peer(dialer)) for _ in range(3)]
    await until(lambda: script.asked == 1)
    first[0].cancel()
    await asyncio.sleep(0)
    script.go.set()
    assert await asyncio.gather(*first[1:]) == ["127.0.0.1"] * 2
    assert await peer(dialer) == "127.0.0.1"
    assert (script.asked, dialer.addresses) == (1, ("127.0.0.1",))


async def test_a_failed_first_look_up_is_repeated(fake_vllm: FakeVllm) -> None:
    """By the next connection; no address is counted as failing."""
    script = Script(socket.gaierror(socket.EAI_NONAME, "unknown"), [], ["127.0.0.1"])
    dialer = Dialer(plan(fake_vllm.port), ClientTls(), script)
    with pytest.raises(socket.gaierror):
        await peer(dialer)
    with pytest.raises(OSError, match=r"vllm\.test has no address"):
        await peer(dialer)
    assert await peer(dialer) == "127.0.0.1"


async def test_a_late_first_look_up_replaces_nothing(fake_vllm: FakeVllm) -> None:
    """The background resolver was faster, and its answer is newer."""
    script = Script(["127.0.0.9"])
    dialer = Dialer(plan(fake_vllm.port), ClientTls(), script)
    script.go.clear()
    connecting = asyncio.create_task(peer(dialer))
    await until(lambda: script.asked == 1)
    assert not dialer.found(["127.0.0.1"])  # nothing was known before
    assert await peer(dialer) == "127.0.0.1"
    script.go.set()
    assert await connecting == "127.0.0.1"
    assert dialer.addresses == ("127.0.0.1",)


async def test_a_look_up_that_hangs_ends_with_the_timeout() -> None:
    """The look-up counts towards the connection's timeout."""
    script = Script(["127.0.0.1"])
    script.go.clear()
    with pytest.raises(TimeoutError):
        await opened(Dialer(plan(1), ClientTls(), script), 0.02)
    script.go.set()


async def test_addresses_are_tried_in_their_order(fake_vllm: FakeVllm, fake_vllms: StartFake) -> None:
    """An address that refuses costs nothing, and comes last from then on, until it works again."""
    dialer = Dialer(plan(fake_vllm.port), ClientTls(), Script())
    dialer.found(["127.0.0.2", "127.0.0.1"])
    assert await peer(dialer) == "127.0.0.1"
    await fake_vllms(host="127.0.0.2", port=fake_vllm.port)
    assert await peer(dialer) == "127.0.0.1"
    await fake_vllm.down()
    assert await peer(dialer) == "127.0.0.2"
    await fake_vllm.up()
    assert await peer(dialer) == "127.0.0.2"


async def test_an_address_that_works_again_comes_first(fake_vllm: FakeVllm, fake_vllms: StartFake) -> None:
    """After both have refused, the one that takes a connection is no longer avoided, and the other one still is."""
    dialer = Dialer(plan(fake_vllm.port), ClientTls(), Script())
    dialer.found(["127.0.0.2", "127.0.0.1"])
    await fake_vllm.down()
    with pytest.raises(ConnectionRefusedError):
        await peer(dialer)
    await fake_vllm.up()
    assert await peer(dialer) == "127.0.0.1"
    await fake_vllms(host="127.0.0.2", port=fake_vllm.port)
    assert await peer(dialer) == "127.0.0.1"


async def test_an_avoided_address_is_tried_again_later(fake_vllm: FakeVllm) -> None:
    """After AVOIDED seconds, or at once where it left the answer in between."""
    dialer = Dialer(plan(fake_vllm.port), ClientTls(), Script())
    now = asyncio.get_running_loop().time()
    both = ["127.0.0.2", "127.0.0.1"]
    dialer.found(both)
    await peer(dialer)
    assert dialer._in_order(both, now + AVOIDED / 2) == both[::-1]
    assert dialer._in_order(both, now + AVOIDED + 10) == both
    assert not dialer.found(both[::-1])
    assert dialer._in_order(both, now) == both[::-1]
    assert dialer.found(both[1:])
    dialer.found(both)
    assert dialer._in_order(both, now) == both


async def test_a_silent_address_gets_its_part_of_the_time(fake_vllms: StartFake) -> None:
    """The second of two still has half of it."""
    with silent_port() as port:
        await fake_vllms(host="127.0.0.2", port=port)
        dialer = Dialer(plan(port), ClientTls(), Script())
        dialer.found(["127.0.0.1", "127.0.0.2"])
        assert await peer(dialer, 1.0) == "127.0.0.2"


async def test_the_last_address_has_all_the_time_that_is_left() -> None:
    """All addresses together have the whole timeout."""
    with silent_port() as port:
        dialer = Dialer(plan(port), ClientTls(), Script())
        dialer.found(["127.0.0.1"] * 3)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TimeoutError):
            await opened(dialer, 0.3)
        assert loop.time() - began >= 0.29


async def test_a_refusal_is_what_is_reported() -> None:
    """Of several failures a refusal says most: the address answers, and nothing listens there."""
    with silent_port() as port:
        for order in (["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]):
            dialer = Dialer(plan(port), ClientTls(), Script())
            dialer.found(order)
            with pytest.raises(ConnectionRefusedError):
                await opened(dialer, 1.0)  # half of it for the silent one; a busy machine may need some for the other
        dialer.found(["127.0.0.1"])
        with pytest.raises(TimeoutError):
            await opened(dialer, 0.1)


# -- TLS -----------------------------------------------------------------------------------------------------------


async def test_one_context_is_made_in_a_thread() -> None:
    """However many endpoints need the context at once."""
    threads: list[threading.Thread] = []

    def make(_ca_file: Path | None) -> ssl.SSLContext:
        threads.append(threading.current_thread())
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    tls = ClientTls(make)
    contexts = await asyncio.gather(*[tls.context(None) for _ in range(20)], tls.context(None))
    assert len(threads) == len(set(contexts)) == 1
    assert threads[0] is not threading.current_thread()


async def test_a_context_that_failed_is_made_again() -> None:
    """The reason is passed on, and not remembered."""
    outcomes: list[Exception | ssl.SSLContext] = [OSError("no descriptors"), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)]

    def make(_ca_file: Path | None) -> ssl.SSLContext:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    tls = ClientTls(make)
    with pytest.raises(OSError, match="no descriptors"):
        await tls.context(None)
    assert isinstance(await tls.context(None), ssl.SSLContext)


async def test_the_certificate_is_checked_against_the_name(tmp_path: Path, fake_vllms: StartFake) -> None:
    """And not against the address that the name resolves to."""
    certificate, key = self_signed(tmp_path, "DNS:vllm.test")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    fake = await fake_vllms(server)
    trusting = ClientTls(lambda _: ssl.create_default_context(cafile=str(certificate)))
    dialer = Dialer(plan(fake.port, tls=True), trusting, Script(["127.0.0.1"]))
    assert await peer(dialer) == "127.0.0.1"
    other = Dialer(plan(fake.port, "127.0.0.1", tls=True), trusting)
    with pytest.raises(ssl.SSLCertVerificationError):
        await peer(other)


async def test_a_look_up_that_nobody_waits_for_fails_in_silence() -> None:
    """The client left; asyncio would log an error that nobody can act on."""
    script = Script(OSError("no such name"))
    script.go.clear()
    dialer = Dialer(plan(1), ClientTls(), script)
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["message"]))
    client = asyncio.create_task(peer(dialer))
    await until(lambda: script.asked == 1)
    client.cancel()
    await asyncio.wait([client])
    script.go.set()
    del client, dialer
    await until(lambda: not script.answers)
    await asyncio.sleep(0)
    gc.collect()
    assert told == []


# -- authorities of backends ---------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> trustme.CA:
    """A private authority."""
    return trustme.CA()


async def secure(fakes: StartFake, authority: trustme.CA, name: str, ends: datetime | None = None) -> FakeVllm:
    """A scripted endpoint with a certificate for `name` from that authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, not_before=LONG_AGO if ends else None, not_after=ends).configure_cert(context)
    return await fakes(context)


def trusted_in(folder: Path, *authorities: trustme.CA) -> Path:
    """A file with these authorities."""
    file = folder / "ca.pem"
    file.write_bytes(b"".join(each.cert_pem.bytes() for each in authorities))
    return file


def dialer_to(fake: FakeVllm, tls: ClientTls, trust: TrustPlan) -> Dialer:
    """A dialer to it by its address."""
    return Dialer(replace(plan(fake.port, "127.0.0.1", tls=True), trust=trust), tls)


async def why_not(dialer: Dialer) -> str:
    """The reason for the log why there is no connection."""
    with pytest.raises(ssl.SSLError) as error:
        await peer(dialer)
    return why_distrusted(error.value, dialer.trust)


async def test_a_backend_of_a_private_authority(authority: trustme.CA, tmp_path: Path, fake_vllms: StartFake) -> None:
    """Its file is the only way in, and nobody else's."""
    fake = await secure(fake_vllms, authority, "127.0.0.1")
    tls, file = ClientTls(), trusted_in(tmp_path, authority)
    assert await peer(dialer_to(fake, tls, TrustPlan(file, section="backends.a.tls"))) == "127.0.0.1"
    unknown = "its certificate does not verify: signed by an unknown authority, "
    why = await why_not(dialer_to(fake, tls, TrustPlan(section="backends.b.tls")))
    assert why.startswith(unknown)
    assert why.endswith("; name a file with that authority's certificate in backends.b.tls.ca_file")
    (tmp_path / "other").mkdir()
    other = trusted_in(tmp_path / "other", trustme.CA())
    why = await why_not(dialer_to(fake, tls, TrustPlan(other, section="backends.c.tls")))
    assert why.startswith(unknown)
    assert why.endswith(f"; backends.c.tls.ca_file ({other}) does not have that authority")


async def test_a_certificate_of_another_name(authority: trustme.CA, tmp_path: Path, fake_vllms: StartFake) -> None:
    """`server_name` is the name that it must have, whatever the address."""
    fake = await secure(fake_vllms, authority, "vllm.internal")
    tls, trust = ClientTls(), TrustPlan(trusted_in(tmp_path, authority), section="backends.a.tls")
    why = await why_not(dialer_to(fake, tls, trust))
    assert "IP address mismatch" in why
    assert why.endswith("write a name of its certificate into backends.a.tls.server_name")
    why = await why_not(dialer_to(fake, tls, replace(trust, server_name="other.internal")))
    assert "Hostname mismatch" in why
    assert await peer(dialer_to(fake, tls, replace(trust, server_name="vllm.internal"))) == "127.0.0.1"


async def test_an_expired_certificate_is_named(authority: trustme.CA, tmp_path: Path, fake_vllms: StartFake) -> None:
    """Another authority would not help."""
    fake = await secure(fake_vllms, authority, "127.0.0.1", LONG_AGO + timedelta(days=1))
    trust = TrustPlan(trusted_in(tmp_path, authority), section="backends.a.tls")
    assert await why_not(dialer_to(fake, ClientTls(), trust)) == (
        "its certificate does not verify: certificate has expired"
    )


async def test_a_file_that_is_read_again_counts_from_then_on(
    authority: trustme.CA, tmp_path: Path, fake_vllms: StartFake
) -> None:
    """For new connections; with a broken file the last authorities stay."""
    fake = await secure(fake_vllms, authority, "127.0.0.1")
    tls, file = ClientTls(), trusted_in(tmp_path, trustme.CA())
    dialer = dialer_to(fake, tls, TrustPlan(file))
    await why_not(dialer)
    trusted_in(tmp_path, authority)
    await why_not(dialer)  # nobody has read it
    assert await tls.read({file: "backends.a.tls"}) == {}
    assert await peer(dialer) == "127.0.0.1"
    file.write_text("-----BEGIN")
    assert await tls.read({file: "backends.a.tls"}) == {
        file: f"backends.a.tls.ca_file: {file} does not contain certificates in PEM"
    }
    assert await peer(dialer) == "127.0.0.1"
