"""Selection of an implementation, from measurements."""

import doctest
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calmoe_kernels import availability, measurements, selection
from calmoe_kernels.availability import Implementation
from calmoe_kernels.measurements import Measurement

ROOT = Path(__file__).parents[2]
KIND = "NVIDIA H100 80GB HBM3"


def declines(*args):
    raise NotImplementedError("not these sizes")


def add(number):
    return lambda x: x + number


def attempts(*names, **others):
    """Implementations that add their place among the names, 1 for the first, and `others`."""
    return {name: add(selection.NAMES.index(name) + 1) for name in names} | others


XLA, TRITON = selection.NAMES.index("xla") + 1, selection.NAMES.index("triton") + 1


def run(every, implementation, *args, operation="route"):
    return selection.run(every, implementation, *args, operation=operation)


@pytest.fixture
def machine(monkeypatch):
    """Pretends that the platform is another, and that named implementations cannot run there."""

    def pretend(backend, **reasons):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=KIND)])
        monkeypatch.setattr(
            selection,
            "implementations",
            lambda: tuple(
                Implementation(name, name not in reasons, reasons.get(name, ""))
                for name in selection.NAMES
            ),
        )
        # the branch for the pretended platform
        program = {"gpu": "cuda"}.get(backend, backend)
        monkeypatch.setattr(
            jax.lax,
            "platform_dependent",
            lambda *args, default, **branches: branches.get(program, default)(*args),
        )

    return pretend


def entry(operation="route", implementation="triton", size_class=2, **change):
    facts = Measurement(operation, implementation, "some", size_class, True, 1.0, 2.0)
    return facts._replace(**change)._asdict()


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Pretends that a file of measurements is there."""
    monkeypatch.setattr(measurements, "folder", lambda: tmp_path)

    def write(*entries, kind=KIND, **change):
        content = {"schema": measurements.SCHEMA, "device_kind": kind, "entries": entries} | change
        (tmp_path / f"{measurements.slug(KIND)}.json").write_text(json.dumps(content))
        measurements.read.cache_clear()

    measurements.read.cache_clear()
    yield write
    measurements.read.cache_clear()


@pytest.mark.parametrize("backend", ["gpu", "tpu", "cpu", "another"])
def test_without_a_measurement_none_is_xla(machine, measured, backend):
    machine(backend)
    for operation in selection.OPERATIONS:
        every = attempts(*selection.NAMES)
        assert run(every, None, 0, operation=operation) == XLA


@pytest.mark.parametrize(("backend", "kernel"), [("gpu", "triton"), ("tpu", "pallas_tpu")])
def test_none_is_a_kernel_that_was_correct_and_faster(machine, measured, backend, kernel):
    machine(backend)
    measured(entry(implementation=kernel))
    every = attempts(*selection.NAMES)
    assert run(every, None, 0) == run(every, kernel, 0)
    assert run(every, None, 0, operation="plan") == XLA


@pytest.mark.parametrize(
    "change",
    [
        {"kernel_seconds": 2.0},
        {"kernel_seconds": 3.0},
        {"correct": False},
        {"size_class": 4},
        {"operation": "plan"},
        {"implementation": "pallas_tpu"},
    ],
    ids=str,
)
def test_none_is_xla_where_a_kernel_did_not_win(machine, measured, change):
    machine("gpu")
    measured(entry(**change))
    assert run(attempts(*selection.NAMES), None, 0) == XLA


def test_every_measurement_of_a_class_must_be_won(machine, measured):
    machine("gpu")
    measured(entry(), entry(problem="another", kernel_seconds=5.0))
    assert run(attempts(*selection.NAMES), None, 0) == XLA


def test_a_class_between_two_that_were_won_was_not_measured(machine, measured):
    machine("gpu")
    measured(entry(size_class=4), entry(size_class=8))
    every = attempts(xla=lambda x: "xla", triton=lambda x: "triton")
    found = {n: run(every, None, np.zeros(n, np.int8)) for n in (15, 16, 63, 64, 255, 256, 1024)}
    assert [n for n, name in found.items() if name == "triton"] == [16, 63, 256]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "NVIDIA A100"}, "is of 'NVIDIA A100', not of 'NVIDIA H100 80GB HBM3'"),
        ({"schema": 2}, "its schema must be 1"),
        ({"entries": None}, "its entries must be a list"),
        ({"entries": [{}]}, "entry 0 must have the fields operation, "),
        ({"entries": [entry(size_class=3)]}, "an even size_class, got 3"),
        ({"entries": [entry(kernel_seconds=0)]}, "positive, finite seconds, got 0"),
        ({"entries": [entry(xla_seconds=float("nan"))]}, "positive, finite seconds, got nan"),
        ({"entries": [entry(correct="yes")]}, "correct true or false"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_broken_or_foreign_file_is_ignored_with_its_reason(machine, measured, change, reason):
    machine("gpu")
    measured(entry(), **change)
    assert run(attempts(*selection.NAMES), None, 0) == XLA
    (choice,) = (each for each in selection.choices() if each.operation == "route")
    assert choice[:4] == ("route", "xla", (), "unmeasured")
    assert reason in choice.reason


def test_what_is_no_json_is_ignored(machine, measured, tmp_path):
    machine("gpu")
    (tmp_path / f"{measurements.slug(KIND)}.json").write_text("{")
    assert run(attempts(*selection.NAMES), None, 0) == XLA
    assert "is ignored: " in selection.choices()[0].reason


def test_choices_say_what_none_means_and_why(machine, measured):
    machine("gpu")
    file = f"{measurements.slug(KIND)}.json"
    measured(
        entry("plan", size_class=12), entry("plan", size_class=20), entry("route", correct=False)
    )
    found = {each.operation: each for each in selection.choices()}
    assert list(found) == list(selection.OPERATIONS)
    assert found["plan"][1:4] == ("triton", (12, 20), "measured")
    assert found["plan"].reason == (
        f"triton: in {file} it is correct and faster in size classes 12, 20"
    )
    assert found["route"][1:4] == ("xla", (), "measured")
    assert "wrong or no faster" in found["route"].reason
    assert found["moments"][1:] == ("xla", (), "unmeasured", f"triton: {file} has no entry of it")
    machine("gpu", triton="jax_triton not installed")
    assert {each[1:] for each in selection.choices()} == {
        ("xla", (), "not runnable", "triton: jax_triton not installed")
    }
    machine("cpu")
    assert {each.status for each in selection.choices()} == {"not runnable"}


def test_size_classes():
    sizes = [measurements.size_class(np.zeros(n, np.int8)) for n in (0, 1, 3, 4, 15, 16, 1 << 20)]
    assert sizes == [0, 0, 0, 2, 2, 4, 20]
    tree = {"a": jnp.zeros((4, 2)), "b": (None, jnp.zeros(8, jnp.bfloat16))}
    assert measurements.size_class(tree, jnp.zeros(4)) == 6
    under_vmap = []
    jax.vmap(lambda x: under_vmap.append(measurements.size_class(x)))(jnp.zeros((7, 16)))
    assert under_vmap == [6]


@pytest.mark.parametrize("module", [availability, measurements, selection])
def test_examples(module):
    assert doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp}).failed == 0


def test_a_wheel_holds_every_folder_of_the_package_and_the_measurements():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    source = ROOT / "kernels" / "calmoe_kernels"
    folders = {"calmoe_kernels"} | {
        f"calmoe_kernels.{path.parent.name}" for path in source.glob("*/__init__.py")
    }
    assert folders <= set(settings["packages"])
    assert "calmoe_kernels.measured" in settings["packages"]
    assert settings["package-dir"]["calmoe_kernels.measured"] == "benchmarks/results"
    assert settings["package-data"]["calmoe_kernels.measured"] == ["README.md", "*.json"]


def test_a_checkout_has_the_folder_of_measurements():
    folder = measurements.folder()
    assert (folder / "README.md").is_file()
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        assert path.stem == measurements.slug(content["device_kind"])
        entries = measurements.parse(path.read_text(), content["device_kind"])
        for each in entries:
            assert each.implementation in selection.OPERATIONS[each.operation]


def test_a_measured_kernel_that_declines_or_cannot_run_is_replaced(machine, measured):
    machine("gpu")
    measured(entry())
    assert run(attempts("xla", triton=declines), None, 0) == XLA
    assert run(attempts("xla"), None, 0) == XLA
    machine("gpu", triton="jax_triton not installed")
    assert run(attempts("xla", "triton"), None, 0) == XLA


@pytest.mark.parametrize("name", selection.NAMES)
@pytest.mark.parametrize("faster", [True, False])
def test_a_name_overrules_what_was_measured(machine, measured, name, faster):
    machine("gpu")
    measured(entry(correct=faster))
    every = attempts(*selection.NAMES)
    assert run(every, name, 0) == selection.NAMES.index(name) + 1


def test_a_name_is_not_replaced(machine):
    machine("gpu")
    with pytest.raises(NotImplementedError, match="not these sizes"):
        run(attempts("xla", triton=declines), "triton", 0)


def test_other_errors_are_not_a_decline(machine, measured):
    machine("gpu")
    measured(entry())

    def broken(x):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run(attempts("xla", triton=broken), None, 0)


def test_arguments_are_trees():
    def total(tree, x):
        return tree["a"] + tree["b"][0] + x

    tree = {"a": jnp.ones(2), "b": (jnp.ones(2), None)}
    assert run({"xla": total}, None, tree, 1.0).tolist() == [3, 3]


def test_a_program_for_another_platform_holds_what_runs_there(monkeypatch, measured):
    monkeypatch.setattr(selection, "implementations", lambda: (Implementation("triton", True, ""),))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=KIND)])
    measured(entry())
    every = attempts("triton", "xla")
    text = jax.jit(lambda x: run(every, None, x)).trace(0).lower(lowering_platforms=("cuda",))
    assert "2" in re.findall(r"dense<(\d+)>", text.as_text())
    # compiled for this CPU after all
    assert jax.jit(lambda x: run(every, None, x))(0) == XLA


@pytest.mark.parametrize("name", ["cuda", "XLA", ""])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ValueError) as error:
        run(attempts("xla"), name, 0)
    known = ", ".join(selection.NAMES)
    assert str(error.value) == (
        f"implementation must be None or one of {known}, got implementation={name!r}."
    )


def test_a_name_without_an_attempt():
    with pytest.raises(NotImplementedError, match=r"pallas_tpu cannot do this operation\."):
        run(attempts("xla"), "pallas_tpu", 0)


def test_a_name_that_cannot_run_says_why(machine):
    machine("gpu", triton="jax_triton not installed")
    with pytest.raises(NotImplementedError, match=r"triton: jax_triton not installed\."):
        run(attempts("xla", "triton"), "triton", 0)


def test_pallas_needs_a_tpu():
    if jax.default_backend() == "tpu":
        pytest.skip("this is a TPU")
    with pytest.raises(NotImplementedError, match=r"pallas_tpu: .* is \w+, not tpu\."):
        run(attempts("xla", "pallas_tpu"), "pallas_tpu", 0)


def test_lazy_imports_when_it_is_called():
    function = selection.lazy("not_there", "f")
    with pytest.raises(ModuleNotFoundError, match=r"calmoe_kernels\.not_there"):
        function()
    classes = selection.lazy("measurements", "size_class")
    assert classes(jnp.zeros(16)) == 6
