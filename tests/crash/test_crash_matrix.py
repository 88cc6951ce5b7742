"""A seeded part of the crash suite: the right agent keeps every promise, every wrong one is caught.

`python -m tests.crash` runs the whole. The daemon itself is killed in tests/end_to_end/, the index in tests/memory/."""

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

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if build() is None:
        pytest.skip(
            "CRASH TESTS NOT RUN: there is no C compiler (apt-get install gcc libc6-dev); nothing here shows that crashes are survived"
        )


def crash(*options: str) -> dict:
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_PRELOAD", "PYTEST_XDIST_WORKER")}
    command = [sys.executable, "-m", "tests.crash", "--json", "--jobs", "1", "--seed", "20261122", *options]
    process = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert process.returncode in (0, 1), process.stderr[-3000:]
    return json.loads(process.stdout)


@pytest.mark.parametrize(
    ("layer", "bound", "at_least"),
    [
        ("kill", ("--sample", "20"), 60),
        ("power", ("--states", "700"), 600),
        ("tamper", ("--sample", "40"), 35),
        ("cut", ("--cuts", "2"), 0),
        ("strace", ("--calls", "2"), 1),
        ("backup", ("--sample", "20"), 10),
        ("beside", ("--sample", "6"), 3),
        ("fault", ("--sample", "18"), 15),
    ],
)
def test_no_layer_breaks_a_promise(layer, bound, at_least):
    if layer == "cut" and (why := cuts.missing()):
        pytest.skip(f"REAL POWER CUTS NOT MADE: {why}")
    if layer == "strace" and (why := calls.missing()):
        pytest.skip(f"SYSTEM CALLS NOT SWEPT WITH STRACE: {why}")
    result = crash("--layer", layer, "--agents", "Agent", *bound)["Agent"][layer]
    assert result["examples"] == []
    assert result["tried"] >= at_least


@pytest.mark.parametrize(
    ("layer", "bound"), [("kill", ("--sample", "60")), ("power", ("--states", "800")), ("tamper", ("--sample", "40"))]
)
def test_every_wrong_way_is_caught_by_its_layer(layer, bound):
    wrong = [agent.__name__ for agent in CONTROLS if agent.caught_by == layer]
    results = crash("--layer", layer, "--agents", *wrong, *bound)
    assert {name: results[name][layer]["failures"] > 0 for name in wrong} == dict.fromkeys(wrong, True)


def test_a_kill_cannot_see_a_missing_sync():
    """Why there are two layers: synchronous=NORMAL survives every kill."""
    kill = crash("--layer", "kill", "--agents", "Normal", "--sample", "20")["Normal"]["kill"]
    assert kill["tried"] == 20
    assert kill["failures"] == 0
