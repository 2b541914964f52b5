"""The example of every public function, run."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import pytest

import calmoe_jax as cm

NAMESPACES = {
    "": cm,
    "calibration.": cm.calibration,
    "calibration.calibrators.": cm.calibration.calibrators,
    "calibration.intervals.": cm.calibration.intervals,
    "fgr.": cm.fgr,
    "mixture.": cm.mixture,
    "moe.": cm.moe,
    "reweighting.": cm.reweighting,
    "routing.": cm.routing,
    "shift.": cm.shift,
    "shift.estimators.": cm.shift.estimators,
    "shift.few_labels.": cm.shift.few_labels,
    "shift.repair.": cm.shift.repair,
}


def public_names(namespace):
    """Public names that a namespace defines or re-exports, without modules and foreign imports."""
    own = {
        name: value
        for name, value in vars(namespace).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith("calmoe_jax")
        and (value.__module__ + ".").startswith(namespace.__name__ + ".")
    }
    return {name: value for name, value in own.items() if callable(value)}


PUBLIC = {
    prefix + name: value
    for prefix, namespace in NAMESPACES.items()
    for name, value in public_names(namespace).items()
}
ALL_NAMES = {name.rpartition(".")[2]: value for name, value in PUBLIC.items()}
FUNCTIONS = sorted(
    {value: name for name, value in PUBLIC.items() if inspect.isfunction(value)}.values()
)


def example_of(name):
    own = public_names(NAMESPACES[name.rpartition(".")[0] + "." if "." in name else ""])
    names = {"jax": jax, "jnp": jnp, "cm": cm, **ALL_NAMES, **own}
    return doctest.DocTestParser().get_doctest(
        inspect.getdoc(PUBLIC[name]) or "", names, name, None, 0
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name):
    example = example_of(name)
    assert example.examples, f"{name} has no example"
    report = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_every_public_name_is_documented():
    assert len(FUNCTIONS) > 100
    assert all(inspect.getdoc(value) for value in PUBLIC.values())


def test_the_top_level_is_small():
    top = [
        name for name in vars(cm) if not name.startswith("_") and name not in ("mixture", "routing")
    ]
    assert len([name for name in top if not inspect.ismodule(getattr(cm, name))]) <= 30
