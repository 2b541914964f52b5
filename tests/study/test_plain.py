"""Plain JSON values of dataclasses: there and back, and what is wrong is named."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmoe_jax.study._plain import PlainValueError, from_plain, to_plain


@dataclasses.dataclass(frozen=True)
class Inner:
    number: float
    count: int
    flag: bool


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    many: tuple[Inner, ...]
    mapped: dict[str, float | None]
    either: float | tuple[float, ...]
    anything: object
    nothing: str | None


finite = st.floats(allow_nan=False, allow_infinity=False)
inner = st.builds(Inner, finite, st.integers(), st.booleans())
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
    max_leaves=6,
)
outer = st.builds(
    Outer, st.text(), inner, st.lists(inner, max_size=3).map(tuple),
    st.dictionaries(st.text(), st.none() | finite, max_size=3),
    finite | st.lists(finite, max_size=3).map(tuple), plain, st.none() | st.text(),
)  # fmt: skip

VALUE = Outer("a", Inner(0.5, 3, True), (Inner(1.0, 1, False),), {"x": None}, (0.5,), [1], None)


@given(value=outer)
@settings(deadline=None, max_examples=60)
def test_plain_values_and_back_is_the_identity(value):
    text = json.dumps(to_plain(Outer, value), allow_nan=False)
    assert from_plain(Outer, json.loads(text)) == value


def test_integers_stand_for_floats_and_become_them():
    read = from_plain(Inner, {"number": 1, "count": 2, "flag": True})
    assert type(read.number) is float
    assert type(to_plain(Inner, Inner(np.float64(2), 3, False))["number"]) is float


def changed(path, value):
    """The plain form of VALUE with another value in a place, or without it."""
    result = json.loads(json.dumps(to_plain(Outer, VALUE)))
    held = result
    for name in path[:-1]:
        held = held[name]
    if value is ...:
        del held[path[-1]]
    else:
        held[path[-1]] = value
    return result


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["name"], 3, "name must be a string, got 3."),
        (["name"], None, "name must be a string, got None."),
        (["inner"], [], "inner must be a mapping with the fields of Inner, got []."),
        (["inner", "number"], "x", "inner.number must be a finite number, got 'x'."),
        (["inner", "number"], True, "inner.number must be a finite number, got True."),
        (["inner", "number"], float("nan"), "inner.number must be a finite number, got nan."),
        (["inner", "count"], 1.0, "inner.count must be an integer, got 1.0."),
        (["inner", "count"], False, "inner.count must be an integer, got False."),
        (["inner", "flag"], 1, "inner.flag must be true or false, got 1."),
        (["many", 0, "count"], None, "many[0].count must be an integer, got None."),
        (["many", 0, "count"], ..., "many[0].count is missing."),
        (["many", 0, "extra"], 1, "many[0].extra is not a field of Inner."),
        (["many"], {}, "many must be a list, got {}."),
        (["mapped", "x"], "y", "mapped.x must be a finite number, got 'y'."),
        (["either"], ["x"], "either must be a finite number or a list, got ['x']."),
        (["anything"], ..., "anything is missing."),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(path, value, message):
    with pytest.raises(PlainValueError) as caught:
        from_plain(Outer, changed(path, value))
    assert str(caught.value) == message


def test_what_would_not_be_read_is_not_written():
    for wrong, place in (
        (Inner(float("inf"), 1, True), "number"),
        (Inner(np.float32(1), 1, True), "number"),
        (Inner(1.0, np.int64(1), True), "count"),
        ({"number": 1.0}, "the value"),
    ):
        with pytest.raises(PlainValueError, match=f"^{place} must be"):
            to_plain(Inner, wrong)
