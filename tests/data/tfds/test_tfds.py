"""Data sets of tensorflow-datasets, read without TensorFlow."""

import importlib
import re
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest

from calmoe_jax.data import CorruptDataError, DataError, MissingDataError, Task, check_task
from calmoe_jax.data import tfds as ours
from calmoe_jax.data.sets import how_to_get

NEEDED = ("tensorflow_datasets", "array_record", "importlib_resources")
needs_tfds = pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED), reason="needs the data extra"
)
NAMES = ("cat", "dog", "bird")


def image(i):
    return np.random.RandomState(i).randint(0, 256, (6, 5, 3)).astype(np.uint8)


def label(i):
    return i // 2 % 3


@pytest.fixture(scope="module")
def tfds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, when they are imported
        return importlib.import_module("tensorflow_datasets")


@pytest.fixture(scope="module")
def tiny(tfds, tmp_path_factory):
    """A prepared data set of our own."""

    class TinyAnimals(tfds.core.GeneratorBasedBuilder):
        """Pictures of noise."""

        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = tmp_path_factory.mktemp("package")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(6, 5, 3), dtype=np.uint8),
                    "number": tfds.features.Scalar(dtype=np.int64),
                    "ids": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                    "label": tfds.features.ClassLabel(names=NAMES),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(0, 50),
                "test": self._generate_examples(50, 70),
            }

        def _generate_examples(self, start, end):
            for i in range(start, end):
                ids = np.arange(1 + i % 2, dtype=np.int32)
                yield i, {"image": image(i), "number": i, "ids": ids, "label": label(i)}

    folder = tmp_path_factory.mktemp("data")
    builder = TinyAnimals(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return builder


@needs_tfds
def test_every_example_is_read_once_and_whole(tiny):
    split = ours.from_tfds(tiny, split="train", kind="train", inputs=("image", "number"))
    numbers = split.inputs["number"]
    assert sorted(numbers.tolist()) == list(range(50))
    assert split.labels.tolist() == [label(i) for i in numbers.tolist()]
    np.testing.assert_array_equal(split.inputs["image"], [image(i) for i in numbers.tolist()])
    assert split.inputs["image"].dtype == np.uint8
    assert (split.name, split.kind, split.num_clusters) == ("train", "train", 50)
    assert split.description == "tiny_animals, train"


@needs_tfds
def test_a_task_of_slices(tiny):
    task = check_task(
        Task(
            "tiny",
            ours.class_names(tiny),
            ours.from_tfds(tiny, split="train[:80%]", kind="train"),
            ours.from_tfds(tiny, split="train[80%:]", kind="calibration", name="held out"),
            (ours.from_tfds(tiny, split="test", kind="id"),),
        )
    )
    assert task.classes == NAMES
    assert [len(split) for split in task.splits] == [40, 10, 20]
    assert [split.name for split in task.splits] == ["train[:80%]", "held out", "test"]
    assert task.holds_images
    images = np.concatenate([task.train.inputs, task.calibration.inputs])
    assert {x.tobytes() for x in images} == {image(i).tobytes() for i in range(50)}


@needs_tfds
@pytest.mark.parametrize("limit", [1, 7, 50, 1000])
def test_a_limit_takes_the_first(tiny, limit, monkeypatch):
    whole = ours.from_tfds(tiny, split="train", kind="train")
    monkeypatch.setattr(ours.source, "_CHUNK", 4)
    part = ours.from_tfds(tiny, split="train", kind="train", limit=limit)
    np.testing.assert_array_equal(part.inputs, whole.inputs[:limit])
    np.testing.assert_array_equal(part.labels, whole.labels[:limit])


@needs_tfds
def test_a_prepared_data_set_is_found_by_its_folder(tfds, tiny):
    again = tfds.builder_from_directory(tiny.data_path)
    one, other = (ours.from_tfds(b, split="test", kind="id") for b in (tiny, again))
    np.testing.assert_array_equal(one.inputs, other.inputs)
    assert ours.class_names(again) == NAMES


@needs_tfds
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs": "imag"}, DataError, "inputs must be a feature of tiny_animals, one of "),
        ({"inputs": "imag"}, DataError, "got inputs='imag'. Did you mean image?"),
        ({"label": "class"}, DataError, "label must be a feature of tiny_animals"),
        ({"split": "trian"}, DataError, "split must be one of "),
        ({"split": "train[:0]"}, DataError, ", or a slice of one with examples, in the format"),
        ({"inputs": "ids"}, CorruptDataError, "split train: examples of ids must be of one shape"),
        ({"limit": 0}, ValueError, "limit must be at least 1, got limit=0."),
    ],
)
def test_what_is_wrong_is_said(tiny, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ours.from_tfds(tiny, **{"split": "train", "kind": "train", **arguments})


@needs_tfds
def test_names_of_classes_are_of_a_class_label(tiny):
    with pytest.raises(DataError, match="names of classes, got label='number'"):
        ours.class_names(tiny, label="number")
    with pytest.raises(DataError, match="Did you mean label"):
        ours.class_names(tiny, label="lable")


@needs_tfds
def test_an_unknown_data_set():
    with pytest.raises(DataError, match=r"must name a data set .* got 'no_such_set'"):
        ours.from_tfds("no_such_set", split="train", kind="train")


@needs_tfds
def test_a_data_set_that_is_not_prepared(tfds, tiny, tmp_path):
    other = type(tiny)(data_dir=tmp_path, file_format="array_record")
    with pytest.raises(MissingDataError, match=r"not prepared at .*download_and_prepare\(\)"):
        ours.from_tfds(other, split="train", kind="train")


@needs_tfds
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("name", "ours_of_it"),
    [
        ("cifar10", "cifar10"),
        ("cifar10_corrupted/fog_3", "cifar10_corrupted"),
        ("civil_comments/CivilCommentsIdentities", "civil_comments_identities"),
        ("pacs", "pacs"),  # which tensorflow-datasets has not
        ("domainnet64/real", "domainnet"),
    ],
)
def test_a_data_set_of_ours_is_prepared_by_our_command(tmp_path, name, ours_of_it):
    of_texts = name.startswith("civil_comments")
    inputs, label = ("text", "toxicity") if of_texts else ("image", "label")
    with pytest.raises(MissingDataError) as error:
        ours.from_tfds(
            name, split="train", kind="train", data_dir=tmp_path, inputs=inputs, label=label
        )
    said = str(error.value)
    assert f"the data set {name} is not prepared" in said
    assert str(tmp_path) in said
    assert how_to_get(ours_of_it) in said
    assert "`calmoe data where` names, as data_dir." in said
    assert "download_and_prepare" not in said
    assert list(tmp_path.iterdir()) == []


@needs_tfds
@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_our_command_is_not_named_where_it_does_not_help(tmp_path, name):
    """MNIST it keeps in files of another format."""
    message = rf"the data set {name} is not prepared .*\.builder\('{name}'.*download_and_prepare"
    with pytest.raises(MissingDataError, match=message) as error:
        ours.from_tfds(name, split="train", kind="train", data_dir=tmp_path)
    assert "calmoe data" not in str(error.value)


@needs_tfds
def test_tensorflow_is_not_needed(tiny):
    ours.from_tfds(tiny, split="test", kind="id")
    assert "tensorflow" not in sys.modules


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "array_record", None)
    message = r"package .* is needed .* pip install 'calmoe_jax\[data\]'"
    with pytest.raises(MissingDataError, match=message):
        ours.from_tfds("mnist", split="train", kind="train")
    with pytest.raises(MissingDataError, match=message):
        ours.class_names("mnist")
