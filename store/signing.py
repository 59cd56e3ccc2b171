"""The key that the secrets of webhooks are made from: a setting, or a file in the home.

No secret of a webhook is kept. It is made from this key and the webhook's id whenever something is
signed, so whoever reads the database, or a backup of it, can sign nothing.
"""

import base64
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from adap.store.home import WEBHOOK_KEY
from adap.store.settings import Settings

_BYTES = 32


@dataclass(frozen=True)
class SigningKey:
    """A key, and what is made from it by HMAC-SHA256."""

    value: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """What tells this key from others, and nothing of it: 16 hex digits."""
        return self._made(b"name").hex()[:16]

    def secret(self, webhook_id: str) -> str:
        """The secret of one webhook, in the form of standardwebhooks.com."""
        return f"whsec_{base64.b64encode(self._made(b'webhook:' + webhook_id.encode())).decode()}"

    def _made(self, purpose: bytes) -> bytes:
        return hmac.digest(self.value, purpose, hashlib.sha256)


def signing_key(settings: Settings) -> SigningKey | None:
    """The key of the settings, else that of the home, which is made at first use.

    None where the database is a server and no key is set: the processes that share it would each
    sign with a key of their own.
    """
    if settings.webhook_key is not None:
        return SigningKey(settings.webhook_key.get_secret_value().encode())
    if not settings.database.startswith("sqlite"):
        return None
    path = settings.home / WEBHOOK_KEY
    if not path.exists():
        _make(path)
    return SigningKey(path.read_bytes())


def _make(path: Path) -> None:
    """Write a new key that only its owner reads, whole from the start; the first of two wins."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.") as file:  # mode 0600
        file.write(secrets.token_hex(_BYTES).encode())
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return
