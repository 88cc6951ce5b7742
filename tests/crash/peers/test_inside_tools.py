"""Perdure's own command line killed inside every tool call, before and after the effect; the whole comparison is
`make crash-peers`."""

import argparse
from collections import Counter

import pytest
from tests.crash.shim import build

from .__main__ import measure


def test_killed_inside_a_tool_nothing_is_lost_repeated_or_left_lying(tmp_path):
    library = build()
    if library is None:
        pytest.skip("no C compiler for the shim")
    tally = measure("perdure", library, tmp_path, argparse.Namespace(sample=0, seed=1, keep=True))
    # read, idempotent and probeable go on by themselves; once asks, whether it happened or not
    assert tally.counts == Counter(crashed=8, recovered=6, asked=2), tally.examples
