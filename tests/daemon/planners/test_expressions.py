"""`${…}`: holes are found whatever stands in them, values come back as they went in, and faults have a place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.daemon.planners import expressions
from perdure.daemon.planners.expressions import ExpressionFault, Hole, Missing

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\U0010fffe"), max_size=40)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_TEXT, inner, max_size=6),
    max_leaves=20,
)


@settings(deadline=None)
@given(_JSON)
def test_every_value_comes_back_as_it_went_in(value):
    found = expressions.evaluate("x", {"x": value})
    assert found == value
    assert type(found) is type(value)
    if value is not None:
        assert expressions.filled(["${x}"], {"x": value}) == [value]


@given(_TEXT)
def test_text_without_holes_is_itself(text):
    escaped = text.replace("${", "$${")
    assert expressions.filled(escaped, {}) == text or "$${" in text


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("${a}", ["a"]),
        ("x${a}y${b}z", ["a", "b"]),
        ("${ {'k': {'l': 1}} }", [" {'k': {'l': 1}} "]),
        ("${'}'} ${\"}\"}", ["'}'", '"}"']),
        ("${'\\'}'}", ["'\\'}'"]),
        ("${'''a } ' b'''}", ["'''a } ' b'''"]),
        ("${r'a\\'} }", ["r'a\\'"]),
        ("$${a} ${b}", ["b"]),
        ("{ ${args.ip} }", ["args.ip"]),
        ("$a $$b {c}", []),
    ],
)
def test_holes_are_found(text, sources):
    template = expressions.parse(text)
    assert [hole.source for hole in template.holes] == sources
    for hole in template.holes:
        assert text[hole.start :].startswith(hole.source)


@pytest.mark.parametrize("text", ["${", "${}", "${  }", "a ${b", "${'}", "${{}"])
def test_holes_that_are_empty_or_open_are_refused(text):
    with pytest.raises(ExpressionFault):
        expressions.parse(text)


def test_missing_last_leaves_the_entry_out_and_null_does_not():
    value = {"a": "${last.x}", "b": ["${last.x}", 1], "c": {"d": "${last.n}"}}
    assert expressions.filled(value, {"last": {"n": None}}) == {"b": [1], "c": {"d": None}}
    assert isinstance(expressions.filled("${last.a.b}", {"last": {"a": 1}}), Missing)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a.b[c].map(x, x + d)", {"a", "c", "d"}),
        ("slot.date + last['slot.time']", {"slot.date", "last"}),
        ("cel.bind(z, found, z + z)", {"found"}),
        ("has(a.b) ? c : 'd'", {"a", "c"}),
        ("'a' + \"b\"", set()),
        ("a + a + 1 == 'x' + 2", {"a"}),
    ],
)
def test_free_names_are_those_that_cel_would_miss(source, names):
    assert expressions.names(source) == names


@pytest.mark.parametrize("value", [2**64, float("nan"), float("inf"), "\U0010fffe"])
def test_what_json_or_cel_cannot_hold_is_a_fault_and_not_another_value(value):
    with pytest.raises(ExpressionFault):
        expressions.evaluate("x", {"x": value})


def test_deep_data_is_a_fault():
    value = 1
    for _ in range(200):
        value = [value]
    with pytest.raises(ExpressionFault, match="nested deeper"):
        expressions.evaluate("x", {"x": value})


def test_lone_surrogates_become_replacement_characters():
    assert expressions.evaluate("x", {"x": "a\ud800"}) == "a\ufffd"


@settings(deadline=None, max_examples=200)
@given(st.text("abx.{}[]()'\"\\ +-*/?:=<>!&|0123,${}\n\x00", max_size=30))
def test_no_source_breaks_out(source):
    for use in (
        lambda: expressions.evaluate(source, {"a": 1, "x": {"b": 2}}),
        lambda: expressions.filled(source, {"a": 1}),
    ):
        found = _faults(use)
        assert all(one.reason and one.line >= 1 and one.column >= 1 for one in found)


def _faults(use):
    try:
        use()
    except ExpressionFault as fault:
        return fault.faults
    return []


def test_parts_rebuild_the_text():
    template = expressions.parse("a ${b} c")
    assert template.parts == ("a ", Hole("b", 4), " c")
