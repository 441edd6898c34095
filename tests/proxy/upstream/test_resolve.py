"""aiaas.proxy.upstream.resolve: the endpoints of a `dns` backend follow the addresses of its name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiaas.proxy.client.handler import with_pauses
from aiaas.proxy.request.visit import Visit
from aiaas.proxy.upstream.backends import BackendState
from aiaas.proxy.upstream.dial import addresses_of
from aiaas.proxy.upstream.endpoint import EndpointState
from aiaas.proxy.upstream.resolve import Resolver, Timing, names_of, next_delay
from aiaas.proxy.upstream.waiter import Demand, Waiter
from tests.fakes.vllm import DONE, LAST_CHUNK, STREAM_HEAD, FakeVllm, Hang, Send, Wait, chunk, stream, token_event
from tests.proxy.conftest import Running, StartFake, StartGateway, config_of, plan_of
from tests.waiting import until

CHAT = {"model": "m", "messages": []}
STREAM = {**CHAT, "stream": True}
QUICK = Timing(interval=0.01, first=0.001, timeout=0.03)
GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
ONE, TWO, THREE = "10.0.0.1", "10.0.0.2", "fd00::3"


def config_at(port: int, **backend: Any) -> dict[str, Any]:
    """The config of a backend that is found by a name."""
    config = config_of([], {"dns": f"vllm.test:{port}", **backend}, {})
    del config["backends"]["vllm"]["urls"]
    return config


def state(*addresses: str, **backend: Any) -> BackendState:
    """A backend whose name resolves to these addresses."""
    made = BackendState(plan_of(config_at(8000, **backend)).backends[0], lambda *_: None)
    made.resolved(addresses)
    return made


def urls(endpoints: Sequence[Any]) -> list[str]:
    """The addresses of its endpoints."""
    return [endpoint.plan.url for endpoint in endpoints]


class Script:
    """A resolver: each question takes the next answer, and the last one is repeated. None never comes."""

    def __init__(self, *answers: Sequence[str] | Exception | None) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.open = 0
        self.late: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The answer to one question."""
        assert (host, port > 0) == ("vllm.test", True)
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        self.open += 1
        try:
            await asyncio.sleep(0)
            if answer is None:
                return await asyncio.shield(self.late)
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.open -= 1


@asynccontextmanager
async def following(
    running: Running, script: Callable[..., Any], timing: Timing | None = QUICK
) -> AsyncIterator[BackendState]:
    """The gateway's backend, while its name is asked for."""
    backend = running.backend()
    resolver = Resolver(running.gateway.log, running.metrics, script, timing)
    ((host, port),) = names_of(backend.plan).items()
    task = asyncio.create_task(resolver.follow(backend, host, port))
    yield backend
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    backend.close()


# -- the endpoints that addresses make -----------------------------------------------------------------------------


def test_addresses_become_endpoints() -> None:
    """Each address is one endpoint, IPv6 as well; requests to it go on naming the host that was configured."""
    backend = state(TWO, THREE, ONE)
    assert urls(backend.endpoints) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::3]:8000"]
    assert [endpoint.plan.host for endpoint in backend.endpoints] == [ONE, TWO, THREE]
    assert all(b"\r\nHost: vllm.test:8000\r\n" in endpoint.plan.heads["/health"] for endpoint in backend.endpoints)


@given(st.permutations([ONE, TWO, THREE, ONE]))
def test_order_and_repeats_mean_nothing(addresses: list[str]) -> None:
    """The same addresses in any order leave everything as it is."""
    backend = state(ONE, TWO, THREE)
    before = backend.endpoints
    assert backend.resolved(addresses) == ([], [])
    assert all(now is then for now, then in zip(backend.endpoints, before, strict=True))


def test_joining_and_leaving_addresses_are_logged() -> None:
    """Both are logged; an endpoint that stays is the same, with its health."""
    backend = state(ONE, TWO)
    one, two = backend.endpoints
    two.set_up(False, "test")
    joined, left = backend.resolved([TWO, THREE])
    assert (urls(joined), left) == (["http://[fd00::3]:8000"], [one])
    assert backend.endpoints[0] is two
    assert [endpoint.up for endpoint in backend.endpoints] == [False, True]
    assert backend.changed.is_set()


def test_endpoint_back_before_its_requests_end_is_the_same() -> None:
    """So its slots stay counted; once idle the endpoint is forgotten."""
    backend = state(ONE, TWO)
    one, two = backend.endpoints
    one.pool.inflight = 1
    backend.resolved([TWO])
    assert (backend.endpoints, list(backend.leaving)) == ((two,), [one])
    backend.resolved([ONE, TWO])
    assert (backend.endpoints, list(backend.leaving)) == ((one, two), [])
    backend.resolved([TWO])
    one.give_back()
    assert list(backend.leaving) == []
    backend.resolved([ONE, TWO])
    assert backend.endpoints[0] is not one


def test_sessions_stay_where_they_are_while_others_come_and_go() -> None:
    """A session moves only while its own endpoint is away, even where that comes back as a new object."""
    backend = state(ONE, TWO, THREE)
    names = [f"session {number}" for number in range(200)]
    before = {name: visited(backend, name) for name in names}
    one = backend.endpoints[0]
    ((joined,), (left,)) = backend.resolved(["10.0.0.4", THREE, TWO])
    for name, then in before.items():
        now = visited(backend, name)
        assert now is then or then is left
    assert sum(then is left for then in before.values()) > 40
    backend.resolved([ONE, TWO, THREE])
    assert backend.endpoints[0] is not one
    assert joined not in backend.endpoints
    assert all(visited(backend, name).plan.url == then.plan.url for name, then in before.items())


def visited(backend: BackendState, name: str) -> EndpointState:
    """The endpoint of a session's next turn, which ends at once."""
    visit = Visit("key", "m", name, None, b"", 100, 0.0, stream=True)
    endpoint = backend.pick((), visit)
    assert endpoint is not None
    stay = backend.sessions.begin(endpoint, visit, None)
    assert stay is not None
    stay.settle(0, 0)
    return endpoint


async def test_waiting_request_gets_the_slot_of_a_joining_endpoint() -> None:
    """At once, and in turn."""
    backend = state(ONE, max_inflight=1)
    backend.endpoints[0].pool.inflight = 1
    waiter = Waiter(Demand("key"), (), None, asyncio.get_running_loop().create_future())
    assert backend.wait(waiter)
    ((joined,), _) = backend.resolved([ONE, TWO])
    assert (waiter.granted.result(), joined.pool.inflight) == (joined, 1)
    backend.resolved([ONE])  # and is gone before the request has noticed
    backend.leave(waiter)
    assert (joined.pool.inflight, list(backend.leaving)) == (0, [])


async def test_waiting_request_hears_when_the_last_endpoint_has_left() -> None:
    """And does not wait for endpoints that are down."""
    backend = state(ONE, TWO, max_inflight=1)
    one, two = backend.endpoints
    one.pool.inflight = 1
    two.set_up(False, "test")
    waiter = Waiter(Demand("key"), (), None, asyncio.get_running_loop().create_future())
    assert backend.wait(waiter)
    backend.resolved([TWO])
    assert waiter.granted.result() is None


def test_another_plan_keeps_what_is_resolved() -> None:
    """Health and addresses stay, until the other name's addresses are known."""
    backend = state(ONE, TWO)
    one, two = backend.endpoints
    two.set_up(False, "test")
    backend.follow(replace(backend.plan, connect_timeout=1.5))
    assert backend.endpoints == (one, two)
    assert [endpoint.up for endpoint in backend.endpoints] == [True, False]
    assert [endpoint.pool.connect_timeout for endpoint in backend.endpoints] == [1.5, 1.5]
    backend.follow(plan_of(config_at(8001)).backends[0])
    assert backend.endpoints == (one, two)
    backend.resolved([TWO])
    assert urls(backend.endpoints) == ["http://10.0.0.2:8001"]


# -- asking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misses", "known", "seconds"),
    [
        (0, True, 5.0),
        (0, False, 5.0),
        (1, True, 5.0),
        (7, True, 5.0),
        (1, False, 0.25),
        (2, False, 0.5),
        (5, False, 4.0),
        (6, False, 5.0),
        (9999, False, 5.0),
    ],
)
def test_next_delay(misses: int, known: bool, seconds: float) -> None:
    """Often until the first answer, steadily from then on, whatever fails."""
    assert next_delay(misses, known, Timing()) == seconds


async def test_a_failing_resolver_changes_nothing(gateway: StartGateway) -> None:
    """NXDOMAIN, an empty answer, an odd name: the addresses stay; logged when it begins, and when it ends."""
    running = await gateway(config=config_at(8000))
    script = Script([ONE], GONE, [], UnicodeError("label too long"), OSError("?"), [ONE, TWO])
    async with following(running, script) as backend:
        await until(lambda: len(backend.endpoints) == 1)
        one = backend.endpoints[0]
        await until(lambda: script.asked == 5)
        assert backend.endpoints == (one,)
        await until(lambda: len(backend.endpoints) == 2)
        assert backend.endpoints[0] is one
    (failed,) = running.log_lines("dns_failed")
    assert (failed["name"], failed["reason"], failed["kept_addresses"]) == ("vllm.test", GONE.strerror, 1)
    assert [line["failures"] for line in running.log_lines("dns_recovered")] == [4]
    assert running.metric('aiaas_dns_resolutions_total{backend="vllm",result="failure"}') == 4
    changes = [(line["joined"], line["left"]) for line in running.log_lines("endpoints_changed")]
    assert changes == [(["http://10.0.0.1:8000"], []), (["http://10.0.0.2:8000"], [])]


async def test_a_slow_resolver_is_asked_one_thing_at_a_time(gateway: StartGateway) -> None:
    """The resolver counts as failing while it does not answer; a late answer is used."""
    running = await gateway(config=config_at(8000))
    script = Script([ONE], None, [TWO])
    async with following(running, script) as backend:
        await until(lambda: running.metric('aiaas_dns_resolutions_total{backend="vllm",result="failure"}') >= 3)
        assert (script.asked, script.open, urls(backend.endpoints)) == (2, 1, ["http://10.0.0.1:8000"])
        script.late.set_result([ONE, TWO])
        await until(lambda: len(backend.endpoints) == 2)
    (failed,) = running.log_lines("dns_failed")
    assert failed["reason"] == "no answer within 0.03 s"
    assert len(running.log_lines("dns_recovered")) == 1


async def test_the_question_ends_with_who_asked(gateway: StartGateway) -> None:
    """No task is left at the end."""
    script = Script(None)
    async with following(await gateway(config=config_at(8000)), script):
        await until(lambda: script.open == 1)
    await until(lambda: script.open == 0)


# -- real sockets --------------------------------------------------------------------------------------------------


@pytest.fixture
async def replicas() -> AsyncIterator[list[FakeVllm]]:
    """Three vLLMs at three addresses, with one port."""
    first = await FakeVllm.start()
    fakes = [first, *[await FakeVllm.start(host=f"127.0.0.{last}", port=first.port) for last in (2, 3)]]
    for fake in fakes:
        fake.default = (Send(stream(token_event(), DONE)),)
    yield fakes
    for fake in fakes:
        await fake.stop()


async def test_no_address_yet_is_503_at_once(replicas: list[FakeVllm], gateway: StartGateway) -> None:
    """Nobody waits for a resolver; as soon as it answers, requests are sent, with the name as their host."""
    running = await gateway(config=config_at(replicas[0].port))
    script = Script(None)
    async with following(running, script) as backend:
        client = await running.client()
        async with asyncio.timeout(0.5):
            got = await client.post(STREAM)
        assert (got.status, got.json["error"]["code"], got.header("retry-after")) == (503, "no_healthy_backend", "5")
        script.late.set_result(["127.0.0.1"])
        await until(lambda: bool(backend.endpoints))
        assert (await client.post(STREAM)).status == 200
    assert replicas[0].posts[0].headers["host"] == f"vllm.test:{replicas[0].port}"
    assert running.log_lines()[-1]["upstream"] == replicas[0].url


@pytest.mark.parametrize("balance", ["auto", "least_inflight", "round_robin"])
async def test_one_that_leaves_ends_its_streams_in_peace(
    replicas: list[FakeVllm], gateway: StartGateway, balance: str
) -> None:
    """The endpoint gets no new request; its stream goes on, its idle connections close, and its metrics are gone."""
    running = await gateway(config=config_at(replicas[0].port, balance=balance))
    replicas[0].default = (
        Send(STREAM_HEAD + chunk(token_event())),
        Wait(go := asyncio.Event()),
        Send(chunk(DONE) + LAST_CHUNK),
    )
    backend = running.backend()
    script = Script(["127.0.0.1"], None, ["127.0.0.3", "127.0.0.2"])
    async with following(running, script):
        await until(lambda: bool(backend.endpoints))
        leaving = backend.endpoints[0]
        client = await running.client()
        client.send(client.request(STREAM))
        await client.head()
        assert await client.chunk() == token_event()
        connection = await with_pauses(leaving.pool.connect())
        leaving.pool.give_back(connection)  # type: ignore[arg-type]
        await until(lambda: replicas[0].open_connections == 2)
        script.late.set_result(["127.0.0.2", "127.0.0.3"])
        await until(lambda: len(backend.endpoints) == 2)
        await until(lambda: replicas[0].open_connections == 1)
        other = await running.client()
        for _ in range(6):
            assert (await other.post(STREAM)).status == 200
        assert len(replicas[0].posts) == 1
        assert len(replicas[1].posts) + len(replicas[2].posts) == 6
        exposed = running.metrics.expose().decode()
        assert f'aiaas_endpoint_up{{backend="vllm",endpoint="{replicas[0].url}"}}' not in exposed
        assert running.metric(f'aiaas_endpoint_up{{backend="vllm",endpoint="{replicas[2].url}"}}') == 1
        leaving.set_up(False, "test")  # an attempt under way brings no series back
        assert "127.0.0.1" not in running.metrics.expose().decode()
        go.set()
        assert await client.chunk() == DONE
        assert await client.chunk() == b""
        await until(lambda: replicas[0].open_connections == 0)
    assert running.log_lines()[-1]["error_code"] is None


async def test_new_ones_are_probed_at_once(replicas: list[FakeVllm], gateway: StartGateway) -> None:
    """And not when the next round is due."""
    health = {"interval": "60s", "unhealthy_after": 1}
    await replicas[1].down()
    running = await gateway(config=config_at(replicas[0].port, health=health), probes=True)
    script = Script(["127.0.0.1"], None)
    async with following(running, script) as backend:
        await until(lambda: len(replicas[0].got) == 1)
        script.late.set_result(["127.0.0.1", "127.0.0.2"])
        await until(lambda: [endpoint.up for endpoint in backend.endpoints] == [True, False])


async def test_one_that_left_and_died_does_not_keep_its_clients(
    replicas: list[FakeVllm], gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that got SIGTERM leaves the name, refuses connections and goes silent (transcript 131): its streams end."""
    monkeypatch.setattr("aiaas.proxy.upstream.endpoint.SILENT_AFTER_REFUSAL", 0.1)
    replicas[0].default = (Send(STREAM_HEAD + chunk(token_event())), Hang())
    running = await gateway(config=config_at(replicas[0].port, health={"interval": "20ms"}), probes=True)
    script = Script(["127.0.0.1"], None)
    async with following(running, script) as backend:
        await until(lambda: bool(backend.endpoints))
        client = await running.client()
        client.send(client.request(STREAM))
        await client.head()
        await client.chunk()
        await replicas[0].down()
        script.late.set_result(["127.0.0.2"])
        assert b"upstream_error" in await client.chunk()
        await running.quiet()
        await until(lambda: not backend.leaving)
    assert running.endpoints()[0].up


async def test_reload_keeps_addresses(replicas: list[FakeVllm], gateway: StartGateway) -> None:
    """Between a changed Plan and the next answer nothing is missing, in the metrics neither."""
    running = await gateway(config=config_at(replicas[0].port))
    running.backend().resolved(["127.0.0.1", "127.0.0.2"])
    running.endpoints()[1].set_up(False, "test")
    running.gateway.replace_plan(plan_of(config_at(replicas[0].port, timeout="7s")))
    assert [endpoint.up for endpoint in running.endpoints()] == [True, False]
    assert (await (await running.client()).post(STREAM)).status == 200
    assert [running.metric(f'aiaas_endpoint_up{{backend="vllm",endpoint="{fake.url}"}}') for fake in replicas[:2]] == [
        1,
        0,
    ]


async def test_localhost_by_the_machines_own_resolver(replicas: list[FakeVllm], gateway: StartGateway) -> None:
    """getaddrinfo's addresses are used as they come, off the event loop."""
    port = replicas[0].port
    addresses = await addresses_of("localhost", port)
    assert addresses
    assert set(addresses) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError):
        await addresses_of("name.invalid", port)
    running = await gateway(config=config_at(port, dns=f"localhost:{port}"))
    async with following(running, addresses_of) as backend:
        await until(lambda: bool(backend.endpoints))
        assert {endpoint.plan.host for endpoint in backend.endpoints} == set(addresses)
        assert (await (await running.client()).post(STREAM)).status == 200


async def test_ipv6(gateway: StartGateway, fake_vllms: StartFake) -> None:
    """An IPv6 address is connected to, and written in brackets."""
    try:
        fake = await fake_vllms(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    fake.default = (Send(stream(token_event(), DONE)),)
    running = await gateway(config=config_at(fake.port))
    async with following(running, Script(["::1"])) as backend:
        await until(lambda: bool(backend.endpoints))
        assert (await (await running.client()).post(STREAM)).status == 200
    assert running.log_lines()[-1]["upstream"] == f"http://[::1]:{fake.port}"


# -- names in `url` ------------------------------------------------------------------------------------------------


async def test_a_url_keeps_its_addresses_while_dns_is_away(replicas: list[FakeVllm], gateway: StartGateway) -> None:
    """No request asks for the name; a new answer is used for new connections, and logged with the old health."""
    running = await gateway(config=config_of([f"http://vllm.test:{replicas[0].port}"], {}, {}))
    script = Script(["127.0.0.1"], GONE, ["127.0.0.2"])
    async with following(running, script) as backend:
        (endpoint,) = backend.endpoints
        await until(lambda: bool(endpoint.pool.dialer.addresses))
        await until(lambda: script.asked >= 3)
        await until(lambda: endpoint.pool.dialer.addresses == ("127.0.0.2",))
        await until(lambda: script.asked >= 6)
        client = await running.client()
        assert (await client.post(STREAM)).status == 200
        assert backend.endpoints == (endpoint,)
    assert replicas[1].posts[0].headers["host"] == f"vllm.test:{replicas[0].port}"
    (failed,) = running.log_lines("dns_failed")
    assert (failed["name"], failed["kept_addresses"]) == ("vllm.test", 1)
    assert [line["failures"] for line in running.log_lines("dns_recovered")] == [1]
    (changed,) = running.log_lines("addresses_changed")
    assert (changed["name"], changed["addresses"]) == ("vllm.test", ["127.0.0.2"])
    assert running.metric('aiaas_dns_resolutions_total{backend="vllm",result="failure"}') == 1
    assert running.metric('aiaas_dns_resolutions_total{backend="vllm",result="success"}') >= 4


async def test_each_name_of_a_backend_is_followed_by_itself(gateway: StartGateway) -> None:
    """Each once, whatever its ports; addresses need none."""
    urls = ["http://one:1", "http://one:2", "https://two:3/x", "http://10.0.0.1:4", "http://[::1]:5"]
    running = await gateway(config=config_of(urls, {}, {}))
    backend = running.backend()
    assert names_of(backend.plan) == {"one": 2, "two": 3}
    answers = {"one": ["10.0.0.5"], "two": ["10.0.0.6"]}

    async def resolve(host: str, _port: int) -> Sequence[str]:
        return answers[host]

    resolver = Resolver(running.gateway.log, running.metrics, resolve, QUICK)
    tasks = [asyncio.create_task(resolver.follow(backend, *name)) for name in names_of(backend.plan).items()]
    await until(lambda: all(endpoint.pool.dialer.addresses for endpoint in backend.endpoints))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    found = [endpoint.pool.dialer.addresses for endpoint in backend.endpoints]
    assert found == [("10.0.0.5",), ("10.0.0.5",), ("10.0.0.6",), ("10.0.0.1",), ("::1",)]


@pytest.mark.parametrize("knows", [0, 1], ids=["the first", "the second"])
@pytest.mark.parametrize(("answer", "lines"), [([TWO], 0), ([ONE, TWO], 1)], ids=["the same", "others"])
async def test_addresses_changed_for_an_endpoint_that_knew_some(
    gateway: StartGateway, knows: int, answer: list[str], lines: int
) -> None:
    """The other endpoint was added by a reload: its first addresses are not logged as a change."""
    running = await gateway(config=config_of(["http://vllm.test:1", "http://vllm.test:2"], {}, {}))
    dialers = [endpoint.pool.dialer for endpoint in running.endpoints()]
    dialers[knows].found([TWO])
    script = Script(answer)
    async with following(running, script):
        await until(lambda: script.asked >= 3)
    assert [set(dialer.addresses) for dialer in dialers] == [set(answer)] * 2
    assert [line["addresses"] for line in running.log_lines("addresses_changed")] == [sorted(answer)] * lines


async def test_the_usual_timing_is_that_of_a_service(gateway: StartGateway) -> None:
    """A config without a resolver's address gets it; it is asked again later than this test lasts."""
    running = await gateway(config=config_at(8000))
    script = Script([ONE])
    async with following(running, script, None) as backend:
        await until(lambda: bool(backend.endpoints))
    assert script.asked == 1


async def test_the_same_answer_is_logged_once(gateway: StartGateway) -> None:
    """A name is asked every few seconds, and nearly all answers are those of before."""
    running = await gateway(config=config_at(8000))
    script = Script([ONE])
    async with following(running, script):
        await until(lambda: script.asked >= 3)
    assert len(running.log_lines("endpoints_changed")) == 1


async def test_kept_addresses_are_the_names_own(gateway: StartGateway) -> None:
    """Another name of the backend has addresses; this one never had any."""
    running = await gateway(config=config_of(["http://one:1", "http://two:2"], {}, {}))
    backend = running.backend()
    backend.endpoints[0].pool.dialer.found([ONE, TWO])

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        raise UnicodeError("label too long")

    resolver = Resolver(running.gateway.log, running.metrics, resolve, QUICK)
    for host in ("two", "one"):
        task = asyncio.create_task(resolver.follow(backend, host, 1))
        await until(
            lambda host=host: (
                running.log_lines("dns_failed")[-1:] != [] and running.log_lines("dns_failed")[-1]["name"] == host
            )
        )
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    failed = [(line["name"], line["kept_addresses"], line["reason"]) for line in running.log_lines("dns_failed")]
    assert failed == [("two", 0, "label too long"), ("one", 2, "label too long")]


async def test_addresses_that_only_leave_are_logged(gateway: StartGateway) -> None:
    """Scaling down is a change as well."""
    running = await gateway(config=config_at(8000))
    async with following(running, Script([ONE, TWO], [TWO])) as backend:
        await until(lambda: len(backend.endpoints) == 1)
    changes = [(line["joined"], line["left"], line["endpoints"]) for line in running.log_lines("endpoints_changed")]
    assert changes[1:] == [([], ["http://10.0.0.1:8000"], 1)]
