"""Public functions hold their callers to the shapes and kinds of numbers of their signatures."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import public_calls
import pytest
from dispatching import exhaustive
from public_calls import arrays_of

import calmoe_jax as cm
from calmoe_jax._signatures import checked

# It takes plans with any leading axes, as from `vmap` or a scan over layers.
STACKED = {"moe.check_plan"}
# Sizes of axes, by name; new names get the next number, so that all are different and none is 1.
_SIZES: dict[str, int] = {}


FUNCTIONS = {n: f for n, f in public_calls.calls().items() if n not in STACKED}
# A fifth of them: one decorator checks all.
BY_DEFAULT = list(FUNCTIONS)[::5]


def _shape(array_type: Any) -> tuple[int, ...]:
    """A shape that an array type admits; an axis of any number of axes is one axis."""
    shape = []
    for axis in array_type.dim_str.split():
        plain = axis.lstrip("*#")
        shape.append(int(plain) if plain.isdigit() else _SIZES.setdefault(plain, 3 + len(_SIZES)))
    return tuple(shape)


def _array(array_type: Any, shape: tuple[int, ...]) -> jax.Array:
    kind = {jaxtyping.Int: jnp.int32, jaxtyping.Bool: bool}.get(array_type.dtype, jnp.float32)
    return jnp.ones(shape, kind)


def _value(annotation: Any) -> Any:
    choice = arrays_of(annotation)[0]
    if hasattr(choice, "dim_str"):
        return _array(choice, _shape(choice))
    hints = typing.get_type_hints(choice)
    return choice(*(_value(hints[n]) if arrays_of(hints[n]) else None for n in choice._fields))


def _call(function: Any, arguments: dict[str, Any]) -> Exception | None:
    """The error of a call, if any; keyword-only arguments are given by name."""
    parameters = inspect.signature(function).parameters
    named = {n for n, p in parameters.items() if p.kind.name == "KEYWORD_ONLY"}
    # a random key, or a function of the user's own
    others = [n for n, p in parameters.items() if p.default is p.empty and n not in named]
    given = {**dict.fromkeys(others, jax.random.key(0)), **arguments}
    positional = [given[n] for n in parameters if n in given and n not in named]
    try:
        jax.eval_shape(lambda: function(*positional, **{n: given[n] for n in named & set(given)}))
    except Exception as error:
        return error
    return None


def _leaves(name: str, annotation: Any, value: Any) -> Iterator[tuple[str, Any, jax.Array]]:
    """Name, type and value of each array of an argument."""
    if not arrays_of(annotation):
        return
    choice = arrays_of(annotation)[0]
    if hasattr(choice, "dim_str"):
        yield name, choice, value
        return
    hints = typing.get_type_hints(choice)
    for field in choice._fields:
        # a named tuple in it may be stacked
        if getattr(value, field) is not None and hasattr(arrays_of(hints[field])[0], "dim_str"):
            yield from _leaves(f"{name}.{field}", hints[field], getattr(value, field))


def _with(arguments: dict[str, Any], path: str, array: jax.Array) -> dict[str, Any]:
    """The arguments with another array at a path."""
    name, *fields = path.split(".")
    owners = [arguments[name]]
    for field in fields[:-1]:
        owners.append(getattr(owners[-1], field))
    for owner, field in zip(reversed(owners), reversed(fields), strict=False):
        array = owner._replace(**{field: array})
    return {**arguments, name: array}


def _shapes_near(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """One axis more, one less, and length 1."""
    yield (*shape, 1)
    yield (1, *shape)
    if shape:
        yield shape[:-1]
    for i in range(len(shape)):
        yield (*shape[:i], 1, *shape[i + 1 :])


def _is_apart(path: str, annotations: dict[str, Any], required: list[Any]) -> bool:
    """Whether a leaf is of a named tuple whose sizes need not be those of the other arguments."""
    return "." in path and required.count(annotations[path.split(".")[0]]) != 1


def _conforms(leaves: list[tuple[str, Any, jax.Array]]) -> bool:
    """Whether arrays are as their types say, by jaxtyping's own judgement."""
    with jaxtyping.jaxtyped("context"):
        return all(isinstance(value, array_type) for _, array_type, value in leaves)


def test_every_function_has_the_decorator():
    own = checked.__code__.co_filename
    assert [n for n, f in FUNCTIONS.items() if f.__code__.co_filename != own] == []


@pytest.mark.parametrize("name", [*BY_DEFAULT, *exhaustive(*sorted(FUNCTIONS.keys() - BY_DEFAULT))])
def test_another_shape_is_never_a_number(name):
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    annotations = {n: p.annotation for n, p in parameters.items() if arrays_of(p.annotation)}
    arguments = {n: _value(a) for n, a in annotations.items()}
    required = [a for a in annotations.values() if hasattr(a, "_fields")]
    leaves = [leaf for n, a in annotations.items() for leaf in _leaves(n, a, arguments[n])]
    tried = 0
    error = str(_call(function, arguments))
    assert not any(f"{path} must have the axes" in error for path, _, _ in leaves), error
    for path, array_type, value in leaves:
        # named tuples of one type stand for samples of different sizes, optional ones for others
        head = path.split(".")[0]
        alone = _is_apart(path, annotations, required)
        beside = [leaf for leaf in leaves if leaf[0].split(".")[0] == head] if alone else leaves
        beside = [leaf for leaf in beside if alone or not _is_apart(leaf[0], annotations, required)]
        for shape in _shapes_near(value.shape):
            other = _array(array_type, shape)
            if _conforms([(p, t, other if p == path else v) for p, t, v in beside]):
                continue
            error = _call(function, _with(arguments, path, other))
            assert isinstance(error, ValueError), f"{path} of shape {shape}: {error!r}"
            assert "must have the axes" in str(error), f"{path} of shape {shape}: {error!r}"
            tried += 1
    assert tried or len(leaves) <= 1, "nothing was tried"


def test_the_error_names_argument_rule_value_and_origin():
    probs = jnp.full((5, 2), 0.5)
    with pytest.raises(
        ValueError,
        match=r"labels must have the axes \[examples\] with examples=5 as in probs, got "
        r"labels.shape=\(5, 1\)",
    ):
        cm.calibration.accuracy(probs, jnp.zeros((5, 1), int))


def _predictions(num_classes: int, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(num_classes)
    probs = rng.dirichlet(np.full(num_classes, 0.1), size).astype(np.float32)
    return probs, rng.randint(0, num_classes, size)


@pytest.mark.parametrize(
    ("dtype", "num_classes"),
    [
        ("uint8", 256),
        ("int8", 128),
        ("uint8", 300),
        ("int16", 40_000),
        ("uint16", 3),
        ("uint32", 3),
    ],
)
def test_labels_of_any_integer_type(dtype, num_classes):
    probs, labels = _predictions(num_classes, 40)
    labels = labels.astype(dtype).astype(np.int64)  # those that the type can hold
    labels = np.where((labels < 0) | (labels >= num_classes), 0, labels)
    expected = np.mean((np.arange(num_classes) == labels[:, None]) * -2 * probs, dtype=np.float64)
    expected = expected * num_classes + np.mean(np.sum(np.square(probs, dtype=float), 1)) + 1
    found = cm.calibration.brier_score(probs, labels.astype(dtype))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    nll = -np.mean(np.log(probs[np.arange(40), labels], dtype=np.float64))
    found = cm.calibration.negative_log_likelihood(jnp.asarray(probs), labels.astype(dtype))
    np.testing.assert_allclose(found, nll, rtol=1e-5)


def test_labels_of_two_classes_may_be_truth_values():
    probs, labels = _predictions(2)
    found = cm.calibration.accuracy(probs, labels == 1)
    assert found == cm.calibration.accuracy(probs, labels)
    three, _ = _predictions(3)
    with pytest.raises(TypeError, match=r"labels must be of integers.*, got labels.dtype=bool"):
        cm.calibration.accuracy(three, labels == 1)


class _Column:
    """What a data frame's column offers: an index, and an array on demand."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class _Variable:
    """A module's variable."""

    def __init__(self, value):
        self.value = value

    def __jax_array__(self):
        return self.value


@pytest.mark.parametrize("wrap", [np.float64, _Column, list, tuple, _Variable])
def test_other_arrays_are_converted(wrap):
    confidence = np.linspace(0, 1, 20)
    outcome = np.arange(20) % 3 == 0
    expected = cm.calibration.smooth_calibration_error(
        jnp.asarray(confidence, jnp.float32), jnp.asarray(outcome)
    )
    given = wrap(jnp.asarray(confidence, jnp.float32)) if wrap is _Variable else wrap(confidence)
    found = cm.calibration.smooth_calibration_error(given, [int(x) for x in outcome])
    assert found.value == expected.value
    routed = cm.top_k_routing(np.eye(4), k=2)
    assert routed.combine_weights.dtype == jnp.float32
    fields = cm.Routing(*(np.asarray(x) for x in routed))
    np.testing.assert_array_equal(
        cm.routing_weights(fields, num_experts=4), cm.routing_weights(routed, num_experts=4)
    )


def test_inside_jit_too():
    labels = np.array([0, 1, 1], np.uint8)
    found = jax.jit(lambda probs: cm.calibration.accuracy(probs, labels))(np.full((3, 2), 0.5))
    assert found == np.float32(1 / 3)


def test_kinds_of_numbers():
    probs, labels = jnp.full((3, 2), 0.5), jnp.array([0, 1, 1])
    accuracy = cm.calibration.accuracy
    with pytest.raises(TypeError, match=r"labels must be of integers.*, got labels.dtype=float32"):
        accuracy(probs, labels.astype(jnp.float32))
    with pytest.raises(TypeError, match=r"at least 16 bits .*got probs.dtype=float8_e4m3fn"):
        accuracy(probs.astype(jnp.float8_e4m3fn), labels)
    with pytest.raises(TypeError, match=r"where must be of truth values, got where.dtype=int32"):
        accuracy(probs, labels, where=labels)
    with pytest.raises(TypeError, match=r"probs must be of floats, got probs.dtype=complex64"):
        accuracy(probs.astype(complex), labels)
    with pytest.raises(TypeError, match=r"probs must be an array of floats, got probs=None"):
        accuracy(None, labels)
    with pytest.raises(TypeError, match=r"probs must be an array of floats, got str"):
        accuracy("probs", labels)
    with pytest.raises(TypeError, match=r"probs must be an array of floats, got list"):
        accuracy([[0.5, 0.5], [1.0]], labels)
    assert accuracy(probs, labels, weights=np.array([1, 2, 3])) == 1 / 6


def test_the_signature_stays():
    def function(x: jaxtyping.Float[jax.Array, " n"], *, k: int = 1) -> None:
        """A docstring."""

    same = checked(function)
    assert inspect.signature(same) == inspect.signature(function)
    assert same.__doc__ == function.__doc__
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        same()
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        same(jnp.ones(2), 3)
