"""Sends webhooks: signed by the Standard Webhooks scheme, to allowed hosts and addresses only.

It runs in the API, as only the API has a way out of the cluster. Any number of processes may send:
each takes what it sends in the database.
"""

import asyncio
import ipaddress
import logging
import re
import socket
import ssl
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from functools import cache
from threading import Event, Thread

import httpx
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from adap.store import webhooks
from adap.store.database import Database
from adap.store.settings import entries
from adap.store.signing import SigningKey
from adap.store.webhooks import Sending

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
TIMEOUT_S = 10.0
AT_ONCE = 16
AT_ONCE_EACH = 2  # of one webhook: a receiver that is slow holds up these

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LAST_PORT = 65535

_VISIBLE = re.compile(r"[!-~]*")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")  # IPv4 in the last 32 bits, long deprecated
# Not of the internet, though not all versions of Python know; see the registries of IANA.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "::ffff:0:0:0/96",  # IPv4 as IPv6 within a network, RFC 2765
        "100:0:0:1::/64",  # a prefix for no destination, RFC 9780
        "64:ff9b:1::/48",  # NAT64 of a network's own, RFC 8215
        "100::/64",  # discarded, RFC 6666
        "2001::/23",  # protocols, Teredo among them, RFC 2928
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, RFC 3056: wraps an IPv4 address
        "3fff::/20",  # documentation, RFC 9637
        "5f00::/16",  # segment routing, RFC 9602
        "fec0::/10",  # site-local, RFC 3879
        "192.88.99.0/24",  # relays of 6to4
        "192.0.0.0/24",  # protocols, RFC 6890
    )
)


class RefusedError(Exception):
    """An address that nothing may be sent to."""


class Allowed:
    """The hosts and networks of the setting ADAP_WEBHOOK_HOSTS."""

    def __init__(self, setting: str | None) -> None:
        self.names: set[str] = set()
        self.networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in entries(setting):
            try:
                self.networks.append(ipaddress.ip_network(entry))
            except ValueError:
                self.names.add(entry.lower())

    def __bool__(self) -> bool:
        return bool(self.names or self.networks)

    def check(self, url: str) -> httpx.URL:
        """The URL, if its form and host may be sent to. Raises RefusedError."""
        if not _VISIBLE.fullmatch(url):
            raise RefusedError(
                "expected a URL of visible ASCII characters (other hosts as xn--…, other "
                f"characters of a path as %xx), got {url!a:.80}"
            )
        try:
            parsed = httpx.URL(url)
            _ = parsed.port, parsed.raw_host, parsed.host
        except (httpx.InvalidURL, ValueError) as error:
            raise RefusedError(f"expected a URL, got {url!r:.80}") from error
        if parsed.scheme not in ("https", "http") or not parsed.host:
            raise RefusedError(f"expected https://host/path, got {url!r:.80}")
        if parsed.port is not None and not 0 < parsed.port <= LAST_PORT:
            raise RefusedError(f"expected a port of 1 to {LAST_PORT}, got {parsed.port}")
        if parsed.userinfo or parsed.fragment:
            raise RefusedError("expected a URL without user name, password and fragment")
        if parsed.scheme == "http" and not self.networks:
            raise RefusedError(
                "expected https://, as what is not encrypted goes to listed addresses only and "
                "ADAP_WEBHOOK_HOSTS lists none"
            )
        literal = _literal(_host(parsed))
        if literal is None and _host(parsed) not in self.names:
            raise RefusedError(f"expected a host among ADAP_WEBHOOK_HOSTS, got {parsed.host!r:.80}")
        if literal is not None and not self._listed(literal):
            raise RefusedError(
                f"expected an address among ADAP_WEBHOOK_HOSTS, got {parsed.host!r:.80}"
            )
        return parsed

    def choose(self, url: httpx.URL, addresses: Sequence[Address]) -> Address:
        """Which of the addresses of a host to connect to. Raises RefusedError.

        Every one must be public or listed, or a name could be made to mean an inner machine; what
        is not encrypted goes to listed ones only.
        """
        for address in addresses:
            if not self._listed(address) and (url.scheme != "https" or not _is_public(address)):
                raise RefusedError(
                    f"expected a public address by https, or a listed one; {url.host} is {address}"
                )
        if not addresses:
            raise RefusedError(f"{url.host} has no address")
        return addresses[0]

    def _listed(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_public(address: Address) -> bool:
    """Whether an address is one of the internet, also where it carries another one inside."""
    inside: list[Address | None] = []
    if isinstance(address, ipaddress.IPv6Address):
        inside = [address.ipv4_mapped]
        if address in _NAT64 or address in _COMPATIBLE:
            inside.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return all(
        found.is_global
        and not found.is_multicast
        and not any(found in network for network in _SPECIAL)
        for found in (address, *inside)
        if found
    )


def send(sending: Sending, allowed: Allowed, key: SigningKey) -> tuple[int | None, str | None]:
    """One attempt: the status that the receiver answered, or why there is none.

    The name is resolved once and the connection goes to the address that was checked. Redirects are
    not followed, and what the receiver says is not read.
    """
    if sending.key != key.name:
        return None, (
            f"expected the key {sending.key}, which its secret is made from, got {key.name}: bring "
            "back ADAP_WEBHOOK_KEY (or webhook.key of the home), or add the webhook again"
        )
    try:
        url = allowed.check(sending.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        found = socket.getaddrinfo(_host(url), port, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        address = allowed.choose(url, addresses)
        # a receiver that answers a byte now and then never runs into a timeout of httpx
        return asyncio.run(asyncio.wait_for(_post(sending, url, address, key), TIMEOUT_S)), None
    except TimeoutError:
        return None, f"no answer within {TIMEOUT_S:g} s"
    except (RefusedError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        return None, str(error)[:300] or type(error).__name__
    except (ValueError, OverflowError) as error:  # what no check foresaw: tried again, and told
        log.error("webhook.unsendable", exc_info=error, extra={"delivery_id": sending.id})
        return None, f"nothing can be sent there: {type(error).__name__}"


async def _post(sending: Sending, url: httpx.URL, address: Address, key: SigningKey) -> int:
    at = datetime.now(UTC)
    signer = Webhook(key.secret(sending.webhook_id))
    headers = {
        "Host": url.netloc.decode(),
        "Content-Type": "application/json",
        "User-Agent": "adap",
        "webhook-id": sending.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signer.sign(sending.id, at, sending.payload),
    }
    async with (
        httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S, verify=_certificates()) as client,
        client.stream(
            "POST",
            url.copy_with(host=str(address)),
            content=sending.payload,
            headers=headers,
            extensions={"sni_hostname": _host(url)},
        ) as answer,
    ):
        return answer.status_code


@cache
def _certificates() -> ssl.SSLContext:
    """The authorities that are trusted; to read them takes longer than to send."""
    return httpx.create_ssl_context(trust_env=False)


def _host(url: httpx.URL) -> str:
    """The name as it is resolved and certified."""
    return url.raw_host.decode().strip("[]").lower()


class Deliveries:
    """Sends what is due, from a thread of its own, until it is stopped."""

    def __init__(self, database: Database, allowed: Allowed, key: SigningKey | None) -> None:
        self._database = database
        self._allowed = allowed
        self._key = key
        self._stopping = Event()
        self._thread = Thread(target=self._run, args=(key,), name="deliveries", daemon=True)

    def start(self) -> None:
        """Begin, if anything may be sent to at all, and there is a key to sign with."""
        if self._key is not None:
            self._thread.start()
        elif self._allowed:
            log.warning(
                "webhooks are off: ADAP_WEBHOOK_KEY, which must be set beside a database "
                "server, is not"
            )

    def stop(self) -> None:
        """End after what is being sent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self, key: SigningKey) -> None:
        flying: dict[Future[None], str] = {}  # each with the webhook that it goes to
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="delivery") as pool:
            while not self._stopping.is_set():
                try:
                    taken = self._take(flying.values())
                except SQLAlchemyError:
                    log.exception("deliveries.failed")  # a database that is away comes back
                    taken = []
                flying |= {pool.submit(self._deliver, one, key): one.webhook_id for one in taken}
                if taken:
                    continue  # there may be a second one for the same webhook
                if flying:
                    for sent in wait(flying, LOOK_EVERY_S, FIRST_COMPLETED).done:
                        del flying[sent]
                        if error := sent.exception():  # it is due again when its lease has ended
                            log.error("deliveries.failed", exc_info=error)
                else:
                    self._stopping.wait(LOOK_EVERY_S)

    def _take(self, flying: Collection[str]) -> list[Sending]:
        """Take what is due, as far as there is room beside what is being sent."""
        room = AT_ONCE - len(flying)
        if not room:
            return []
        busy = [webhook for webhook, count in Counter(flying).items() if count >= AT_ONCE_EACH]
        with self._database.reading() as session:
            due = webhooks.due(session, limit=room, besides=busy)
        if not due:
            return []
        with self._database.writing() as session:
            taken = [webhooks.take(session, delivery_id) for delivery_id in due]
        return [sending for sending in taken if sending is not None]

    def _deliver(self, sending: Sending, key: SigningKey) -> None:
        answered, error = send(sending, self._allowed, key)
        with self._database.writing() as session:
            webhooks.settle(session, sending, answered=answered, error=error)
        log.info(
            "webhook.sent",
            extra={
                "delivery_id": sending.id,
                "attempt": sending.attempt,
                "answered": answered,
                "error": error,
            },
        )
