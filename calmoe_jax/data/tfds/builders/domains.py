"""PACS and Office-Home: a folder for each domain, and in it one for each class."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from calmoe_jax.data.errors import CorruptDataError, MissingDataError
from calmoe_jax.data.sets.archives import Tree
from calmoe_jax.data.sets.catalogue import PACS_DOMAINS, SETS
from calmoe_jax.data.tfds.builders._pictures import SIZE, small_jpeg

_IMAGES = (".jpg", ".jpeg", ".png")

PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
OFFICE_HOME_DOMAINS = ("art", "clipart", "product", "real_world")
OFFICE_HOME_CLASSES = tuple(
    """
    alarm_clock backpack batteries bed bike bottle bucket calculator calendar candles chair
    clipboards computer couch curtains desk_lamp drill eraser exit_sign fan file_cabinet flipflops
    flowers folder fork glasses hammer helmet kettle keyboard knives lamp_shade laptop marker
    monitor mop mouse mug notebook oven pan paper_clip pen pencil postit_notes printer push_pin
    radio refrigerator ruler scissors screwdriver shelf sink sneakers soda speaker spoon tv table
    telephone toothbrush toys trash_can webcam
    """.split()
)


class _Domains(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of several domains, a split for each, in the order of their files' names.

    Takes a zip archive or a folder, whichever of the catalogue's names is among the manual
    downloads; files must lie as `.../DOMAIN/CLASS/FILE`, whatever is above.
    """

    VERSION = tfds.core.Version("1.0.0")
    domains: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg"),
            "file": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=self.classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = manual_download(self.name, Path(dl_manager.manual_dir))
        tree = Tree(path)
        found = self._found(tree)
        return {domain: self._generate_examples(tree, found[domain]) for domain in self.domains}

    def _generate_examples(
        self, tree: Tree, files: list[tuple[str, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (name, label) in enumerate(files):
            image = small_jpeg(tree.read(name), f"{tree.path}: {name}")
            short = "/".join(name.split("/")[-3:])
            yield number, {"image": image, "file": short, "label": label}

    def _found(self, tree: Tree) -> dict[str, list[tuple[str, int]]]:
        """Files and labels of each domain."""
        domains = {_squeezed(domain): domain for domain in self.domains}
        labels = {_squeezed(name): label for label, name in enumerate(self.classes)}
        found: dict[str, list[tuple[str, int]]] = {domain: [] for domain in self.domains}
        for name in tree.names:
            parts = name.split("/")
            hidden = any(part.startswith((".", "__")) for part in parts)
            if hidden or len(parts) < 3 or not name.lower().endswith(_IMAGES):
                continue
            domain = domains.get(_squeezed(parts[-3]))
            if domain is None:
                continue
            label = labels.get(_squeezed(parts[-2]))
            if label is None:
                raise CorruptDataError(
                    f"{tree.path}: {name}: the class must be one of {', '.join(self.classes)}, got "
                    f"{parts[-2]!r}."
                )
            found[domain].append((name, label))
        for domain, files in found.items():
            absent = set(range(len(self.classes))) - {label for _, label in files}
            if not files:
                raise CorruptDataError(
                    f"{tree.path} lacks the domain {domain}: there must be images in folders "
                    f"DOMAIN/CLASS for each of {', '.join(self.domains)}."
                )
            if absent:
                raise CorruptDataError(
                    f"{tree.path}: the domain {domain} must have images of every class, got none "
                    f"of {', '.join(self.classes[label] for label in sorted(absent))}."
                )
        return found


class Pacs(_Domains, skip_registration=True):
    """PACS (Li et al. 2017) at 64x64; splits art_painting, cartoon, photo, sketch."""

    name = "pacs"
    domains, classes = PACS_DOMAINS, PACS_CLASSES
    MANUAL_DOWNLOAD_INSTRUCTIONS = "PACS.zip, or the folder PACS or kfold."


class OfficeHome(_Domains, skip_registration=True):
    """Office-Home (Venkateswara et al. 2017) at 64x64; splits art, clipart, product, real_world."""

    name = "office_home"
    domains, classes = OFFICE_HOME_DOMAINS, OFFICE_HOME_CLASSES
    MANUAL_DOWNLOAD_INSTRUCTIONS = "OfficeHomeDataset_10072016.zip, or the folder of that name."


def manual_download(name: str, folder: Path) -> Path:
    """What the user downloaded of a data set, under one of the names in the catalogue."""
    names = SETS[name].manual
    for each in names:
        if (folder / each).exists():
            return folder / each
    raise MissingDataError(
        f"{name} must be downloaded by hand: put {' or '.join(names)} into {folder} (from "
        f"{SETS[name].source}), or name the folder that holds it with --manual-dir."
    )


def _squeezed(name: str) -> str:
    """A name without case, blanks and signs: folders are spelled in several ways."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
