"""Signed heads: a past made up without the key is told from the true one."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from perdure.errors import PerdureError
from perdure.state import events as e
from perdure.state.anchor import anchors
from perdure.state.ledger import Ledger
from perdure.state.signing import KIND, Signer, checker
from perdure.state.verification import verify

KEY, OTHER = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))


@pytest.fixture
def signed(tmp_path):
    signer, heard = Signer(KEY), []
    Ledger.create(tmp_path / "ledger.db", now=lambda: 1, workspace="w").close()
    with Ledger.open(tmp_path / "ledger.db", now=lambda: 1, fence=1, sign=signer, announce=heard.append) as ledger:
        ledger.commit(e.ConfigurationLoaded(kind=KIND, digest=signer.public_key, files={}))
        ledger.commit(e.AlarmRaised(code="x"))
    assert heard == [line for line in anchors(tmp_path) if line.signature]
    return tmp_path


def findings(directory, **options):
    return [(finding.kind, finding.seq) for finding in verify(directory, **options).findings]


def test_signed_heads_verify_with_the_key_that_the_ledger_records_or_that_is_given(signed):
    assert [line.seq for line in anchors(signed)] == [1, 2, 3]
    assert findings(signed) == []
    assert findings(signed, public_key=Signer(KEY).public_key) == []


def test_another_key_does_not_fit(signed):
    expected = [("key-differs", 0), ("not-signed", 1), ("signature-wrong", 2), ("signature-wrong", 3)]
    assert findings(signed, public_key=Signer(OTHER).public_key) == expected


def test_a_head_without_signature_or_with_a_made_up_one_is_found(signed):
    with Ledger.open(signed / "ledger.db", now=lambda: 1, fence=1) as ledger:  # a writer without the key
        ledger.commit(e.AlarmRaised(code="y"))
    assert findings(signed) == [("not-signed", 4)]
    with Ledger.open(signed / "ledger.db", now=lambda: 1, fence=1, sign=Signer(OTHER)) as ledger:
        ledger.commit(e.AlarmRaised(code="z"))
    assert findings(signed) == [("not-signed", 4), ("signature-wrong", 5)]


def test_keys_may_be_pem_and_what_is_no_key_is_refused_without_being_shown():
    key = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert Signer(pem).public_key == Signer(KEY).public_key
    assert checker(public.decode())(b"text", Signer(KEY)(b"text"))
    with pytest.raises(PerdureError, match="openssl genpkey") as refused:
        Signer("c2VjcmV0")
    assert "c2VjcmV0" not in str(refused.value)
