"""What a column is: inference of kinds, the user's overrides, JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeimpute.frames.schema import Column, Kind, Schema, infer_kind, is_long_tailed, resolve_kinds

names = st.one_of(st.text(), st.integers(), st.tuples(st.text(), st.integers()))
categories = st.lists(st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False)), max_size=4).map(
    tuple
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
columns = st.builds(
    Column,
    names,
    st.sampled_from(Kind),
    st.text(),
    categories,
    numbers,
    numbers,
    numbers,
    numbers,
    st.booleans(),
    numbers,
)


@given(st.builds(Schema, st.lists(columns, max_size=3).map(tuple), st.sampled_from(["pandas", "numpy"])))
def test_schema_survives_json_text(schema):
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_schema_lists_names_and_kinds():
    schema = Schema((Column("a", Kind.NUMERIC, "float64"), Column("b", Kind.BOOLEAN, "bool", (False, True))), "pandas")
    assert schema.names == ("a", "b")
    assert schema.kinds == (Kind.NUMERIC, Kind.BOOLEAN)
    assert [column.n_categories for column in schema.columns] == [0, 2]
    assert len(schema) == 2


@pytest.mark.parametrize(
    ("values", "promised", "kind"),
    [
        (np.array([0.5, -2.0]), {}, Kind.NUMERIC),
        (np.array([0.0, 7.0]), {}, Kind.NUMERIC),
        (np.array([0.0, 7.0]), {"integer": True}, Kind.COUNT),
        (np.array([-1.0, 7.0]), {"integer": True}, Kind.NUMERIC),
        (np.array([]), {"integer": True}, Kind.NUMERIC),
        (np.array([0.0, 1.0]), {"boolean": True}, Kind.BOOLEAN),
        (np.array(["a"], dtype=object), {}, Kind.CATEGORICAL),
        (np.array(["a"], dtype=object), {"ordered": True}, Kind.ORDINAL),
        (np.array([1], dtype="m8[us]"), {}, Kind.DATETIME),
        (np.exp(np.random.default_rng(0).normal(0, 2, 500)), {}, Kind.POSITIVE),
    ],
)
def test_infer_kind(values, promised, kind):
    assert infer_kind(values, **promised) is kind


@pytest.mark.parametrize("factor", [1e-300, 1e-12, 1.0, 1e12, 1e290])
def test_long_tail_does_not_depend_on_the_unit(factor):
    normal = np.random.default_rng(0).normal(size=2000)
    assert is_long_tailed(factor * np.exp(2 * normal))
    assert not is_long_tailed(factor * np.exp(0.3 * normal))


def test_long_tail_is_claimed_with_care():
    normal = np.random.default_rng(0).normal(size=2000)
    assert not is_long_tailed(np.exp(2 * normal) - 1)  # something is not positive
    assert not is_long_tailed(np.exp(np.exp(np.abs(normal))))  # the logarithm is skewed too
    assert not is_long_tailed(np.full(10, 3.0))


def test_kinds_are_checked():
    assert resolve_kinds(None, ("a",)) == {}
    assert resolve_kinds({"a": Kind.COUNT}, ("a",)) == {"a": Kind.COUNT}
    with pytest.raises(ValueError, match=r"kinds names the column 'b'.*\['a'\]"):
        resolve_kinds({"b": "count"}, ("a",))
    with pytest.raises(ValueError, match=r"Column 'a': got kind 'number', want one of .*'numeric'"):
        resolve_kinds({"a": "number"}, ("a",))


def test_scale_of_an_empty_column_is_neutral():
    column = Column("a", Kind.NUMERIC, "float64")
    assert (column.center, column.scale, column.n_observed) == (0.0, 1.0, 0)
    assert math.isfinite(column.minimum)
    assert column.can_decode  # zero
    assert not Column("a", Kind.DATETIME, "datetime64[us]").can_decode
    assert not Column("a", Kind.CATEGORICAL, "str").can_decode
