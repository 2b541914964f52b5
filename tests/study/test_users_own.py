"""A task, a network and an objective from outside the package, to a report; and wrong ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import exhaustive
from flax import nnx
from objectives_table import CASES
from small import small_task

import calmoe_jax as cm
from calmoe_jax import data, nn, study
from calmoe_jax.study.config import TrainConfig
from calmoe_jax.training import NonFiniteLossError, Objective

TRAIN = TrainConfig(epochs=2, batch_size=16)
MINE = study.Method("gentle", CASES["theirs"].objective, title="Gentle & Robust")


class Theirs(nnx.Module):
    """A module with gate logits and experts' log probabilities; dropout for good measure."""

    def __init__(self, rngs, classes=3):
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.gate = nnx.Linear(4, 2, rngs=rngs)
        self.experts = nnx.Linear(4, 2 * classes, rngs=rngs)
        self.classes = classes

    def __call__(self, x, *, train):
        x = self.drop(x, deterministic=not train)
        log_probs = jax.nn.log_softmax(self.experts(x).reshape(-1, 2, self.classes))
        return cm.mixture.predict(log_probs, self.gate(x))


def functions():
    """The same as plain functions, on inputs that are a tree."""

    def init(key):
        gate, experts = jax.random.split(key)
        return {
            "gate": jax.random.normal(gate, (4, 2)), "experts": jax.random.normal(experts, (4, 6)),
        }, ()  # fmt: skip

    def apply(params, state, inputs, *, train, **_):
        x = inputs["x"] * inputs["mask"]
        log_probs = jax.nn.log_softmax((x @ params["experts"]).reshape(-1, 2, 3))
        return cm.mixture.predict(log_probs, x @ params["gate"]), state

    return nn.Network(init, apply)


def as_tree(split):
    inputs = {"x": split.inputs, "mask": np.ones((len(split), 1), np.float32)}
    return dataclasses.replace(split, inputs=inputs)


def tree_task():
    task = small_task(name="tree")
    return dataclasses.replace(
        task, train=as_tree(task.train), calibration=as_tree(task.calibration),
        evaluation=tuple(map(as_tree, task.evaluation)),
    )  # fmt: skip


def run(task, methods, out, **changes):
    return study.run(task, methods, out=out, train=TRAIN, seeds=2, **changes)


@pytest.mark.parametrize("kind", ["functions", *exhaustive("module")])
def test_a_user_defined_network_and_objective_get_a_report(tmp_path, kind):
    task, network = (
        (small_task(name="mine"), nn.from_nnx(Theirs)) if kind == "module"
        else (tree_task(), functions())
    )  # fmt: skip
    results = run(task, ["vanilla", MINE], tmp_path / "out", network=network)
    assert {(r.method, r.routing) for r in results.records} == {
        ("vanilla", "given"), ("gentle", "given"),
    }  # fmt: skip
    assert {c.method for c in results.comparisons} == {"gentle"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gentle &amp; Robust" in page
    again = run(task, ["vanilla", MINE], tmp_path / "out", network=network)
    assert again == results


@pytest.mark.exhaustive  # README's example does the same
def test_a_file_and_a_function_name_a_task(tmp_path, monkeypatch):
    task = small_task()
    arrays = {
        f"{name}_{field}": getattr(split, field)
        for name, split in (
            ("train", task.train), ("calibration", task.calibration), ("test", task.evaluation[0]),
            ("shift_later", task.evaluation[2]),
        )
        for field in ("inputs", "labels")
    }  # fmt: skip
    np.savez(tmp_path / "mine.npz", **arrays)
    of_file = run(str(tmp_path / "mine.npz"), ["vanilla"], tmp_path / "file")
    assert [s.name for s in of_file.splits] == ["train", "calibration", "test", "later"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker.py").write_text(
        "from calmoe_jax import data\ndef make():\n    return data.load_npz('mine.npz')\n"
    )
    of_function = run("maker:make", ["vanilla"], tmp_path / "function")
    assert of_function.records == of_file.records


def refused(tmp_path, match, task=None, methods=("vanilla",), error=study.RunInputError, **changes):
    with pytest.raises(error, match=match):
        run(task or small_task(), list(methods), tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_labels_out_of_range(tmp_path):
    task = small_task()
    wrong = dataclasses.replace(task.train, labels=task.train.labels + 1)
    task = dataclasses.replace(task, train=wrong)
    refused(tmp_path, r"'train'.* labels must be in \[0, 2\], got", task, error=data.DataError)


def test_a_network_with_another_number_of_classes(tmp_path):
    network = nn.from_nnx(lambda rngs: Theirs(rngs, classes=4))
    refused(
        tmp_path, r"network must predict the 3 classes of task portal .*log_probs.shape=\(16, 4\)",
        network=network,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apply": lambda p, s, x, *, train, **_: x}, r"must return \(prediction, network_state\)"),
        ({"apply": lambda p, s, x: x}, r"apply fails on inputs of task portal, float32\[16, 4\]"),
        (
            {"init": lambda key: {}},
            r"init\(key\) must return \(params, network_state\), got a dict",
        ),
    ],
)
def test_an_object_that_is_not_a_network_is_refused(tmp_path, change, message):
    refused(tmp_path, message, network=nn.from_nnx(Theirs)._replace(**change))


def objective(function, init=lambda: ()):
    return [study.Method("mine", Objective(init, function))]


def test_objectives_that_return_something_else(tmp_path):
    even = jnp.full(16, -jnp.log(16.0))

    def per_example(losses, prediction, batch, state, *, axis_name=None):
        return losses.loss, even, state

    def forgetful(losses, prediction, batch, state, *, axis_name=None):
        return losses.loss.mean(), even, ()

    def broken(losses, prediction, batch, state, *, axis_name=None):
        raise KeyError("nothing here")

    refused(tmp_path, "method mine: its objective must return a loss that is one float",
            methods=objective(per_example))  # fmt: skip
    refused(tmp_path, "must return a state of the shapes that init made",
            methods=objective(forgetful, lambda: jnp.zeros(2)))  # fmt: skip
    refused(tmp_path, "its objective fails on a batch: KeyError", methods=objective(broken))


@pytest.mark.exhaustive
def test_an_objective_that_is_nan(tmp_path):
    def loss(losses, prediction, batch, state, *, axis_name=None):
        return jnp.log(losses.loss.mean() - 1e6), jnp.full(16, -jnp.log(16.0)), state

    with pytest.raises(
        NonFiniteLossError,
        match=r"method mine, seed 42: the objective's loss is not finite at step 7 \(epoch 2\)",
    ):
        study.run(
            small_task(), objective(loss), out=tmp_path / "out", seeds=2,
            train=dataclasses.replace(TRAIN, warmup_epochs=1),
        )  # fmt: skip


def test_methods_that_share_a_training_must_be_alike(tmp_path):
    other = MINE._replace(
        name="other", objective=CASES["radius_robust"].objective, training="gentle"
    )
    refused(tmp_path, "shares the training 'gentle' with another method", methods=[MINE, other])


def test_the_single_classifier_of_a_given_network(tmp_path):
    refused(
        tmp_path, "'single' is this library's classifier", methods=["single"],
        network=nn.from_nnx(Theirs),
    )  # fmt: skip
