"""Tasks that come with the package: the same arrays everywhere, splits that do not leak."""

import hashlib

import numpy as np
import pytest

from calmoe_jax import data


def digest(*arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


# Digests of inputs and labels: another platform, NumPy or SciPy must give the same bytes.
@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("portal", "train", "813814a59b768900"),
        ("portal", "calibration", "c1f6d3fd7c8d1e75"),
        ("portal", "1994-1997", "8eb2ee963afba36d"),
        ("portal", "ambiguous", "ddd86317d9c4fdf1"),
        ("digits", "train", "f5962d6bdeaed2ef"),
        ("digits", "gaussian_noise_5", "140f98a1706b3dea"),
        ("digits", "rotation_3", "dad9ed8718164b19"),
        ("digits", "ambiguous", "f5d264ce55c8b07a"),
    ],
)
def test_same_arrays_on_every_platform(name, split, expected, request):
    found = {s.name: s for s in request.getfixturevalue(name).splits}[split]
    assert digest(found.inputs, found.labels, found.clusters) == expected


def test_the_hard_subset_is_a_harder_part_of_the_test_split(portal, digits):
    for loaded in (portal, digits):
        splits = {s.name: s for s in loaded.splits}
        rows = {r.tobytes() for r in splits["test"].inputs}
        hard = splits["ambiguous"]
        assert {r.tobytes() for r in hard.inputs} <= rows
        assert 20 < len(hard) < len(splits["test"]) / 2


def test_digits_splits_do_not_overlap(digits, portal):
    assert [len(s) for s in digits.splits[:3]] == [1079, 269, 449]
    assert digits.train.inputs.dtype == np.uint8
    assert digits.train.inputs.max() == 255
    names = [s.name for s in digits.splits if s.kind == "shift"]
    assert tuple(names) == data.TASKS["digits"].shifts
    assert tuple(s.name for s in portal.splits if s.kind == "shift") == (
        data.TASKS["portal"].shifts
    )
