"""The client to be awaited: `from client.aio import AsyncClient`."""

from adap.client.aio.client import AsyncClient

__all__ = ["AsyncClient"]
