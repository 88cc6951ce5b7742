"""A state directory belongs to one workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.daemon.stage import CONFIG, Stage

from perdure.daemon.config import load_config
from perdure.daemon.opening import own_ledger
from perdure.errors import PerdureError


def workspace(directory: Path, state: str) -> Stage:
    stage = Stage(directory)
    stage.write("perdure.toml", f'state = "{state}"\n{CONFIG}')
    return stage


def test_a_second_workspace_is_refused_until_it_adopts_the_ledger(tmp_path: Path) -> None:
    one, other = (load_config(workspace(tmp_path / name, f"{tmp_path}/state").directory) for name in ("one", "other"))
    for _ in range(2):
        with own_ledger(one) as owned:
            head = owned.ledger.head.seq
    with pytest.raises(PerdureError) as refused, own_ledger(other):
        pass
    assert str(one.workspace) in refused.value.cause
    assert "perdure ledger adopt" in refused.value.hint
    with own_ledger(one) as owned:
        assert owned.ledger.head.seq == head  # nothing of the other's is in it
    with own_ledger(other, adopt=True):
        pass
    with own_ledger(other):
        pass
    with pytest.raises(PerdureError, match="belongs to"), own_ledger(one):
        pass


def test_a_workspace_that_is_moved_with_its_state_is_the_same(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "here")
    with own_ledger(load_config(stage.directory)) as owned:
        first = next(iter(owned.ledger.reader.events(limit=1))).hash
    shutil.move(stage.directory, tmp_path / "there")
    with own_ledger(load_config(tmp_path / "there")) as owned:
        assert next(iter(owned.ledger.reader.events(limit=1))).hash == first
