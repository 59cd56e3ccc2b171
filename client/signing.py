"""A detached signature over a report: Ed25519 (RFC 8032) over its canonical bytes (RFC 8785).

    canonical        the bytes that are signed: the JSON value in its one canonical form
    sign, check      a signature of 64 bytes, and whether it is of this report and this key
    write_key_pair   a new private key, readable by its owner alone, and the public key beside it

White space, the order of names and how a character is escaped are no part of what is signed; every
name, text and number is. Text that JSON can be read from in two ways (a name twice in one object, a
number that is rounded as it is read) has no canonical form and is refused.

Keys are files of whoever signs. The service holds none, signs nothing, and imports nothing of this.
"""

import hashlib
import json
import math
import os
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from adap.client.client import ClientError, Json

SIGNATURE_BYTES = 64


class SigningError(ClientError):
    """A report, a key or a signature that is none."""


class SignatureMismatchError(ClientError):
    """The signature is not one of this report by this key."""


def canonical(text: bytes) -> bytes:
    """The canonical bytes of a report (RFC 8785), in UTF-8.

    Raises SigningError for text that is no report, or that could be read in two ways.
    """
    return rfc8785.dumps(read_report(text))


def read_report(text: bytes) -> Json:
    """The report of a file. Raises SigningError as `canonical` does."""
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_once,
            parse_float=_exact,
            parse_int=_exact_int,
            parse_constant=_refuse_constant,
        )
        rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:  # of the syntax, of UTF-8, of a number
        raise SigningError(
            f"Expected the JSON of a report, got text that is none: {error}. "
            "`adap report save -o report.json` saves one."
        ) from error
    if not isinstance(value, dict) or "version" not in value or "provenance" not in value:
        raise SigningError(
            "Expected the JSON of a report, with `version` and `provenance`, got another value: "
            "`adap report save -o report.json` saves one."
        )
    return value


def cautions(report: Json) -> list[str]:
    """What whoever signs this report should know: nothing of it stops a signature."""
    trust = report.get("trust")
    said = trust.get("verdict") if isinstance(trust, dict) else None
    found = []
    if said != "trustworthy":
        found.append("its audit was not checked" if said is None else f"trust in its audit: {said}")
    if not report.get("statement"):
        found.append("it states no purpose, tester or approver")
    return found


def sign(report: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature, 64 bytes. Raises SigningError for text that is no report."""
    return key.sign(canonical(report))


def check(report: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    """Raise SignatureMismatchError unless this is a signature of this report by this key.

    Raises SigningError for text that is no report, and for bytes that are no signature.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise SigningError(
            f"Expected a signature of {SIGNATURE_BYTES} bytes, as `adap report sign` writes it, "
            f"got {len(signature)} bytes."
        )
    try:
        key.verify(signature, canonical(report))
    except InvalidSignature as error:
        raise SignatureMismatchError(
            "The signature is not one of this report by this key: the report was changed after it "
            f"was signed, or another key than {fingerprint(key)} signed it."
        ) from error


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the public key (DER of SubjectPublicKeyInfo), to compare by telephone."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def private_key(pem: bytes, password: bytes | None = None) -> Ed25519PrivateKey:
    """The key of a PEM file. Raises SigningError for any other, and PasswordNeededError."""
    try:
        key = load_pem_private_key(pem, password)
    except TypeError as error:  # a password that is missing, or one too many
        if password is None:
            raise PasswordNeededError("Expected a password for this key, got none.") from error
        raise SigningError("Expected no password: this key has none.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if password is not None:
            raise SigningError("Expected the password of this key, got another.") from error
        raise SigningError(
            f"Expected a private Ed25519 key in PEM, got {_kind_of(pem)}. "
            "`adap report keygen KEY.pem` makes one, or `openssl genpkey -algorithm ed25519`."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"Expected an Ed25519 key, got {_name(key)}: sign with one of its own.")
    return key


def public_key(pem: bytes) -> Ed25519PublicKey:
    """The public key of a PEM file. Raises SigningError for any other."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"Expected a public Ed25519 key in PEM, got {_kind_of(pem)}. "
            "`openssl pkey -in KEY.pem -pubout` writes the public key of a private one."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"Expected an Ed25519 key, got {_name(key)}.")
    return key


def write_key_pair(private: Path) -> Path:
    """Make a key: the private one at this path, for its owner alone; returns the public one's.

    Raises SigningError where either file is there already, or cannot be written.
    """
    public = private.with_name(f"{private.stem}.pub.pem")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        if public.exists():
            raise FileExistsError(17, "File exists", str(public))
        _write_new(private, secret, mode=0o600)
        _write_new(public, shown, mode=0o644)
    except FileExistsError as error:
        raise SigningError(
            f"Expected a new file, and {error.filename} is there already: a key is never "
            "overwritten."
        ) from error
    except OSError as error:
        raise SigningError(f"The key cannot be written: {error}.") from error
    return public


class PasswordNeededError(SigningError):
    """The private key is encrypted."""


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """The mode holds from the first byte on, whatever the umask."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _once(pairs: list[tuple[str, Any]]) -> Json:
    """An object whose names are all different: of two, readers take the first or the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice, _ = Counter(names).most_common(1)[0]
        raise ValueError(f"the name {twice!r:.80} stands twice in one object")
    return value


def _exact(text: str) -> float:
    """A number written as itself: digits that are rounded away could be changed unseen."""
    value = float(text)
    try:
        exact = math.isfinite(value) and Decimal(text) == Decimal(repr(value))
    except InvalidOperation:  # an exponent of twenty digits
        exact = False
    if not exact:
        raise ValueError(
            f"the number {text:.40} is rounded as it is read, to {value!r}: no report is written "
            "so, and this one was changed"
        )
    return value


def _exact_int(text: str) -> int:
    return int(text)  # rfc8785 refuses what a double does not hold


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _kind_of(pem: bytes) -> str:
    """What a PEM file holds, by its first line."""
    first, *_ = pem.split(b"\n", 1)
    if first.startswith(b"-----BEGIN ") and len(first) < 80:
        return first.decode("ascii", "replace").strip().strip("-").removeprefix("BEGIN ").lower()
    return f"{len(pem)} bytes that are no PEM"


def _name(key: object) -> str:
    return type(key).__name__.removesuffix("Key").removesuffix("Private").removesuffix("Public")
