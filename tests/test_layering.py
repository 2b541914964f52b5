"""Imports point one way."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.every_case

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "calmoe_jax"

# A module may import modules of lower layers and of its own namespace.
LAYERS = [
    {"_signals"},
    {
        "_checks",
        "_compilation_cache",
        "_environment",
        "_export",
        "_errors",
        "_files",
        "_mapping",
        "_sharding",
    },
    {"_signatures", "_usage"},
    {"_numerics"},
    {"routing"},
    {"moe"},
    {"mixture", "fgr"},
    {"calibration", "reweighting"},
    {"shift", "drawing"},
    {"nn", "data", "parallel"},
    {"training"},
    {"study", "audit"},
    {"_data_dir", "_logs_arguments"},
    {
        "_data_command",
        "_plan_command",
        "_audit_command",
        "_label_command",
        "_repair_command",
        "_run_command",
        "_monitor_command",
    },
    {"cli"},
]
PURE = {
    "_checks", "_mapping", "_numerics", "_sharding", "_signatures",
    "routing", "moe", "mixture", "fgr", "calibration", "reweighting", "shift",
}  # fmt: skip
PURE_MAY_IMPORT = {
    "jax", "jaxtyping", "numpy", "typing", "collections", "functools", "importlib",
    "inspect", "math", "statistics", "types",
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


def rooms_of(name):
    """The namespaces that an imported name belongs to; none for the package itself."""
    parts = name.split(".")
    return {parts[1]} if parts[0] == "calmoe_jax" and len(parts) > 1 else set()


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_lower_layers(path):
    for name in imported(path):
        for other in rooms_of(name):
            assert other == room(path) or layer(other) < layer(room(path)), f"imports {name}"


def test_a_file_has_one_idea():
    long = {str(p): n for p in sources() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_no_module_imports_itself_through_others():
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sources()}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}

    def known(name):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {
        name: {known(n) for n in imported(path)} - {"", name} for name, path in modules.items()
    }
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, with the cycle


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
        "nn/backbones/_attention.py", "nn/backbones/_transformer.py", "nn/backbones/distilbert.py",
        "nn/backbones/mlp.py", "nn/backbones/resized.py", "nn/backbones/resnet.py",
        "nn/backbones/standardized.py", "nn/backbones/text.py", "nn/backbones/vit.py",
        "nn/calibration_metric.py", "nn/classifiers.py", "nn/moe_layer.py", "nn/network.py",
        "nn/pretrained/layouts.py", "nn/pretrained/load.py", "study/networks.py",
    }  # fmt: skip


def test_kernels_are_a_leaf():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not any(name.startswith("calmoe_jax") for name in imported(path))
    users = {
        str(p.relative_to(PACKAGE))
        for p in sources()
        if any(name.startswith("calmoe_kernels") for name in imported(p))
        # marks of arrays in `shard_map`, which are no kernel
        if {name for name in imported(p) if name.startswith("calmoe_kernels")}
        - {"calmoe_kernels.varying.vary_along", "calmoe_kernels.varying.varying_axes"}
    }
    for user in users:
        may = ("moe/", "reweighting/_solver/", "routing/_top_k.py")
        assert user == "cli.py" or user.startswith(may), user


def test_the_top_level_is_as_agreed():
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    generated = {"build", "dist", "runs", "calmoe_jax.egg-info"}
    assert found - generated <= {
        "calmoe_jax", "kernels", "benchmarks", "tests", "experiments",
        "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip


def test_a_wheel_holds_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    roots = {"calmoe_jax": ROOT, "calmoe_kernels": ROOT / "kernels"}
    found = {
        ".".join(path.parent.relative_to(root).parts)
        for name, root in roots.items()
        for path in (root / name).rglob("*.py")
    }
    # the measurements lie in `benchmarks/results`
    assert sorted(found | {"calmoe_kernels.measured"}) == sorted(listed)


def test_importing_the_package_is_quick_and_brings_no_flax():
    code = (
        "import time, jax, jaxtyping, jax.experimental.checkify; start = time.process_time(); "
        "import calmoe_jax; took = time.process_time() - start; import sys; "
        "heavy = {'flax', 'optax', 'orbax', 'matplotlib', 'sklearn', 'tyro'} & set(sys.modules); "
        "print(took, *heavy)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(output[0]) < 1.0
    assert output[1:] == []
