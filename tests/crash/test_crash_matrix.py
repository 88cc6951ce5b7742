"""A seeded part of the crash suite: the right agent keeps every promise, every wrong one is caught.

`python -m tests.crash` runs the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import calls, cuts
from .agents import CONTROLS
from .shim import build

pytestmark = pytest.mark.timeout(300)  # of wall time on a machine that does other things as well
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if build() is None:
        pytest.skip(
            "CRASH TESTS NOT RUN: there is no C compiler (apt-get install gcc libc6-dev); nothing here shows that crashes are survived"
        )


def crash(*options: str) -> dict:
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "PYTEST_XDIST_WORKER")}
    command = [sys.executable, "-m", "tests.crash", "--json", "--seed", "20261122", *options]
    process = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert process.returncode in (0, 1), process.stderr[-3000:]
    return json.loads(process.stdout)


def test_no_crash_or_disk_fault_breaks_a_promise():
    kill = crash("--layer", "kill", "--agents", "Agent", "--sample", "50")["Agent"]["kill"]
    assert kill["examples"] == []
    assert kill["tried"] >= 110


def test_no_power_cut_breaks_a_promise():
    power = crash("--layer", "power", "--agents", "Agent", "--states", "900")["Agent"]["power"]
    assert power["examples"] == []
    assert power["tried"] >= 800


@pytest.mark.parametrize("control", CONTROLS, ids=lambda agent: agent.__name__)
def test_every_wrong_way_is_caught_by_its_layer(control):
    options = ["--sample", "60"] if control.caught_by == "kill" else ["--states", "2000"]
    result = crash("--layer", control.caught_by, "--agents", control.__name__, *options)[control.__name__]
    assert result[control.caught_by]["failures"] >= 1


def test_a_kill_cannot_see_a_missing_sync():
    """Why there are two layers: synchronous=NORMAL survives every kill."""
    kill = crash("--layer", "kill", "--agents", "Normal", "--sample", "25")["Normal"]["kill"]
    assert kill["tried"] == 25
    assert kill["failures"] == 0


@pytest.mark.parametrize(
    ("layer", "bound"), [("cut", ("--cuts", "4")), ("strace", ("--calls", "4")), ("daemon", ("--kills", "1"))]
)
def test_the_outer_layers_agree(layer, bound):
    if layer == "cut" and (why := cuts.missing()):
        pytest.skip(f"REAL POWER CUTS NOT MADE: {why}")
    if layer == "strace" and (why := calls.missing()):
        pytest.skip(f"SYSTEM CALLS NOT SWEPT WITH STRACE: {why}")
    result = crash("--layer", layer, "--agents", "Agent", *bound)["Agent"][layer]
    assert result["examples"] == []
