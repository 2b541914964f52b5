"""DomainNet at 64x64, with the classes and the addresses of tensorflow-datasets' builder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification.domainnet import domainnet

from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.sets.archives import Tree
from calmoe_jax.data.tfds.builders._pictures import SIZE, small_jpeg

PARTS = ("train", "test")


class Domainnet64(domainnet.Domainnet, skip_registration=True):
    """DomainNet (Peng et al. 2019) reduced to 64x64, a configuration for each domain.

    Reads DOMAIN.zip, DOMAIN_train.txt and DOMAIN_test.txt; the original size of 17 GB is not kept.
    """

    name = "domainnet64"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "DOMAIN.zip, DOMAIN_train.txt and DOMAIN_test.txt"

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
            "file": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=domainnet._CLASS_NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder, domain = Path(dl_manager.manual_dir), self.builder_config.name
        tree = Tree(folder / f"{domain}.zip")
        lists = {part: _listed(folder / f"{domain}_{part}.txt", tree) for part in PARTS}
        return {part: self._generate_examples(tree, lists[part]) for part in PARTS}

    def _generate_examples(
        self, tree: Tree, files: list[tuple[str, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (name, label) in enumerate(files):
            image = small_jpeg(tree.read(name), f"{tree.path}: {name}")
            yield number, {"image": image, "file": name, "label": label}


def _listed(path: Path, tree: Tree) -> list[tuple[str, int]]:
    """Names and labels of a list; all of them must be in the archive."""
    names, found = set(tree.names), []
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        if not text.strip():
            continue
        name, _, label = text.strip().rpartition(" ")
        if not label.isdigit() or int(label) >= len(domainnet._CLASS_NAMES):
            raise CorruptDataError(
                f"{path}, line {line}: a line must be a file and a class below "
                f"{len(domainnet._CLASS_NAMES)}, got {text!r:.80}."
            )
        if name not in names:
            raise CorruptDataError(
                f"{tree.path} lacks the file {name}, line {line} of {path.name}."
            )
        found.append((name, int(label)))
    if not found:
        raise CorruptDataError(f"{path} must list images, got none.")
    return found
