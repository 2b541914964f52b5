"""A plausible call of every public function that takes arrays, for laws that hold for all."""

import inspect
import types
import typing

import jax
import jaxtyping
import numpy as np

import calmoe_jax as cm
from calmoe_jax.calibration import calibrators, intervals

NAMESPACES = (
    cm, cm.routing, cm.mixture, cm.calibration, calibrators, intervals, cm.fgr, cm.moe,
    cm.reweighting, cm.shift, cm.shift.estimators,
)  # fmt: skip
SIZES = {
    **dict.fromkeys(("examples", "tokens", "targets", "references", "images", "losses"), 8),
    **{"experts": 4, "classes": 3, "k": 2, "slots": 2, "d": 5, "f": 4, "hidden": 6, "columns": 6},
    **{"d_out": 5, "bins": 15, "clusters": 4, "replicates": 5, "m": 2, "features": 3, "all": 16},
    **{"models": 5, "coordinates": 2, "height": 8, "width": 8, "channels": 3, "groups": 2},
    **{"rows": 16, "shape": 8, "folds": 2, "n": 8},
}
NONE = {"batch", "layers", "..."}  # any number of axes
ROWS = {"examples", "tokens", "targets", "references", "images", "losses", "all"}
STATICS = {
    "k": 2, "num_experts": 4, "num_classes": 3, "num_clusters": 4, "num_units": 3, "num_groups": 2,
    "eta": 1.0, "alpha": 0.5, "radius": 0.3, "num_rows": 16, "num_replicates": 20,
    "num_permutations": 19, "regret_threshold": 0.1, "rate": 0.1, "capacity": None, "hard": False,
    "block_size": None,
}  # fmt: skip
# Arguments that exclude others, or ask for them.
LEFT_OUT = {
    "entropy_balance": ("radius", "targets"),
    "balanced_robust_loss": ("radius", "targets"),
    "danskin_loss": ("targets",),
    "grouped_matmul": ("group_offsets",),
}
# What another function makes.
MADE = {
    cm.Routing: lambda: cm.top_k_routing(_floats("logits", (8, 4)), k=2),
    cm.moe.Routed: lambda: cm.route(_floats("logits", (8, 4)), k=2),
    cm.moe.DispatchPlan: lambda: cm.route(_floats("logits", (8, 4)), k=2).plan,
    cm.mixture.Configuration: lambda: cm.configuration(
        np.log(_floats("probs", (8, 4, 3))), _floats("probs", (8, 4))
    ),
    cm.reweighting.BalanceSolution: lambda: cm.reweighting.entropy_balance(
        _floats("signal", (8,)), _floats("constraints", (8, 2)), eta=1.0
    ),
}


# Arguments that their annotations do not describe well enough.
GIVEN = {
    "apply_isotonic": {"fit": lambda: calibrators.fit_isotonic(_p(8), _p(8) < 0.5)},
    "apply_classwise_isotonic": {
        "fit": lambda: calibrators.fit_classwise_isotonic(_p(8, 3), np.arange(8) % 3)
    },
    "apply_expert_temperatures": {
        "fit": lambda: calibrators.fit_expert_temperatures(_p(8, 4, 3), np.arange(8) % 3)
    },
    "clustered_calibration_error": {"bins": lambda: _cluster_bins(_p(8))},
    "squared_error_difference": {
        "first": lambda: _cluster_bins(_p(8)), "second": lambda: _cluster_bins(1 - _p(8)),
    },
    "repair_with_labels": {"drawn": lambda: np.int32([0, 2, 1])},
    "cluster_sums": {"values": lambda: [_p(8, 2), _p(8)]},
    "bootstrap_sums": {"sums": lambda: [_p(4, 2), _p(4)]},
}  # fmt: skip
ON_HOST = {"corp_decomposition", "fit_isotonic", "fit_classwise_isotonic"}
NEEDS_AN_AXIS = {"psum_state", "expert_parallel_layer"}


def _p(*shape):
    return _floats("probs", shape)


def _cluster_bins(confidence):
    return intervals.cluster_bins(confidence, confidence < 0.5, np.arange(8) % 4, num_clusters=4)


def calls():
    """Functions by name."""
    found = {}
    for namespace in NAMESPACES:
        for name, member in sorted(vars(namespace).items()):
            if name.startswith("_") or not inspect.isfunction(member) or name in NEEDS_AN_AXIS:
                continue
            parameters = inspect.signature(member).parameters.values()
            own = not member.__module__.startswith("calmoe_jax._")
            if own and any(arrays_of(p.annotation) for p in parameters):
                found.setdefault(member, f"{namespace.__name__}.{name}".split(".", 1)[1])
    return {name: function for function, name in found.items()}


def arrays_of(annotation):
    """The array types of an annotation, and the named tuples that hold some."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    choices = typing.get_args(annotation) if union else (annotation,)
    return [
        c
        for c in choices
        if hasattr(c, "dim_str")
        or (isinstance(c, type) and hasattr(c, "_fields")
            and any(map(arrays_of, typing.get_type_hints(c).values())))
    ]  # fmt: skip


def call_of(function):
    """Arguments that are arrays and pytrees of them, and the others."""
    arrays, statics = {}, {}
    left_out = LEFT_OUT.get(function.__name__, ())
    for name, parameter in inspect.signature(function).parameters.items():
        if name in left_out or (name == "axis_name" or parameter.kind.name == "VAR_POSITIONAL"):
            continue
        if name == "key":
            arrays[name] = jax.random.key(0)
        elif name in GIVEN.get(function.__name__, {}):
            arrays[name] = GIVEN[function.__name__][name]()
        elif function is intervals.statistic and name == "statistic":
            statics[name] = _weighted_mean
        elif arrays_of(parameter.annotation):
            arrays[name] = _value(name, arrays_of(parameter.annotation)[0])
        elif name in STATICS and parameter.default is parameter.empty:
            statics[name] = STATICS[name]
        elif parameter.default is parameter.empty:
            raise NotImplementedError(f"{function.__name__}: no value for {name}")
    for name, value in STATICS.items():
        parameter = inspect.signature(function).parameters.get(name)
        known = name in left_out or name in arrays or value is None
        if parameter is not None and not known:
            statics[name] = value
    return arrays, statics


def _weighted_mean(weights):
    return (weights * np.arange(len(weights), dtype=weights.dtype)).sum() / weights.sum()


def bound(function, statics):
    """The function of its arrays, as a dictionary."""
    parameters = inspect.signature(function).parameters
    positional = [n for n, p in parameters.items() if p.kind.name != "KEYWORD_ONLY"]

    def call(arrays):
        given = {**arrays, **statics}
        return function(
            *(given[n] for n in positional if n in given),
            **{n: v for n, v in given.items() if n not in positional},
        )

    return call


def _value(name, kind):
    if kind in MADE:
        return MADE[kind]()
    if hasattr(kind, "dim_str"):
        axes = [axis.lstrip("*#") for axis in kind.dim_str.split()]
        shape = tuple(int(a) if a.isdigit() else SIZES.get(a, 3) for a in axes if a not in NONE)
        return _array(name, kind.dtype, shape)
    hints = typing.get_type_hints(kind)
    return kind(
        *(_value(f, arrays_of(hints[f])[0]) if arrays_of(hints[f]) else None for f in kind._fields)
    )


def _array(name, dtype, shape):
    rng = np.random.RandomState(len(name) + sum(shape))
    if dtype is jaxtyping.Bool:
        return rng.rand(*shape) < 0.7
    if dtype in (jaxtyping.Int, jaxtyping.Integer):
        if name == "group_sizes":
            return np.int32([2, 1, 0, 5])
        return rng.randint(0, 2 if name == "groups" else 3, shape).astype(np.int32)
    return _floats(name, shape)


def _floats(name, shape):
    rng = np.random.RandomState(len(name) + sum(shape))
    if "prob" in name or ("weights" in name and len(shape) > 1):
        probs = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
        return np.log(probs) if "log" in name else probs
    if "logits" in name or name in ("constraints", "features", "points", "x", "w", "rows"):
        return rng.randn(*shape).astype(np.float32)
    return rng.uniform(0.05, 0.95, shape).astype(np.float32)
