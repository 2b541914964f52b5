"""Logs that a training or serving loop writes are those that are read."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import CLASSES, EXPERTS, make

import calmoe_jax as cm
from calmoe_jax import mixture
from calmoe_jax.audit import LogError, LogWriter, as_logs, log_batch, read_logs, writer

SIZE = 40


def same(found, expected):
    found, expected = (x._replace(files=()) for x in (found, expected))
    for name, a, b in zip(found._fields, found, expected, strict=True):
        if b is None or isinstance(b, bool | tuple):
            assert a == b, name
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def network(key, k=None, size=SIZE):
    gates, logits = jax.random.normal(key, (2, size, EXPERTS, CLASSES))
    routing = cm.top_k_routing(gates[..., 0], k=k) if k else None
    log_probs = jax.nn.log_softmax(logits)
    if k:
        log_probs = jnp.take_along_axis(log_probs, routing.expert_indices[..., None], axis=1)
    return mixture.predict(log_probs, gates[..., 0], routing)


def batches(k=None):
    labels = np.arange(SIZE) % CLASSES
    for i in range(5):
        known = labels if i < 3 else np.where(np.arange(SIZE) % 7 == 0, labels, -1)
        yield network(jax.random.key(i), k), known, {
            "targets": np.full(SIZE, i >= 3), "clusters": np.arange(SIZE) // 2 + 20 * i,
            "where": np.arange(SIZE) != 5, "time": np.full(SIZE, f"2026-01-0{i + 1}"),
            "drawn_probability": np.where(i >= 3, 1 / 7, np.nan) * np.ones(SIZE),
        }  # fmt: skip


@pytest.mark.parametrize("form", ["npz", pytest.param("parquet", marks=pytest.mark.every_case)])
@pytest.mark.parametrize("k", [None, 2, EXPERTS])
def test_what_is_written_is_read(tmp_path, form, k):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    written = []
    with LogWriter(tmp_path, rows_per_part=90, form=form) as log:
        for prediction, labels, others in batches(k):
            log(prediction, labels, **others)
            written.append(log_batch(prediction, labels, **others))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"part-00000{i}.{form}" for i in range(2)]
    whole = {name: np.concatenate([x[name] for x in written]) for name in written[0]}
    assert ("expert_indices" in whole) == (k == 2)
    found = read_logs(tmp_path)
    same(found, as_logs(whole))
    predicted = jnp.exp(jnp.concatenate([p.log_probs for p, *_ in batches(k)]))
    counts = np.arange(5 * SIZE) % SIZE != 5
    np.testing.assert_allclose(
        cm.mix(found.expert_probs, found.routing_weights)[counts], predicted[counts], atol=1e-6
    )
    np.testing.assert_array_equal(found.where, counts)
    assert found.time[-1] == np.datetime64("2026-01-05", "us")


def test_an_interruption_loses_nothing_and_a_second_start_appends(tmp_path):
    prediction = network(jax.random.key(0))
    labels = np.arange(SIZE) % CLASSES

    def run(number):
        with LogWriter(tmp_path, rows_per_part=3 * SIZE) as log:
            for _ in range(number):
                log(prediction, labels)
            raise KeyboardInterrupt

    for number, total in ((4, 4), (1, 5), (0, 5)):
        with pytest.raises(KeyboardInterrupt):
            run(number)
        assert len(read_logs(tmp_path).labels) == total * SIZE
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"part-00000{i}.npz" for i in range(3)]


def test_a_part_that_cannot_be_written_waits(tmp_path, monkeypatch):
    log = LogWriter(tmp_path)
    log(network(jax.random.key(0)), np.arange(SIZE) % CLASSES)

    def full(path, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(writer, "write_whole", full)
        with pytest.raises(OSError, match="No space"):
            log.flush()
    assert list(tmp_path.iterdir()) == []
    log.flush()
    log.flush()
    assert len(read_logs(tmp_path).labels) == SIZE


def test_the_writer_is_a_callback_inside_jit(tmp_path):
    with LogWriter(tmp_path) as log:

        @jax.jit
        def serve(key, labels):
            prediction = network(key)
            jax.debug.callback(log, prediction, labels, ordered=True)
            return prediction.log_probs

        labels = jnp.arange(SIZE) % CLASSES
        for i in range(3):
            serve(jax.random.key(i), labels)
        jax.effects_barrier()
    found = read_logs(tmp_path)
    assert len(found.labels) == 3 * SIZE
    expected = jnp.exp(network(jax.random.key(1)).expert_log_probs)
    np.testing.assert_allclose(found.expert_probs[SIZE : 2 * SIZE], expected, rtol=1e-5)


def test_arrays_in_place_of_a_prediction():
    arrays = make()
    columns = log_batch({"probs": arrays["expert_probs"][:, 0]}, arrays["labels"])
    assert set(columns) == {"probs", "labels"}
    assert as_logs(columns | {"targets": arrays["targets"]}).aggregate_only
    soft = log_batch({"probs": arrays["expert_probs"][:, 0]}, arrays["expert_probs"][:, 1])
    assert set(soft) == {"probs", "label_probs"}
    assert (log_batch({"probs": arrays["expert_probs"][:, 0]})["labels"] == -1).all()


def test_wrong_arguments(tmp_path):
    probs = make()["expert_probs"][:, 0]
    with pytest.raises(ValueError, match=r"among expert_probs, .*; got prob"):
        log_batch({"prob": probs})
    with pytest.raises(ValueError, match="prediction must have an array"):
        log_batch({})
    with pytest.raises(ValueError, match="labels must have a row for each of the 420 examples"):
        log_batch({"probs": probs}, np.zeros(3, int))
    with pytest.raises(ValueError, match="form must be npz or parquet, got form='csv'"):
        LogWriter(tmp_path / "a", form="csv")
    with pytest.raises(ValueError, match="rows_per_part must be at least 1"):
        LogWriter(tmp_path / "a", rows_per_part=0)
    log = LogWriter(tmp_path / "b")
    log({"probs": probs})
    for other in ({"logits": probs}, {"probs": probs[:, 1:]}):
        with pytest.raises(ValueError, match="columns must be those of the batches before"):
            log(other)
    with pytest.raises(LogError, match="a folder without parts"):
        read_logs(tmp_path)


def test_the_example_runs():
    example = doctest.DocTestFinder(recurse=False).find(
        log_batch, globs={"mixture": mixture, "jnp": jnp, "log_batch": log_batch}
    )
    assert doctest.DocTestRunner().run(example[0]).failed == 0
