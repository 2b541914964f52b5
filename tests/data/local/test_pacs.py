"""`pacs_*`: one domain is left out, and each image of the others is in one part."""

import numpy as np
import pictures
import pytest
from mixing import assert_each_half_is_mixed

from calmoe_jax import data
from calmoe_jax.data._encoded import read_images
from calmoe_jax.data.local import pacs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures.write_pacs(tmp_path_factory.mktemp("pacs"))


def keys(split):
    return {image.tobytes() for image in split.inputs}


@pytest.fixture(scope="module")
def tasks(folder):
    return {domain: data.load_task(f"pacs_{domain}", folder) for domain in pacs.DOMAINS}


def test_every_image_is_in_one_part(tasks):
    sizes = dict(zip(pacs.DOMAINS, (30, 31, 32, 33), strict=True))
    for left_out, task in tasks.items():
        assert task.input_spec.shape == (64, 64, 3)
        train, calibration, test, shift, *parts = task.splits
        assert (shift.name, shift.kind, len(shift)) == (left_out, "shift", sizes[left_out])
        together = sum(sizes.values()) - sizes[left_out]
        assert len(train) + len(calibration) + len(test) == together
        assert len(keys(train) | keys(calibration) | keys(test) | keys(shift)) == 126
        seen = [n for domain, n in sizes.items() if domain != left_out]
        assert len(test) == sum(round(0.2 * n) for n in seen)
        assert len(test) + len(calibration) == sum(round(0.3 * n) for n in seen)
        assert [p.name for p in parts] == [f"test_{d}" for d in pacs.DOMAINS if d != left_out]
        assert {p.kind for p in parts} == {"part"}
        np.testing.assert_array_equal(np.concatenate([p.inputs for p in parts]), test.inputs)
        np.testing.assert_array_equal(np.concatenate([p.labels for p in parts]), test.labels)
        assert data.TASKS[task.name].shifts == (left_out,)


def test_a_domain_is_parted_alike_in_every_task(tasks):
    (photos,) = (s for s in tasks["sketch"].splits if s.name == "test_photo")
    (again,) = (s for s in tasks["cartoon"].splits if s.name == "test_photo")
    np.testing.assert_array_equal(photos.inputs, again.inputs)
    assert keys(tasks["photo"].evaluation[1]) >= keys(photos)


def test_labels_stay_with_their_images(tasks, folder):
    with np.load(folder / "pacs" / "sketch.npz") as arrays:
        files = np.split(arrays["jpeg"], arrays["ends"][:-1])
        wanted = {
            pictures.decoded(file.tobytes()).tobytes(): label
            for file, label in zip(files, arrays["labels"].tolist(), strict=True)
        }
    shift = tasks["sketch"].evaluation[1]
    assert [wanted[image.tobytes()] for image in shift.inputs] == shift.labels.tolist()


def domains_of(images, folder):
    """The domain that each image is from, by comparison with all images of the files."""
    known = {
        image.tobytes(): domain
        for domain in pacs.DOMAINS
        for image in read_images(folder, "pacs", domain, 64)[0]
    }
    return [known[image.tobytes()] for image in images]


@pytest.mark.parametrize("left_out", pacs.DOMAINS)
def test_training_images_of_the_domains_are_mixed(tasks, folder, left_out):
    train = tasks[left_out].train
    found = domains_of(train.inputs, folder)
    assert set(found) == set(pacs.DOMAINS) - {left_out}
    assert_each_half_is_mixed(found)
    assert_each_half_is_mixed(train.labels)


def test_a_missing_domain(tmp_path):
    pictures.write_pacs(tmp_path, 10)
    (tmp_path / "pacs" / "cartoon.npz").unlink()
    with pytest.raises(
        data.MissingDataError,
        match=r"cartoon\.npz \(about 200 MB.*`calmoe data prepare pacs_photo`",
    ):
        data.load_task("pacs_photo", tmp_path)
    with pytest.raises(data.MissingDataError, match=r"art_painting\.npz, "):
        data.load_task("pacs_photo")
    assert data.TASKS["pacs_photo"].missing(tmp_path) == ("pacs/cartoon.npz",)


def test_images_of_another_size(tmp_path):
    pictures.write_pacs(tmp_path, 10)
    small = [pictures.jpeg_of(pictures.picture(0, 0, 32))]
    path = pictures.write(tmp_path, "pacs/sketch.npz", pictures.arrays_of(small, [0]))
    with pytest.raises(data.CorruptDataError, match="image 0 must be 64x64 pixels") as error:
        data.load_task("pacs_photo", tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_real_pacs(shared_data):
    sizes = {}
    for domain in pacs.DOMAINS:
        task = data.load_task(f"pacs_{domain}", shared_data)
        assert [np.bincount(s.labels, minlength=7).min() > 0 for s in task.splits] == [True] * 7
        shift = task.evaluation[1]
        sizes[domain] = len(shift)
        white = (shift.inputs > 250).all(axis=-1).mean()
        assert (white > 0.6) == (domain == "sketch")  # black lines on white paper
        found = domains_of(task.train.inputs, shared_data)
        assert set(found) == set(pacs.DOMAINS) - {domain}
        assert_each_half_is_mixed(found)
        assert_each_half_is_mixed(task.train.labels)
    assert sizes == {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}
