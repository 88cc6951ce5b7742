"""The anchor signed with the operator's key, named in perdure.toml and read from a credential."""

from __future__ import annotations

import base64

import pytest
from tests.daemon.stage import Stage

from perdure.errors import PerdureError
from perdure.state.anchor import anchors
from perdure.state.signing import Signer
from perdure.state.verification import verify

KEY = base64.b64encode(bytes(range(32))).decode()
CONFIG = 'timezone = "UTC"\n[memory]\nembedding = "none"\n[ledger]\nsigning_key = "LEDGER_KEY"\n'


async def test_the_daemon_signs_heads_and_records_its_public_key(tmp_path, monkeypatch):
    stage = Stage(tmp_path)
    stage.write("perdure.toml", CONFIG)
    monkeypatch.setenv("LEDGER_KEY", KEY)
    for _ in range(2):  # the key is recorded once
        async with stage.runtime() as runtime:
            state_dir = runtime.config.state_dir
    assert verify(state_dir).findings == []
    assert verify(state_dir, public_key=Signer(KEY).public_key).findings == []
    assert list(anchors(state_dir))[-1].signature
    other = base64.b64encode(bytes(32)).decode()
    assert not verify(state_dir, public_key=Signer(other).public_key).ok


async def test_without_its_key_the_daemon_does_not_go_on_unsigned(tmp_path):
    stage = Stage(tmp_path)
    stage.write("perdure.toml", CONFIG)
    with pytest.raises(PerdureError, match="LEDGER_KEY"):
        async with stage.runtime():
            pass
