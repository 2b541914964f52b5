"""CIFAR-10, CIFAR-10H and CIFAR-10-C by the builders of tensorflow-datasets, without TensorFlow."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tensorflow_datasets.image_classification import cifar, cifar10_corrupted
from tensorflow_datasets.image_classification.cifar10_h import cifar10_h

from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.sets.archives import Tree, named, tar_member, tar_members, text_lines
from calmoe_jax.data.tfds.builders._pictures import png

_RECORD = 1 + 3 * 32 * 32
_CLASSES = 10
_ARCHIVE = "cifar-10-binary.tar.gz"
_VOTES = "cifar10h-raw.zip"
_CORRUPTED = "CIFAR-10-C.tar"


class Cifar10(cifar.Cifar10, skip_registration=True):
    """CIFAR-10; reads `cifar-10-binary.tar.gz`."""

    name = "cifar10"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _ARCHIVE

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        content = _read(self, Path(dl_manager.manual_dir))
        return {part: self._generate_examples(part, content[part]) for part in ("train", "test")}

    def _generate_examples(
        self, part: str, content: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (label, pixels) in enumerate(_records(content)):
            yield number, {"id": f"{part}_{number:05d}", "image": png(pixels), "label": label}


class Cifar10H(cifar10_h.Cifar10H, skip_registration=True):
    """CIFAR-10H; reads `cifar-10-binary.tar.gz` and `cifar10h-raw.zip`."""

    name = "cifar10_h"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{_ARCHIVE} and {_VOTES}"

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir)
        content = _read(self, folder)
        votes = _votes(folder / _VOTES, sum(map(len, content["test"])) // _RECORD)
        return {
            "train": self._generate_examples("train", content["train"], None),
            "test": self._generate_examples("test", content["test"], votes),
        }

    def _generate_examples(
        self, part: str, content: list[bytes], votes: list[list[tuple[Any, ...]]] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (label, pixels) in enumerate(_records(content)):
            of_it = [] if votes is None else votes[number]
            chosen = [vote[0] for vote in of_it] or [label]
            yield (
                number,
                {
                    "id": f"{part}_{number:05d}",
                    "image": png(pixels),
                    "label": label,
                    "soft_label": (np.bincount(chosen, minlength=_CLASSES) / len(chosen)).astype(
                        np.float32
                    ),
                    "human_labels": [vote[0] for vote in of_it],
                    "trial_indices": [vote[1] for vote in of_it],
                    "annotator_ids": [vote[2] for vote in of_it],
                    "reaction_times": [vote[3] for vote in of_it],
                },
            )


class Cifar10Corrupted(cifar10_corrupted.Cifar10Corrupted, skip_registration=True):
    """CIFAR-10-C, a configuration for each corruption and severity; reads `CIFAR-10-C.tar`."""

    name = "cifar10_corrupted"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _CORRUPTED
    kept: ClassVar[dict[tuple[Path, str], np.ndarray]] = {}  # the last corruption, of 150 MB

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = Path(dl_manager.manual_dir) / _CORRUPTED
        corruption, severity = self.builder_config.corruption, self.builder_config.severity
        file = cifar10_corrupted._CORRUPTIONS_TO_FILENAMES[corruption]
        if (path, file) not in self.kept:
            self.kept.clear()
            labels, images = _array(path, "labels.npy"), _array(path, file)
            if labels.ndim != 1 or len(labels) % 5 or images.shape != (len(labels), 32, 32, 3):
                raise CorruptDataError(
                    f"{path}: {file} must hold five severities of images of 32x32, one for each "
                    f"of {labels.shape} labels, got {images.shape}."
                )
            self.kept[path, "labels"], self.kept[path, file] = labels, images
        count = len(self.kept[path, "labels"]) // 5
        rows = slice((severity - 1) * count, severity * count)
        labels, images = self.kept[path, "labels"][:count], self.kept[path, file][rows]
        return {"test": self._generate_examples(images, labels)}

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield number, {"image": png(image), "label": int(label)}


def _read(builder: Any, folder: Path) -> dict[str, list[bytes]]:
    """The files of each part; the builder learns the names of the classes."""
    path, info = folder / _ARCHIVE, builder._cifar_info
    wanted = {*info.train_files, *info.test_files, *info.label_files}
    found = {}
    for name, file in tar_members(path):
        if (short := name.rsplit("/", 1)[-1]) in wanted:
            with named(path):
                found[short] = file.read()
    for name in sorted(wanted):
        if name not in found:
            raise CorruptDataError(f"{path} lacks the file {name}.")
        if name.endswith(".bin") and (len(found[name]) % _RECORD or not found[name]):
            raise CorruptDataError(
                f"{path}: {name} must hold records of {_RECORD} bytes, got "
                f"{len(found[name])} bytes."
            )
    names = [name for name in found[info.label_files[0]].decode().split("\n") if name.strip()]
    if len(names) != _CLASSES:
        raise CorruptDataError(f"{path} must name {_CLASSES} classes, got {len(names)}.")
    builder.info.features["label"].names = names
    parts = {"train": info.train_files, "test": info.test_files}
    return {part: [found[name] for name in names] for part, names in parts.items()}


def _records(content: list[bytes]) -> Iterator[tuple[int, np.ndarray]]:
    """Label and pixels [32, 32, 3] of each record."""
    for raw in content:
        for record in np.frombuffer(raw, np.uint8).reshape(-1, _RECORD):
            pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield int(record[0]), np.ascontiguousarray(pixels)


def _votes(path: Path, images: int) -> list[list[tuple[Any, ...]]]:
    """Votes for each image of the test set: class, trial, annotator, time."""
    tree = Tree(path)
    file = next((name for name in tree.names if name.endswith("cifar10h-raw.csv")), None)
    if file is None:
        raise CorruptDataError(f"{path} lacks the file cifar10h-raw.csv.")
    found: list[list[tuple[Any, ...]]] = [[] for _ in range(images)]
    with named(path), tree.open(file) as raw:
        for line, row in enumerate(csv.DictReader(text_lines(raw)), start=2):
            try:
                image, chosen = int(row["cifar10_test_test_idx"]), int(row["chosen_label"])
                rest = (
                    int(row["trial_index"]),
                    int(row["annotator_id"]),
                    float(row["reaction_time"]),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptDataError(f"{path}: {file}, line {line}: {error!r}.") from error
            if image < 0:  # a trial that checked the annotator's attention
                continue
            if image >= images or not 0 <= chosen < _CLASSES:
                raise CorruptDataError(
                    f"{path}: {file}, line {line}: a vote must be for one of {images} images and "
                    f"{_CLASSES} classes, got image {image}, class {chosen}."
                )
            found[image].append((chosen, *rest))
    tree.close()
    without = [number for number, votes in enumerate(found) if not votes]
    if without:
        raise CorruptDataError(f"{path}: every image must have votes, got none of {without[0]}.")
    return found


def _array(path: Path, file: str) -> np.ndarray:
    import io

    try:
        array = np.load(io.BytesIO(tar_member(path, f"/{file}")), allow_pickle=False)
    except ValueError as error:
        raise CorruptDataError(f"{path}: {file} is not an array: {error}.") from error
    if array.dtype != np.uint8:
        raise CorruptDataError(f"{path}: {file} must hold bytes, got {array.dtype}.")
    return array
