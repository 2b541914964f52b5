"""Why an implementation does not run here."""

from types import SimpleNamespace

import jax
import pytest

from calmoe_kernels import availability


@pytest.fixture
def machine(monkeypatch):
    """A simulated machine: backend, installed packages, and the GPU's capability."""

    def build(backend="gpu", installed=("triton", "jax_triton"), version="0.3.1", capability="9.0"):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        gpu = SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
        monkeypatch.setattr(jax, "devices", lambda: [gpu])
        monkeypatch.setattr(
            availability, "find_spec", lambda name: object() if name in installed else None
        )
        monkeypatch.setattr(availability, "version", lambda name: version)

    return build


def triton():
    return {each.name: each for each in availability.implementations()}["triton"]


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"backend": "cpu"}, "backend is cpu"),
        ({"installed": ()}, "triton and jax_triton not installed"),
        ({"installed": ("triton",)}, "jax_triton not installed"),
        ({"version": "0.4.1"}, "jax-triton 0.4.1 is installed, 0.3.1 is needed"),
        ({"capability": "7.5"}, "capability 7.5"),
        ({"capability": None}, "not NVIDIA's"),
        ({"capability": "gfx942"}, "not NVIDIA's"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reason_is_given(machine, facts, word):
    machine(**facts)
    assert not triton().runs
    assert word in triton().reason


def test_triton_runs_where_all_is_there(machine):
    machine()
    assert triton() == ("triton", True, "")


def test_the_interpreter_needs_no_gpu(machine, monkeypatch):
    machine(backend="cpu", installed=("triton",))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton().runs
    machine(backend="cpu", installed=())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton().reason == "triton not installed"


def test_tpu(machine):
    machine(backend="tpu")
    assert [each.runs for each in availability.implementations()] == [True, False, True]
