"""What data sets there are: size, licence, files, and how they are found below the data folder.

A data set is there as files of its own, or as what tensorflow-datasets prepared in the format
array_record. Tasks read either.
"""

from pathlib import Path
from typing import NamedTuple

_TFDS_INDEX = "dataset_info.json"  # of a version's folder; written last


class DataSet(NamedTuple):
    """A data set that tasks are made of.

    Attributes:
        summary: a one-line description.
        licence: its licence, or the use that its authors allow.
        size: size of what is downloaded, in words.
        room: megabytes of disk that preparing needs, downloads included.
        files: files below the data folder that hold it.
        records: folders below the data folder, each with versions that tensorflow-datasets
            prepared, that hold it as well.
        source: where it is published.
        manual: names, in the folder of manual downloads, of what the user must download; any of
            them will do. Empty if it is downloaded.
    """

    summary: str
    licence: str
    size: str
    room: int
    files: tuple[str, ...]
    records: tuple[str, ...] = ()
    source: str = ""
    manual: tuple[str, ...] = ()

    def is_here(self, data_dir: Path | None) -> bool:
        """Whether all of it is below the data folder, in either form."""
        if data_dir is None:
            return False
        by_file = bool(self.files) and all((data_dir / name).is_file() for name in self.files)
        return by_file or self.has_records(data_dir)

    def has_records(self, data_dir: Path) -> bool:
        """Whether tensorflow-datasets prepared all of it there."""
        return bool(self.records) and all(
            newest_version(data_dir / name) is not None for name in self.records
        )


def newest_version(folder: Path) -> Path | None:
    """The folder of the newest version that was prepared, if there is one."""
    found = {}
    for index in folder.glob(f"*/{_TFDS_INDEX}"):
        parts = index.parent.name.split(".")
        if len(parts) == 3 and all(part.isdigit() for part in parts):
            found[tuple(int(part) for part in parts)] = index.parent
    return found[max(found)] if found else None


def _idx(folder: str) -> tuple[str, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(f"{folder}/{part}-ubyte.gz" for part in parts)


PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
DOMAINNET_DOMAINS = ("real", "clipart", "infograph", "painting", "quickdraw", "sketch")
CORRUPTIONS_OF_CIFAR = (
    "brightness", "contrast", "defocus_blur", "elastic", "fog", "frost", "frosted_glass_blur",
    "gaussian_blur", "gaussian_noise", "impulse_noise", "jpeg_compression", "motion_blur",
    "pixelate", "saturate", "shot_noise", "snow", "spatter", "speckle_noise", "zoom_blur",
)  # fmt: skip

SETS: dict[str, DataSet] = {
    "mnist": DataSet(
        "handwritten digits, 60,000 and 10,000 images of 28x28",
        "cited as CC BY-SA 3.0; LeCun, Cortes, Burges",
        "11.6 MB",
        25,
        _idx("mnist"),
        source="tensorflow-datasets mnist",
    ),
    "fashion_mnist": DataSet(
        "articles of clothing, 60,000 and 10,000 images of 28x28",
        "MIT; Xiao, Rasul, Vollgraf",
        "30.9 MB",
        65,
        _idx("fashion_mnist"),
        source="tensorflow-datasets fashion_mnist",
    ),
    "usps": DataSet(
        "digits on envelopes, 9,298 images of 16x16",
        "research use; Hull 1994",
        "at most 25 MB",
        60,
        ("usps/usps.npz",),
        source="openml 41082, by scikit-learn",
    ),
    "optdigits": DataSet(
        "digits on forms, 5,620 images of 8x8",
        "CC BY 4.0; Alpaydin, Kaynak",
        "about 1 MB",
        5,
        ("optdigits/optdigits.npz",),
        source="openml 28, by scikit-learn",
    ),
    "sentiment4": DataSet(
        "23,703 short texts of four domains, each rated by 15 to 99 people",
        "MIT; Hutto and Gilbert 2014",
        "2.3 MB",
        6,
        ("sentiment4/hutto_ICWSM_2014.tar.gz",),
        source="github.com/cjhutto/vaderSentiment",
    ),
    "newsgroups": DataSet(
        "20 Newsgroups by date, about 18,800 posts",
        "research use; Lang, Rennie",
        "14 MB",
        120,
        ("newsgroups/train.tsv.gz", "newsgroups/test.tsv.gz"),
        source="scikit-learn fetch_20newsgroups",
    ),
    "cifar10": DataSet(
        "ten classes of objects, 50,000 and 10,000 images of 32x32",
        "research use; Krizhevsky 2009",
        "170 MB",
        500,
        ("cifar10/train.npz", "cifar10/test.npz"),
        ("cifar10",),
        source="tensorflow-datasets cifar10",
    ),
    "cifar10_h": DataSet(
        "CIFAR-10's images, those of the test set with the votes of about 51 people each",
        "CC BY-NC-SA 4.0; Peterson et al. 2019",
        "about 180 MB",
        500,
        ("cifar10/test.npz",),
        ("cifar10_h",),
        source="tensorflow-datasets cifar10_h",
    ),
    "cifar10_corrupted": DataSet(
        "CIFAR-10-C: CIFAR-10's test set under 19 corruptions at five severities",
        "CC BY 4.0; Hendrycks, Dietterich 2019",
        "2.9 GB",
        6000,
        (),
        tuple(
            f"cifar10_corrupted/{name}_{severity}"
            for name in CORRUPTIONS_OF_CIFAR
            for severity in range(1, 6)
        ),
        source="tensorflow-datasets cifar10_corrupted",
    ),
    "pacs": DataSet(
        "seven classes in photos, paintings, cartoons and sketches, 9,991 images",
        "research use; Li et al. 2017",
        "about 200 MB",
        60,
        tuple(f"pacs/{domain}.npz" for domain in PACS_DOMAINS),
        ("pacs",),
        source="https://sketchx.eecs.qmul.ac.uk/downloads/",
        manual=("PACS.zip", "PACS", "kfold"),
    ),
    "office_home": DataSet(
        "65 classes in art, clip art, product pictures and photos, 15,588 images",
        "non-commercial research; Venkateswara et al. 2017",
        "about 1.1 GB",
        100,
        (),
        ("office_home",),
        source="https://www.hemanthdv.org/officeHomeDataset.html",
        manual=("OfficeHomeDataset_10072016.zip", "OfficeHomeDataset_10072016", "OfficeHome"),
    ),
    "wilds_civil_comments": DataSet(
        "448,000 comments on news by toxicity, with the identities that they mention",
        "CC0; Borkan et al. 2019, WILDS (Koh et al. 2021)",
        "90.6 MB",
        600,
        (),
        ("wilds_civil_comments",),
        source="https://wilds.stanford.edu/datasets/#civilcomments",
        manual=(
            "civilcomments_v1.0.tar.gz",
            "all_data_with_identities.csv",
            "civilcomments_v1.0",
        ),
    ),
    "civil_comments_identities": DataSet(
        "the comments of the original release that have identities, in its own splits",
        "CC0; Borkan et al. 2019",
        "448 MB",
        1500,
        (),
        ("civil_comments/CivilCommentsIdentities",),
        source="tensorflow-datasets civil_comments",
    ),
    "domainnet": DataSet(
        "345 classes in six domains, 586,575 images, kept at 64x64",
        "research use; Peng et al. 2019",
        "about 17 GB",
        9000,
        (),
        tuple(f"domainnet64/{domain}" for domain in DOMAINNET_DOMAINS),
        source="tensorflow-datasets domainnet",
    ),
}


def how_to_get(name: str) -> str:
    """The command that brings a data set, with its size and licence: the end of an error.

    Args:
        name: one of `SETS`.

    Example:
        >>> how_to_get("mnist").split("brings")[0]
        'The command `calmoe data prepare mnist` '
    """
    found = SETS[name]
    first = f" (download {found.manual[0]} from {found.source} first)" if found.manual else ""
    return (
        f"The command `calmoe data prepare {name}` brings it{first}: {found.size}, {found.licence}."
    )
