"""API keys: shown once, stored as a hash, valid until they expire or are revoked.

A key is 256 random bits, so a plain hash of it cannot be reversed and needs no slow hashing.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import String, cast, exists, or_, select, update
from sqlalchemy.orm import Session

from adap.store.database import now
from adap.store.ids import new_id
from adap.store.tables import LOCAL_TENANT, ApiKeyRow

Scope = Literal["read", "write", "admin"]

PREFIX = "adap_"
MIN_KEY_CHARACTERS = 32


def create(
    session: Session,
    *,
    name: str,
    scopes: Sequence[Scope],
    tenant: str = LOCAL_TENANT,
    expires_in_s: float | None = None,
    key: str | None = None,
) -> tuple[ApiKeyRow, str]:
    """Create a key; returns its row and the key itself, which is not kept."""
    key = key or PREFIX + secrets.token_urlsafe(32)
    row = ApiKeyRow(
        id=new_id("key"),
        name=name,
        scopes=list(scopes),
        tenant=tenant,
        sha256=_hash(key),
        expires_at=None if expires_in_s is None else now() + expires_in_s,
    )
    session.add(row)
    session.flush()
    return row, key


def find(session: Session, key: str) -> ApiKeyRow | None:
    """The row of a key that may be used now."""
    return session.scalar(select(ApiKeyRow).where(ApiKeyRow.sha256 == _hash(key), *_VALID))


def any_made(session: Session) -> bool:
    """Whether there ever was a key; until then the service serves this machine only.

    A key that was revoked or has expired counts, or everybody would be let in when the last one
    ends.
    """
    return bool(session.scalar(select(exists().where(ApiKeyRow.id.is_not(None)))))


def lasting_admin(session: Session) -> bool:
    """Whether a valid key of the scope admin never expires."""
    return any(expires_at is None for _, expires_at in _admins(session))


def locks_out(session: Session, key_id: str) -> bool:
    """Whether without this key nobody could administer the service, now or in the end.

    Other transactions that ask wait for this one, so that two keys cannot revoke each other.
    """
    admins = dict(_admins(session))
    if key_id not in admins:
        return False
    lasting = admins.pop(key_id) is None
    return not admins or (lasting and None not in admins.values())


def _admins(session: Session) -> list[tuple[str, float | None]]:
    """The id and the expiry of each valid admin key, locked."""
    admin = cast(ApiKeyRow.scopes, String).contains('"admin"')
    query = select(ApiKeyRow.id, ApiKeyRow.expires_at).where(admin, *_VALID)
    locked = query.order_by(ApiKeyRow.id).with_for_update()
    return [(key_id, expires_at) for key_id, expires_at in session.execute(locked)]


def revoke(session: Session, key_id: str, *, tenant: str | None = None) -> bool:
    """End a key at once; False if there is none of this id that is still valid."""
    where = [ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None)]
    if tenant is not None:
        where.append(ApiKeyRow.tenant == tenant)
    changed = session.execute(
        update(ApiKeyRow).where(*where).values(revoked_at=now()).returning(ApiKeyRow.id)
    ).first()
    return changed is not None


def ensure(session: Session, key: str) -> bool:
    """Make sure that this admin key exists; True if it was created now.

    Raises ValueError for a key that could be guessed.
    """
    if len(key) < MIN_KEY_CHARACTERS:
        raise ValueError(
            f"expected an API key of at least {MIN_KEY_CHARACTERS} characters, got {len(key)}; "
            "`openssl rand -hex 32` makes a good one"
        )
    if session.scalar(select(exists().where(ApiKeyRow.sha256 == _hash(key)))):
        return False
    create(session, name="bootstrap", scopes=["read", "write", "admin"], key=key)
    return True


_VALID = (
    ApiKeyRow.revoked_at.is_(None),
    or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now()),
)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
