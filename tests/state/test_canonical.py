"""Canonical JSON: the fast path and the reference encoder agree; what has no canonical form is refused or made presentable."""

from __future__ import annotations

import json
import math
import os
from types import MappingProxyType

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from perdure.state import canonical as module
from perdure.state.canonical import INTEGER_MAX, CannotEncode, canonical, canonical_object, digest, presentable

text = st.text(st.characters(codec="utf-8"))
numbers = st.integers(-INTEGER_MAX, INTEGER_MAX) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_every_value_has_the_bytes_of_the_reference_encoder(value):
    assert canonical(value) == rfc8785.dumps(value)


@given(st.dictionaries(st.sampled_from(["action", "at", "error", "rules", "seq"]), values, max_size=5))
def test_an_object_of_sorted_names_is_written_and_read_back_like_any_other(value):
    names = sorted(value)
    held, written = canonical_object(names, [value[name] for name in names])
    said = {name: item for name, item in value.items() if item is not None}
    assert written.encode() == rfc8785.dumps(said)
    assert held == json.loads(written)


@given(values)
def test_without_the_accelerator_the_bytes_are_the_same(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._json, "c_make_encoder", None)
        patch.setattr(module, "_written", module._writer())
        assert canonical(value) == rfc8785.dumps(value)


def exact(value) -> bool:
    """Whether all whole floats are below 2^53: larger ones read back as integers, which are refused."""
    match value:
        case float():
            return abs(value) <= INTEGER_MAX or not value.is_integer() or "e" in canonical(value).decode()
        case list():
            return all(map(exact, value))
        case dict():
            return all(map(exact, value.values()))
    return True


@given(values.filter(exact))
def test_reading_back_and_encoding_again_changes_nothing(value):
    once = canonical(value)
    assert canonical(json.loads(once)) == once


@given(st.dictionaries(text, values, max_size=5))
def test_key_order_does_not_matter(value):
    assert digest(dict(reversed(value.items()))) == digest(value)


@pytest.mark.parametrize(
    "number", [1.0, -0.0, 1e15, 1e16, 1e20, 1e21, 1e-4, 9.999e-5, 1e-6, 1e-7, 5e-324, 0.1, 333333333.3333333, -1.5e300]
)
def test_floats_are_written_as_ecmascript_does(number):
    assert canonical([number]) == rfc8785.dumps([number])


def test_mappings_and_tuples_are_objects_and_arrays():
    assert canonical(MappingProxyType({"b": (1, 2), "a": None})) == b'{"a":null,"b":[1,2]}'


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 2**53, "\ud800", {1: "x"}, {"é": {2: 3}}, b"x", object(), {"é": "\udfff"}]
)
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(CannotEncode, match="cannot encode"):
        canonical({"value": value})
    with pytest.raises(CannotEncode, match="cannot encode"):
        canonical_object(["value"], [value])


def test_endless_nesting_is_refused_not_a_crash():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(CannotEncode, match="nested too deeply"):
        canonical(value)


hostile = st.recursive(
    st.none() | st.floats() | st.integers() | st.binary() | st.text() | st.text(st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(hostile)
def test_whatever_the_world_says_becomes_recordable(value):
    recorded = presentable(value)
    assert json.loads(canonical(recorded), parse_int=float) == recorded  # as RFC 8785 reads numbers


@given(values)
def test_what_is_fine_stays_as_it_is(value):
    assert canonical(presentable(value)) == canonical(value)


def test_names_that_are_not_utf8_keep_their_bytes():
    assert presentable(os.fsdecode(b"caf\xe9")) == {"base64": "Y2Fm6Q=="}
    assert presentable(2**63) == "9223372036854775808"
