"""Ed25519 signatures over anchored heads: who can write the file but has not the key cannot make up a ledger's past."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from perdure.errors import PerdureError

KIND: Final = "signing-key"  # of the configuration.loaded event that records the public key
_PREFIX: Final = "ed25519:"


class Signer:
    """Signs with one private key: PEM (PKCS 8), or its 32 bytes in base64."""

    def __init__(self, key: str) -> None:
        self._key = _private(key)
        self.public_key = _PREFIX + _base64(
            self._key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    def __call__(self, data: bytes) -> str:
        """`ed25519:` and the signature in base64."""
        return _PREFIX + _base64(self._key.sign(data))


def named(public_key: str) -> str:
    """The key as `Signer.public_key` gives it. Raises PerdureError."""
    raw = _public(public_key).public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return _PREFIX + _base64(raw)


def checker(public_key: str) -> Callable[[bytes, str], bool]:
    """Tells whether a signature is this key's. `public_key` is as `Signer.public_key` gives it, or PEM. Raises PerdureError."""
    key = _public(public_key)

    def check(data: bytes, signature: str) -> bool:
        try:
            key.verify(base64.b64decode(signature.removeprefix(_PREFIX), validate=True), data)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return signature.startswith(_PREFIX)

    return check


def _private(text: str) -> Ed25519PrivateKey:
    try:
        if "BEGIN" in text:
            key = serialization.load_pem_private_key(text.encode(), password=None)
        else:
            key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(text.strip(), validate=True))
    except (ValueError, TypeError, binascii.Error):
        key = None  # no part of a secret goes into a message
    if not isinstance(key, Ed25519PrivateKey):
        raise PerdureError(
            "use", "the signing key", "it is no Ed25519 private key", "Make one: `openssl genpkey -algorithm ed25519`"
        )
    return key


def _public(text: str) -> Ed25519PublicKey:
    try:
        if "BEGIN" in text:
            key = serialization.load_pem_public_key(text.encode())
        else:
            raw = base64.b64decode(text.strip().removeprefix(_PREFIX), validate=True)
            key = Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, TypeError, binascii.Error) as error:
        raise _no_public_key() from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_public_key()
    return key


def _no_public_key() -> PerdureError:
    hint = "Give `ed25519:` and its base64, or PEM: `openssl pkey -in KEY -pubout`"
    return PerdureError("use", "the public key", "it is no Ed25519 public key", hint)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
