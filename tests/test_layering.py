"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "calmoe_jax"

# A module may import those of lower layers and of its own folder.
LAYERS = [
    {"_checks", "_environment", "_files", "_kernels", "_numerics"},
    {"_choice"},
    {"routing", "mixture"},
    {"dispatch", "matmul", "calibration", "reweighting"},
    {"experts", "shift"},
    {"nn", "data"},
    {"training"},
    {"repair"},
    {"evaluation", "audit"},
    {"comparison"},
    {"report"},
    {"experiment"},
    {"cli"},
]
PURE = {
    "_checks",
    "_numerics",
    "_kernels",
    "_choice",
    "routing",
    "dispatch",
    "matmul",
    "experts",
    "mixture",
    "calibration",
    "reweighting",
    "shift",
}
PURE_MAY_IMPORT = {
    "jax", "jaxtyping", "numpy", "typing", "collections", "functools", "importlib", "math",
    "sklearn",  # on the host, inside functions
    "calmoe_jax", "calmoe_kernels",
}  # fmt: skip


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_lower_layers(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "calmoe_jax":
            continue
        names = [n for n in parts[1:2] if layer_known(n)] or [None]
        other = names[0]
        if other is None:  # `from calmoe_jax import x`
            continue
        same = other == room(path)
        assert same or layer(other) < layer(room(path)), f"{path} imports {name}"


def layer_known(name):
    return any(name in names for names in LAYERS)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_pure_core_imports_nothing_impure(path):
    if room(path) in PURE:
        for name in imported(path):
            assert name.split(".")[0] in PURE_MAY_IMPORT, f"{path} imports {name}"


def test_flax_is_seen_by_nn_and_training_models_only():
    users = {
        str(p.relative_to(PACKAGE))
        for p in sources()
        if any(name.split(".")[0] == "flax" for name in imported(p))
    }
    assert users == {
        "nn/backbones.py", "nn/calibration_metric.py", "nn/classifiers.py", "nn/sparse.py",
        "training/models.py",
    }  # fmt: skip


def test_kernels_are_a_leaf():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(name.startswith("calmoe_jax") for name in imported(path))
    users = {
        str(p.relative_to(PACKAGE))
        for p in sources()
        if any(name.startswith("calmoe_kernels") for name in imported(p))
    }
    solver = {"reweighting/_dual.py", "reweighting/_task.py"}
    assert users <= {"dispatch.py", "matmul.py", "cli.py", *solver}


def test_the_top_level_is_as_agreed():
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    generated = {"build", "dist", "runs", "calmoe_jax.egg-info"}
    assert found - generated <= {
        "calmoe_jax", "kernels", "benchmarks", "tests", "experiments",
        "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip


def test_importing_the_package_is_quick_and_brings_no_flax():
    code = (
        "import time, jax; start = time.perf_counter(); import calmoe_jax; "
        "took = time.perf_counter() - start; import sys; "
        "heavy = {'flax', 'optax', 'orbax', 'matplotlib', 'sklearn', 'tyro'} & set(sys.modules); "
        "print(took, *heavy)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(output[0]) < 1.0
    assert output[1:] == []


def test_every_public_name_is_documented_and_exported():
    import calmoe_jax

    names = [n for n in vars(calmoe_jax) if not n.startswith("_")]
    functions = [n for n in names if callable(getattr(calmoe_jax, n))]
    assert len(functions) > 40
    for name in functions:
        assert getattr(calmoe_jax, name).__doc__, name
