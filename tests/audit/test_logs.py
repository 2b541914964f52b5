"""Files of logs: what is read, what is refused and how."""

import numpy as np
import pytest
from audit_logs import CLASSES, SIZE, TARGETS, make, write

from calmoe_jax.audit import LogError, read_logs
from calmoe_jax.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


def same(found, expected):
    """The same logs, of what is known."""
    found, expected = (x._replace(files=()) for x in (found, expected))
    for name, a, b in zip(found._fields, found, expected, strict=True):
        assert (a is None) == (b is None), name
        if name == "notes":
            assert a == b
        elif a is not None and a is not True:
            np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-6)


def change(**arrays):
    return lambda logs: logs | {k: f(logs[k]) for k, f in arrays.items()}


def spoil(values, index, value):
    values = values.copy()
    values[index] = value
    return values


def slots(edit):
    """Logs with an index for each expert, in their order but for the edit."""
    return lambda logs: (
        logs | {"expert_indices": edit(np.tile(np.arange(3), (len(logs["labels"]), 1)))}
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda logs: {k: v for k, v in logs.items() if k != "labels"}, "lacks labels"),
        (change(labels=lambda x: x.astype(np.float32)), "labels must be whole numbers"),
        (
            change(labels=lambda x: spoil(x, 3, CLASSES)),
            r"labels must be in \[-1, 3\], got 4 at example 3",
        ),
        (change(labels=lambda x: np.full_like(x, -1)), "known for at least one"),
        (
            change(labels=lambda x: spoil(x, 3, -1)),
            r"every non-target example, got -1 at example 3\.",
        ),
        (change(labels=lambda x: x[:-1]), "labels must be of shape"),
        (change(expert_probs=lambda x: x[:, 0]), "expert_probs must be"),
        (
            change(expert_probs=lambda x: spoil(x, (5, 1, 2), np.nan)),
            "expert_probs must .* got nan at example 5, expert 1, class 2",
        ),
        (
            change(expert_probs=lambda x: spoil(x, (5, 1, 2), -0.5)),
            "expert_probs must .* got -0.5 at example 5, expert 1, class 2",
        ),
        (
            change(expert_probs=lambda x: spoil(x, 7, 2 * x[7])),
            "expert_probs must .* got a sum of 2 at example 7, expert 0",
        ),
        (
            change(routing_weights=lambda x: spoil(x, (5, 1), np.nan)),
            "routing_weights must .* got nan at example 5, expert 1",
        ),
        (
            change(routing_weights=lambda x: 2 * x),
            "routing_weights must .* over the experts, got a sum of 2 at example 0",
        ),
        (change(routing_weights=lambda x: x[:, :2]), "routing_weights must be of shape"),
        (change(routing_weights=lambda x: 0 * x), "routing_weights must have a row that counts"),
        (change(expert_probs=lambda x: x[..., :1]), "at least two classes"),
        (change(expert_probs=lambda x: (x > 0.5).astype(int)), "expert_probs must be floating"),
        (lambda x: x | {"where": np.ones(SIZE + TARGETS)}, "where must be true or false"),
        (
            lambda x: x | {"weights": np.linspace(0, 1, SIZE + TARGETS)},
            r"weights must be 0 or 1 .* at example 1\.",
        ),
        (lambda x: x | {"clustrs": np.arange(SIZE + TARGETS)}, "has clustrs, .* mean clusters"),
        (slots(lambda i: i.astype(float)), "expert_indices must be whole numbers"),
        (slots(lambda i: i[:, :2]), "expert_indices must be of shape"),
        (slots(lambda i: spoil(i, (4, 2), 0)), "got expert 0 twice at example 4"),
        (slots(lambda i: spoil(i, (4, 2), -1)), "at least 0, .* at example 4, slot 2"),
        (slots(lambda i: spoil(i, (4, 2), 10**9)), "got 1000000000 at example 4, slot 2"),
        (
            lambda x: change(expert_probs=lambda p: spoil(p, (5, 1, 2), np.nan))(
                slots(lambda i: i[:, ::-1] + 4)(x)
            ),
            r"got nan at example 5, slot 1 \(expert 5\), class 2",
        ),
        (change(targets=lambda x: x.astype(int)), "targets must be true or false"),
        (change(targets=lambda x: x[1:]), "targets must be of shape"),
        (lambda x: x | {"clusters": np.full(SIZE + TARGETS, np.nan)}, "clusters must be whole"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(folder, edit, message):
    with pytest.raises(LogError, match=message):
        read_logs(write(folder, edit(make())))


def test_invalid_log_files_are_refused(folder, capsys):
    whole = write(folder, make()).read_bytes()
    contents = {"empty": b"", "text": b"no archive", "half": whole[: len(whole) // 2]}
    middle = len(whole) // 3
    contents["spoilt"] = whole[:middle] + bytes(64) + whole[middle + 64 :]
    for name, content in contents.items():
        (folder / f"{name}.npz").write_bytes(content)
    np.save(folder / "array.npz.npy", np.zeros(3))
    (folder / "array.npz.npy").rename(folder / "array.npz")
    for name in (*contents, "array", "missing"):
        assert main(["audit", str(folder / f"{name}.npz")]) == 2
        assert "cannot be read" in capsys.readouterr().err, name


def test_a_parquet_file_gives_the_same_result(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arrays = make()
    table = pyarrow.table(
        {
            "routing_weights": arrays["routing_weights"].tolist(),
            "expert_probs": arrays["expert_probs"].tolist(),
            "labels": [
                None if target else int(label)
                for label, target in zip(arrays["labels"], arrays["targets"], strict=True)
            ],
        }
    )
    parquet.write_table(table, folder / "logs.parquet")
    logs = read_logs(folder / "logs.parquet")
    gaps = np.where(arrays["targets"], np.nan, arrays["labels"])  # as pandas keeps them
    as_floats = table.set_column(2, "labels", pyarrow.array(gaps))
    parquet.write_table(as_floats, folder / "floats.parquet")
    np.testing.assert_array_equal(read_logs(folder / "floats.parquet").labels, logs.labels)
    gaps[0] = np.inf
    parquet.write_table(
        table.set_column(2, "labels", pyarrow.array(gaps)), folder / "infinite.parquet"
    )
    with pytest.raises(LogError, match="labels"):
        read_logs(folder / "infinite.parquet")
    np.testing.assert_allclose(logs.expert_probs, arrays["expert_probs"], rtol=1e-6)
    np.testing.assert_array_equal(logs.targets, arrays["targets"])


def test_a_parquet_file_of_slots_and_masks(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arrays = make()
    arrays["expert_indices"] = np.tile(np.array([2, 0, 1]), (SIZE + TARGETS, 1))
    arrays["where"] = np.arange(SIZE + TARGETS) != 9
    arrays["clusters"] = np.array([f"c{i // 2}" for i in range(SIZE + TARGETS)])
    columns = {name: x.tolist() for name, x in arrays.items()}
    parquet.write_table(pyarrow.table(columns), folder / "slots.parquet")
    found = read_logs(folder / "slots.parquet")
    expected = read_logs(write(folder, arrays, "slots.npz"))
    same(found, expected)
    np.testing.assert_allclose(found.routing_weights[0, 2], arrays["routing_weights"][0, 0])
    for name, edit, message in (
        ("expert_probs", lambda x: [x[0][:2], *x[1:]], "lists of one length"),
        ("clusters", lambda x: [None, *x[1:]], "clusters must be known for every example"),
        ("routing_weights", lambda x: [None, *x[1:]], "routing_weights must have a list"),
    ):
        bad = columns | {name: edit(columns[name])}
        parquet.write_table(pyarrow.table(bad), folder / "bad.parquet")
        with pytest.raises(LogError, match=message):
            read_logs(folder / "bad.parquet")
