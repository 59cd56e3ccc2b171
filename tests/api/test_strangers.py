"""Connections over real sockets: of whom so many stay, which one goes, and what ends one."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import h11
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from adap.api.arriving import MOST_LINES, Reader, patient_protocol
from adap.api.deps import END, PROVEN
from adap.api.main import create_app
from adap.api.strangers import Connections
from adap.api.wellformed import fault_of
from adap.store.settings import Settings
from tests.api.conftest import wait_for

MOST, MOST_OF_TENANT = 2, 3


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Whose path says so has shown a key of that tenant's; the answer to a whole body is empty."""
    while (await receive()).get("more_body", False):
        pass
    tenant = scope["path"].strip("/")
    if tenant == "ended":
        scope[END]()
    elif tenant != "nobody":
        scope[PROVEN](tenant)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextmanager
def listening(folder: Path) -> Iterator[uvicorn.Server]:
    """A server with the protocol of the service and low limits."""
    overload = create_app(Settings(home=folder)).overload
    connections = Connections(MOST, MOST_OF_TENANT)
    http = patient_protocol(600, overload=overload, connections=connections)
    server = uvicorn.Server(
        uvicorn.Config(answer, port=0, http=http, lifespan="off", log_config=None)
    )
    thread = Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, because="it listens", timeout_s=60)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """A connection of somebody's from one of this machine's addresses."""

    def __init__(self, port: int, address: str) -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), source_address=(address, 0), timeout=60
        )

    def ask(self, whose: str) -> bool:
        """Whether a request is answered."""
        try:
            self.socket.sendall(f"GET /{whose} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            return self.socket.recv(4096).startswith(b"HTTP/1.1 204")
        except OSError:
            return False

    def rest(self) -> bytes:
        """All that still comes, until the service hangs up."""
        found = b""
        with suppress(ConnectionResetError):
            while data := self.socket.recv(65536):
                found += data
        return found

    def ended(self) -> bool:
        """Whether the service has hung up, which this waits for."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[uvicorn.Server]:
    with listening(tmp_path) as server:
        yield server


@pytest.fixture
def port(server: uvicorn.Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(stack: ExitStack, port: int, address: str) -> Client:
    client = Client(port, address)
    stack.callback(client.socket.close)
    return client


def test_one_connection_too_many_of_an_address_ends_its_oldest(port: int, stack: ExitStack) -> None:
    elsewhere = connect(stack, port, "127.0.0.3")
    silent = connect(stack, port, "127.0.0.2")
    assert elsewhere.ask("nobody")
    second, third = (connect(stack, port, "127.0.0.2") for _ in range(2))

    assert silent.ended()
    assert all(each.ask("nobody") for each in (second, third, elsewhere))


def test_one_connection_too_many_of_a_tenant_ends_the_one_that_asked_longest_ago(
    port: int, stack: ExitStack
) -> None:
    other = connect(stack, port, "127.0.0.9")
    assert other.ask("b")
    mine = []
    for number in range(MOST_OF_TENANT):  # from as many addresses, as nobody's are counted there
        mine.append(connect(stack, port, f"127.0.0.{2 + number}"))
        assert mine[-1].ask("a")
    assert mine[0].ask("a")  # so that another has asked longest ago

    newest = connect(stack, port, "127.0.0.8")
    assert newest.ask("a")

    assert mine[1].ended()
    assert all(each.ask("a") for each in (mine[0], mine[2], newest))
    assert other.ask("b")


def test_a_connection_that_was_closed_is_counted_no_more(
    server: uvicorn.Server, port: int, stack: ExitStack
) -> None:
    kept = connect(stack, port, "127.0.0.2")
    assert kept.ask("a")
    for _ in range(2 * MOST_OF_TENANT):
        client = Client(port, "127.0.0.3")
        assert client.ask("a")
        client.socket.close()
        connections = server.server_state.connections
        wait_for(lambda of=connections: len(of) == 1, because="its end is noticed", timeout_s=60)

    assert kept.ask("a")


SMUGGLED = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
ODD_HEADS = {
    "a line feed alone": b"X: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a line feed alone at the end": b"X: a\r\n\n",
    "a continued line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a line continued by a tab": b"X: a\r\n\tb\r\n\r\n",
    "some more than are taken": b"a: b\r\n" * MOST_LINES + b"\r\n",
}


@pytest.mark.parametrize("name", ODD_HEADS)
@pytest.mark.parametrize("pieces", [1, 7])
def test_a_head_that_others_read_otherwise_or_not_at_all_ends_its_connection(
    port: int, stack: ExitStack, name: str, pieces: int
) -> None:
    client = connect(stack, port, "127.0.0.2")
    sent = b"POST /a HTTP/1.1\r\nHost: a\r\n" + ODD_HEADS[name] + SMUGGLED
    size = -(-len(sent) // pieces)
    with suppress(OSError):  # it hangs up as soon as it has seen enough
        for start in range(0, len(sent), size):
            client.socket.sendall(sent[start : start + size])

    answer = client.rest()

    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert connect(stack, port, "127.0.0.3").ask("a")


def test_heads_of_many_headers_and_of_some_after_a_body_are_taken(
    port: int, stack: ExitStack
) -> None:
    client = connect(stack, port, "127.0.0.2")
    many = b"a: b\r\n" * (MOST_LINES - 10)

    client.socket.sendall(
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + many + b"\r\n"
        b"3\r\na\nb\r\n0\r\n" + many + b"\r\n"
    )

    assert client.socket.recv(4096).startswith(b"HTTP/1.1 204")
    assert client.ask("a")


AFTER_BODIES = {
    "very many lines": b"a:\r\n" * (MOST_LINES + 20) + b"\r\n",
    "a line feed alone": b"X: a\n\r\n",
    "a line feed alone at once": b"\n",
    "a continued line": b"X: a\r\n b\r\n\r\n",
}


@pytest.mark.parametrize("name", AFTER_BODIES)
@pytest.mark.parametrize("apart", [True, False])
def test_very_many_or_odd_lines_after_a_body_end_its_connection(
    port: int, stack: ExitStack, name: str, *, apart: bool
) -> None:
    client = connect(stack, port, "127.0.0.2")
    body = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    client.socket.sendall(body)
    assert client.socket.recv(4096).startswith(b"HTTP/1.1 100 ")
    with suppress(OSError):
        if apart:
            client.socket.sendall(b"1\r\na\r\n0\r\n")
            time.sleep(0.05)  # of no matter to a right answer; a wrong one may need it
            client.socket.sendall(AFTER_BODIES[name] + SMUGGLED)
        else:
            client.socket.sendall(b"1\r\na\r\n0\r\n" + AFTER_BODIES[name] + SMUGGLED)

    assert b"HTTP/1.1 204" not in client.rest()
    assert connect(stack, port, "127.0.0.3").ask("a")


@pytest.mark.parametrize("start", [b"", b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"])
def test_as_many_lines_as_are_taken_cost_little_more_than_h11_where_each_byte_comes_alone(
    start: bytes,
) -> None:
    lines = (b"a: " + b"b" * 200 + b"\r\n") * (MOST_LINES - 1)
    sent = b"POST / HTTP/1.1\r\nHost: a\r\n" + start + lines + b"\r\n"

    def cpu_seconds(reader: h11.Connection) -> float:
        begun, events = time.process_time(), []
        for place in range(len(sent)):
            reader.receive_data(sent[place : place + 1])
            while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                events.append(type(event))
        assert (events[0], events[-1]) == (h11.Request, h11.EndOfMessage)
        return time.process_time() - begun

    theirs = min(cpu_seconds(h11.Connection(h11.SERVER, 2**16)) for _ in range(3))
    assert min(cpu_seconds(Reader(2**16)) for _ in range(3)) < 10 * theirs


def test_the_second_of_two_requests_in_a_packet_is_counted_to_its_tenant(
    port: int, stack: ExitStack
) -> None:
    mine = connect(stack, port, "127.0.0.2")
    mine.socket.sendall(b"GET /nobody HTTP/1.1\r\nHost: a\r\n\r\n" + SMUGGLED)
    answers = b""
    while answers.count(b"HTTP/1.1 204") < 2:
        answers += (got := mine.socket.recv(4096))
        assert got
        assert b"HTTP/1.1 5" not in answers
    strangers = [connect(stack, port, "127.0.0.2") for _ in range(MOST)]

    assert all(each.ask("nobody") for each in strangers)
    assert mine.ask("a")


def test_the_second_of_two_requests_in_a_packet_can_be_hung_up_on(
    port: int, stack: ExitStack
) -> None:
    client = connect(stack, port, "127.0.0.2")

    client.socket.sendall(
        b"GET /nobody HTTP/1.1\r\nHost: a\r\n\r\nGET /ended HTTP/1.1\r\nHost: a\r\n\r\n"
    )

    assert client.rest().count(b"HTTP/1.1 ") <= 1


def test_a_version_that_is_not_spoken_here_is_refused() -> None:
    scope = {"type": "http", "http_version": "2.0", "headers": [(b"host", b"a")]}
    assert fault_of(scope) == "Expected a request of HTTP/1.1, got one of HTTP/2.0."
    assert fault_of({**scope, "http_version": "1.1"}) is None
