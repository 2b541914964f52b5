"""Settings of the whole suite: several CPU devices, and no silent broadcasting between ranks."""

import os
import shutil
import tempfile
import zlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# Most of the time goes into compiling, which is a quarter faster where LLVM does not optimise, and
# 40 % faster still with the emitters that XLA had until jaxlib 0.10 (an unknown flag would end it).
# `XLA_FLAGS=` (empty) tests what users run; a GPU's kernels are always optimised.
if shutil.which("nvidia-smi") is None:
    _flags = ["--xla_backend_optimization_level=0"]
    if version("jaxlib").startswith("0.10."):
        _flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(_flags))

import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", int(os.environ.get("CALMOE_TEST_DEVICES", "4")))
jax.config.update("jax_numpy_rank_promotion", "raise")
# `strict` finds dtypes that are mixed silently; JAX_ENABLE_X64=1 is JAX's own.
jax.config.update("jax_numpy_dtype_promotion", os.environ.get("CALMOE_TEST_PROMOTION", "standard"))
os.environ["MPLBACKEND"] = "agg"

# What one worker or command has compiled, the others need not compile again.
_OURS = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OURS:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="calmoe-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tests of the checkout itself; those of an installed package run without one.
if not (Path(__file__).parents[1] / "calmoe_jax").is_dir():
    collect_ignore = ["benchmarks", "experiments", "kernels", "test_layering.py"]

NO_TRITON = jax.default_backend() != "gpu" and os.environ.get("TRITON_INTERPRET") != "1"


def pytest_unconfigure():
    """Removes compiled programs at the end."""
    if _OURS:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_addoption(parser):
    """What a newcomer need not wait for."""
    parser.addoption(
        "--exhaustive", action="store_true", help="also run tests that repeat others in kind"
    )
    parser.addoption(
        "--part", default="1/1", metavar="I/N", help="only the I-th of N parts of the modules"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Exhaustive tests run when asked for, comparisons with other libraries where installed."""
    _spread_cases(items)
    _keep_part(config, items)
    if not config.getoption("--exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
    if find_spec("netcal") is None:
        skipped = pytest.mark.skip(reason="needs the peers extra")
        for item in items:
            if item.get_closest_marker("peers"):
                item.add_marker(skipped)


def _keep_part(config, items):
    """Leaves out modules of the other parts: those whose path has another checksum."""
    number, count = (int(x) for x in config.getoption("--part").split("/"))
    if not 1 <= number <= count:
        raise pytest.UsageError(f"--part must be I/N with 1 <= I <= N, got {number}/{count}")

    def ours(item):
        path = item.path.relative_to(config.rootpath).as_posix()
        return zlib.crc32(path.encode()) % count == number - 1

    config.hook.pytest_deselected(items=[item for item in items if not ours(item)])
    items[:] = [item for item in items if ours(item)]


def _spread_cases(items):
    """Marks all but the first and the last of a test's many cases as exhaustive.

    Cases that cost nothing and differ in kind are kept by the mark `every_case`; kernels, where
    they can run, are tested in all of them.
    """
    if not NO_TRITON:
        return
    tests = {}
    for item in items:
        marked = item.get_closest_marker("exhaustive") or item.get_closest_marker("every_case")
        if not marked and hasattr(item, "callspec"):
            kernel = "triton" in item.name or "tokamax" in item.name  # skipped on most machines
            tests.setdefault((item.path, item.originalname, kernel), []).append(item)
    for cases in tests.values():
        for item in cases[1:-1]:
            item.add_marker(pytest.mark.exhaustive)


def skip_without(name: str | None) -> str | None:
    """The name of an implementation, or a skip where its kernels cannot run."""
    if name == "triton" and NO_TRITON:
        pytest.skip("needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)")
    if name == "tokamax" and find_spec("tokamax") is None:
        pytest.skip("needs tokamax")
    return name


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Clears compiled programs after each module, to save memory."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["xla", "triton"], scope="module")
def implementation(request):
    """An implementation of dispatch."""
    return skip_without(request.param)


@pytest.fixture(params=["blocks", "ragged_dot", "triton", "tokamax"], scope="module")
def product(request):
    """An implementation of grouped products."""
    return skip_without(request.param)


@pytest.fixture(
    params=["auto", pytest.param("explicit", marks=pytest.mark.exhaustive)], scope="module"
)
def mesh(request):
    """All devices in a row; `tests/test_sharding.py` has examples over explicit axes by default."""
    if len(jax.devices()) < 2:
        pytest.skip("one device is no mesh")
    kind = jax.sharding.AxisType.Auto if request.param == "auto" else jax.sharding.AxisType.Explicit
    return jax.sharding.Mesh(np.array(jax.devices()), ("d",), axis_types=(kind,))


@pytest.fixture
def unchecked(monkeypatch):
    """Without the hook that checks types before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets, or a skip that says what is missing."""
    folder = Path(
        os.environ.get("CALMOE_DATA_DIR", Path(__file__).parents[1] / ".." / "shared" / "data")
    ).resolve()
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set CALMOE_DATA_DIR)")
    return folder
