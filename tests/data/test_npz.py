"""A task in one npz file: read as it is documented, or an error with the file and the array."""

import hashlib
import io
import re
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calmoe_jax.data import CorruptDataError, MissingDataError, Split, Task, check_task, load_npz

LABELS = np.arange(40) % 3


def features(seed, rows=40):
    return np.random.RandomState(seed).randn(rows, 4).astype(np.float32)


def least():
    """The arrays that a file needs."""
    return {
        "train_inputs": features(0),
        "train_labels": LABELS,
        "test_inputs": features(1),
        "test_labels": LABELS,
    }


def everything():
    """A file with all that there may be; the splits lie in no order."""
    return {
        "shift_later_inputs": features(3),
        "shift_later_labels": LABELS,
        "shift_later_series": "year",
        "shift_later_position": 1998,
        "shift_later_clusters": LABELS // 2,
        "shift_later_description": "what came after",
        "hard_odd_labels": LABELS[:9],
        "hard_odd_inputs": features(4, 9),
        **least(),
        "train_clusters": np.arange(40) // 4,
        "calibration_labels": LABELS,
        "calibration_inputs": features(2),
        "shift_a_labels_b_inputs": features(5),
        "shift_a_labels_b_labels": LABELS,
        "classes": ["no", "maybe", "yes"],
        "source": "made up",
    }


def write(folder, arrays, name="mine.npz"):
    path = folder / name
    np.savez(path, **arrays)
    return path


def assert_same(ours, theirs):
    assert (ours.name, ours.classes, ours.source) == (theirs.name, theirs.classes, theirs.source)
    for a, b in zip(ours.splits, theirs.splits, strict=True):
        names = "name", "kind", "description", "series", "position"
        assert [getattr(a, n) for n in names] == [getattr(b, n) for n in names]
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.clusters, b.clusters)


def test_all_arrays_are_read_into_their_fields(tmp_path):
    arrays = everything()
    expected = Task(
        "mine",
        ("no", "maybe", "yes"),
        Split("train", "train", features(0), LABELS, np.arange(40) // 4),
        Split("calibration", "calibration", features(2), LABELS),
        (
            Split("test", "id", features(1), LABELS),
            Split(
                "later",
                "shift",
                features(3),
                LABELS,
                LABELS // 2,
                "what came after",
                "year",
                1998.0,
            ),
            Split("a_labels_b", "shift", features(5), LABELS),
            Split("odd", "hard", features(4, 9), LABELS[:9]),
        ),
        "made up",
    )
    assert_same(load_npz(write(tmp_path, arrays)), check_task(expected))
    np.savez_compressed(tmp_path / "mine.npz", **arrays)
    assert_same(load_npz(str(tmp_path / "mine.npz")), check_task(expected))


def test_votes_and_parts(tmp_path):
    votes = np.random.RandomState(0).dirichlet(np.ones(3), 40)
    arrays = least() | {
        "test_soft_labels": votes,
        "shift_a_inputs": features(2),
        "shift_a_labels": LABELS,
        "shift_a_soft_labels": votes[::-1],
        "part_easy_inputs": features(3),
        "part_easy_labels": LABELS,
    }
    test, shift, part = load_npz(write(tmp_path, arrays)).evaluation
    np.testing.assert_array_equal(test.soft_labels, votes.astype(np.float32))
    np.testing.assert_array_equal(shift.soft_labels, votes[::-1].astype(np.float32))
    assert (part.name, part.kind, part.soft_labels) == ("easy", "part", None)
    with pytest.raises(CorruptDataError, match=r"mine\.npz: shift_a_soft_labels must be a share"):
        load_npz(write(tmp_path, arrays | {"shift_a_soft_labels": votes[:3]}))


def test_a_shift_may_be_named_soft(tmp_path):
    """Then `shift_a_soft_labels` are its labels."""
    arrays = least() | {
        "shift_a_inputs": features(2),
        "shift_a_labels": LABELS,
        "shift_a_soft_inputs": features(3),
        "shift_a_soft_labels": LABELS[::-1],
    }
    task = load_npz(write(tmp_path, arrays))
    found = {split.name: split for split in task.evaluation}
    assert found["a_soft"].labels.tolist() == LABELS[::-1].tolist()
    assert found["a"].soft_labels is None
    arrays["shift_a_soft_soft_labels"] = np.eye(3)[LABELS]
    found = {s.name: s for s in load_npz(write(tmp_path, arrays)).evaluation}
    assert found["a_soft"].soft_labels is not None


def test_a_dot_makes_a_dict(tmp_path):
    ids, mask = np.arange(120).reshape(40, 3), np.ones((40, 3), bool)
    arrays = {"train_labels": LABELS, "test_labels": LABELS}
    for part in ("train", "test"):
        arrays |= {f"{part}_inputs.text.ids": ids, f"{part}_inputs.text.mask": mask}
        arrays[f"{part}_inputs.age"] = features(0)
    task = load_npz(write(tmp_path, arrays))
    spec = task.input_spec
    assert set(spec) == {"text", "age"}
    assert (spec["text"]["ids"].shape, spec["text"]["ids"].dtype) == ((3,), np.int32)
    assert spec["text"]["mask"].dtype == bool
    np.testing.assert_array_equal(task.evaluation[0].inputs["text"]["ids"], ids)


def test_classes_are_numbered_by_default(tmp_path):
    assert load_npz(write(tmp_path, least())).classes == ("0", "1", "2")


@pytest.mark.parametrize("clustered", [False, True])
def test_a_tenth_of_the_clusters_is_held_out(tmp_path, clustered):
    arrays = least()
    clusters = np.arange(40) // 2 if clustered else np.arange(40)
    if clustered:
        arrays["train_clusters"] = clusters
    task = load_npz(write(tmp_path, arrays))
    train, calibration = task.train, task.calibration
    assert len(calibration) == 4
    assert len(set(calibration.clusters.tolist())) == (2 if clustered else 4)
    assert not set(train.clusters.tolist()) & set(calibration.clusters.tolist())
    # together, in the order of the file within each, they are what was given
    for part in (train, calibration):
        rows = np.isin(clusters, part.clusters)
        np.testing.assert_array_equal(part.inputs, arrays["train_inputs"][rows])
        np.testing.assert_array_equal(part.labels, LABELS[rows])
        np.testing.assert_array_equal(part.clusters, clusters[rows])
    assert_same(load_npz(tmp_path / "mine.npz"), task)


def test_what_is_held_out_is_the_same_everywhere(tmp_path):
    task = load_npz(write(tmp_path, least()))
    order = sorted(range(40), key=lambda i: hashlib.sha256(f"0:{i}".encode()).digest())
    assert task.calibration.clusters.tolist() == sorted(order[:4])


def test_clusters_are_held_out_whatever_the_order_of_rows(tmp_path):
    order = np.random.RandomState(0).permutation(40)
    arrays = {**least(), "train_clusters": np.arange(40) // 2}
    first = load_npz(write(tmp_path, arrays))
    arrays |= {name: arrays[name][order] for name in arrays if name.startswith("train")}
    second = load_npz(write(tmp_path, arrays))
    assert set(first.calibration.clusters.tolist()) == set(second.calibration.clusters.tolist())


def without(name):
    return {key: value for key, value in everything().items() if key != name}


def having(**arrays):
    return {**everything(), **arrays}


def bare(**arrays):
    return {**least(), **arrays}


NAN = features(2)
NAN[7, 1] = np.nan
WRONG = {
    "no training inputs": (without("train_inputs"), "lacks the array train_inputs."),
    "no training labels": (without("train_labels"), "lacks the array train_labels."),
    "no test": (without("test_labels"), "lacks the array test_labels."),
    "half a calibration": (without("calibration_labels"), "lacks the array calibration_labels."),
    "half a shift": (without("shift_later_inputs"), "lacks the array shift_later_inputs."),
    "only clusters": (having(hard_even_clusters=LABELS), "lacks the array hard_even_inputs."),
    "empty file": ({}, "lacks the array train_inputs."),
    "a misspelt field": (having(test_labls=LABELS), "got test_labls. Did you mean test_labels?"),
    "a misspelt split": (bare(trian_clusters=LABELS), "Did you mean train_clusters?"),
    "a misspelt field of a shift": (
        having(shift_later_postion=3),
        "got shift_later_postion. Did you mean shift_later_position?",
    ),
    "a shift without name": (bare(shift_labels=LABELS), "got shift_labels."),
    "an unknown array": (bare(zzz=LABELS), "PART_FIELD, where PART is one of train, calibration"),
    "an empty place": (bare(**{"train_inputs..ids": LABELS}), "got train_inputs..ids."),
    "an array with arrays": (
        bare(**{"train_inputs.ids": LABELS}),
        "train_inputs must be an array or hold arrays, but train_inputs.ids is there too.",
    ),
    "a shift named as a hard split": (
        having(hard_later_inputs=features(0), hard_later_labels=LABELS),
        "shift_later_inputs and hard_later_inputs are both named 'later'.",
    ),
    "a shift named test": (
        having(shift_test_inputs=features(0), shift_test_labels=LABELS),
        "test_inputs and shift_test_inputs are both named 'test'.",
    ),
    "labels of floats": (
        having(shift_later_labels=LABELS / 1.0),
        "shift_later_labels must be integers, got float64.",
    ),
    "labels of texts": (bare(train_labels=LABELS.astype(str)), "train_labels"),
    "one label": (bare(train_labels=np.array(3)), "train_labels must be one number per example"),
    "one-hot labels": (bare(test_labels=np.eye(3, dtype=int)[LABELS]), "test_labels must be one"),
    "labels below zero": (bare(train_labels=LABELS - 5), "train_labels"),
    "labels far above": (bare(train_labels=LABELS + 10**9), "train_labels"),
    "labels that training has not": (
        bare(test_labels=LABELS + 1),
        "test_labels must be in [0, 2], got 1 to 3",
    ),
    "no training rows": (
        bare(train_labels=LABELS[:0], train_inputs=features(0, 0)),
        "train_labels",
    ),
    "rows": (bare(test_inputs=features(1, 39)), "test_inputs must hold an example for each"),
    "a wide shift": (
        having(shift_later_inputs=np.zeros((40, 5))),
        "shift_later_inputs must be float32 [4] per example",
    ),
    "NaN": (bare(test_inputs=NAN), "test_inputs must be finite in float32, got NaN or infinity in"),
    "texts": (having(hard_odd_inputs=np.array(list("abcdefghi"))), "hard_odd_inputs must be of"),
    "objects": (bare(train_inputs=np.array([{}] * 40)), "'train_inputs' cannot be read"),
    "a tree in one split": (
        {**{k: v for k, v in least().items() if k != "test_inputs"}, "test_inputs.x": features(1)},
        "test_inputs must hold the arrays of the training split",
    ),
    "clusters": (having(test_clusters=LABELS[:3]), "test_clusters must be one number for each"),
    "training clusters": (bare(train_clusters=LABELS[:3]), "train_clusters must be one integer"),
    "one training cluster": (bare(train_clusters=0 * LABELS), "needs at least 2, got 1"),
    "a class that is held out": (
        bare(train_labels=np.arange(40), test_labels=np.arange(40)),
        "train_labels (with one cluster in 10 held out for calibration) must have every class",
    ),
    "classes": (having(classes=3), "classes must be a list of names, got int64 of shape ()."),
    "a class": (having(classes=["a", "b"]), "train_labels must be in [0, 1], got 0 to 2"),
    "equal classes": (having(classes=["a", "b", "a"]), "two classes are named 'a'."),
    "classes of bytes": (having(classes=[b"a", b"b", b"c"]), "classes must be a list of names"),
    "position": (having(shift_later_position="x"), "shift_later_position must be a number"),
    "positions": (having(shift_later_position=[1, 2]), "shift_later_position must be a number"),
    "no position": (without("shift_later_position"), "shift_later_position must be given with"),
    "no series": (without("shift_later_series"), "shift_later_series must be given with"),
    "infinite position": (having(shift_later_position=np.inf), "shift_later_position must be a"),
    "series": (having(shift_later_series=3), "shift_later_series must be a text, got int64"),
    "source": (having(source=[1.0]), "source must be a text, got float64 of shape (1,)."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_the_file_and_the_array(tmp_path, name):
    arrays, message = WRONG[name]
    path = write(tmp_path, arrays)
    with pytest.raises(CorruptDataError, match=re.escape(message)) as error:
        load_npz(path)
    assert str(error.value).startswith(str(path))


def test_no_file(tmp_path):
    with pytest.raises(MissingDataError, match=r"there is no file .*mine\.npz"):
        load_npz(tmp_path / "mine.npz")
    with pytest.raises(MissingDataError, match="there is no file"):
        load_npz(tmp_path)


def test_members_that_are_no_arrays(tmp_path):
    path = write(tmp_path, least())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
    with pytest.raises(CorruptDataError, match=r"mine\.npz: an array must be named .*README\.txt"):
        load_npz(path)
    path = write(tmp_path, {k: v for k, v in least().items() if k != "test_inputs"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test_inputs", "hello")
    with pytest.raises(CorruptDataError, match=r"mine\.npz .* 'test_inputs' is not an array"):
        load_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_twice(tmp_path):
    path = write(tmp_path, least())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_labels.npy", archive.read("train_labels.npy"))
    with pytest.raises(CorruptDataError, match=r"mine\.npz: the array train_labels occurs twice"):
        load_npz(path)


def test_an_array_with_an_unknown_name(tmp_path):
    path = write(tmp_path, {k: v for k, v in least().items() if k != "test_inputs"})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 10**3)}
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("test_inputs.npy", header.getvalue())
    with pytest.raises(CorruptDataError, match=r"mine\.npz .*'test_inputs' cannot be read"):
        load_npz(path)


WHOLE = io.BytesIO()
np.savez_compressed(WHOLE, **everything())


@settings(max_examples=150, deadline=None)
@given(
    end=st.integers(0, len(WHOLE.getvalue())),
    place=st.integers(0, len(WHOLE.getvalue()) - 1),
    byte=st.integers(0, 255),
)
@pytest.mark.filterwarnings("ignore")  # of NumPy and zipfile, about broken bytes
def test_broken_bytes_are_corrupt_data_or_do_no_harm(tmp_path_factory, end, place, byte):
    raw = bytearray(WHOLE.getvalue())
    raw[place] = byte
    path = tmp_path_factory.getbasetemp() / "broken.npz"
    for content in (raw, raw[:end]):
        path.write_bytes(content)
        said = str(path)
        try:
            assert check_task(load_npz(path)).name == "broken"
        except CorruptDataError as error:
            said = str(error)
        assert said.startswith(str(path))
