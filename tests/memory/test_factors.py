"""The factor of a model that no provider has counted for yet is the safe one of its family."""

import pytest

from perdure.memory.factors import SAFE_FACTOR, family, safe_factor


def test_families():
    assert {family(name) for name in ("anthropic:claude-sonnet-4-5", "claude-3-haiku", "proxy/claude-opus")} == {
        "claude"
    }
    assert family("gpt-4o") == "gpt"


@pytest.mark.parametrize(
    ("model", "factor"),
    [("claude-sonnet-4-5", 1.30), ("gpt-5", 1.05), ("o3-mini", 1.05), ("qwen3", SAFE_FACTOR), ("7b", SAFE_FACTOR)],
)
def test_what_tiktoken_undercounts_is_made_up_for(model, factor):
    assert safe_factor(model) == factor
