"""Callers who have shown no key yet: how much of the service an address may take before that.

Both limits are of one process. What watches the service is asked from anywhere and never refused:
it costs little, see `adap.api.routes.health`.
"""

import ipaddress
import time
from collections.abc import Callable

from starlette.types import Scope

from adap.api.deps import CALLER
from adap.api.quotas import Rates

WATCHING = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
CONNECTIONS = 128  # of one address, on which nobody has shown a key yet
TENANT_CONNECTIONS = 1024  # of one tenant, from wherever
GOOD_KEPT_S = 3600.0  # how long a key that was good lets a request pass to be checked
MOST_GOOD = 4096


class Strangers:
    """The requests of each address that turned out to be nobody's."""

    def __init__(self, per_s: float | None) -> None:
        self._rates = Rates(per_s)
        self._good: dict[bytes, float] = {}  # when this Authorization was good

    def refuses(self, scope: Scope) -> bool:
        """Whether an address has had its share; not asked of who brings a key that was good."""
        if scope["path"] in WATCHING or self._rates.left(address_of(scope)):
            return False
        good_at = self._good.get(_authorization(scope), float("-inf"))
        return time.monotonic() - good_at > GOOD_KEPT_S

    def settle(self, scope: Scope) -> None:
        """Count a request that was answered, unless somebody was let in."""
        if CALLER not in scope:
            if scope["path"] not in WATCHING:
                self._rates.count(address_of(scope))
            return
        authorization = _authorization(scope)
        if authorization:
            if len(self._good) >= MOST_GOOD:
                self._good.clear()
            self._good[authorization] = time.monotonic()


class Connections:
    """The connections of each address, and once they have shown a key of each tenant.

    One too many ends the one that has shown something longest ago: whoever has just come and sends
    a request is served, however many were opened before and say nothing.
    """

    def __init__(self, most: int = CONNECTIONS, most_of_tenant: int = TENANT_CONNECTIONS) -> None:
        self._of_address = _Owned(most)
        self._of_tenant = _Owned(most_of_tenant)

    def add(self, connection: object, address: str, end: Callable[[], None]) -> None:
        """Count a connection that was made; `end` closes it."""
        self._of_address.add(connection, address, end)

    def prove(self, connection: object, tenant: str, end: Callable[[], None]) -> None:
        """It has shown a key of this tenant's, now or again."""
        self.forget(connection)
        self._of_tenant.add(connection, tenant, end)

    def forget(self, connection: object) -> None:
        """It is closed."""
        self._of_address.forget(connection)
        self._of_tenant.forget(connection)


class _Owned:
    """The connections of each owner, the oldest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._owners: dict[object, str] = {}
        self._open: dict[str, dict[object, Callable[[], None]]] = {}

    def add(self, connection: object, owner: str, end: Callable[[], None]) -> None:
        self._owners[connection] = owner
        owned = self._open.setdefault(owner, {})
        owned[connection] = end
        if len(owned) > self._most:
            oldest = next(iter(owned))
            end_oldest = owned[oldest]
            self.forget(oldest)
            end_oldest()

    def forget(self, connection: object) -> None:
        owner = self._owners.pop(connection, None)
        if owner is None:
            return
        self._open[owner].pop(connection)
        if not self._open[owner]:
            del self._open[owner]


def address_of(scope: Scope) -> str:
    """The address of the peer; of IPv6 the network of a customer, who has them all."""
    client = scope.get("client")
    return network_of(client[0] if client else "")


def network_of(host: str) -> str:
    """What of an address is one caller's."""
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host


def _authorization(scope: Scope) -> bytes:
    """The header that a key came in."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    return headers.get(b"authorization") or headers.get(b"cookie", b"")
