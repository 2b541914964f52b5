"""How each data set is brought: what is downloaded, and what is made of it.

A recipe makes parts below a folder, as they will lie below the data folder, and yields after each
part that is of use alone, so that what is finished need not be made again.
"""

import gzip
import importlib
import io
import shutil
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np

from calmoe_jax.data.errors import CorruptDataError, MissingDataError, PreparationError
from calmoe_jax.data.sets._fetch import Remote, difference, fetch
from calmoe_jax.data.sets.archives import tar_member
from calmoe_jax.data.sets.catalogue import DOMAINNET_DOMAINS, SETS, newest_version

_BUILDERS = "calmoe_jax.data.tfds.builders"
_VADER = Remote(
    "https://github.com/cjhutto/vaderSentiment/raw/18c86513ea60b02fce8f3b1b598da43042d91b08/"
    "additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014.tar.gz",
    2338514,
    "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
)
_WILDS = Remote(
    "https://worksheets.codalab.org/rest/bundles/0x8cd3de0634154aeaad2ee6eb96723c6e/contents/blob/",
    "civilcomments_v1.0.tar.gz",
)
_OPENML = {"usps": 41082, "optdigits": 28}
_SIDES = {"usps": 16, "optdigits": 8}


class Workshop(NamedTuple):
    """Where a recipe works.

    Attributes:
        made: the folder for what it makes.
        there: the data folder, for parts that are finished.
        downloads: the folder for its downloads, which are kept until it is done.
        manual: the folder of manual downloads.
        quiet: whether to show no progress.
    """

    made: Path
    there: Path
    downloads: Path
    manual: Path
    quiet: bool

    def get(self, remote: Remote) -> Path:
        """A file: the user's own, if it is among the manual downloads, or downloaded."""
        own = self.manual / remote.name
        if not own.is_file():
            return fetch(remote, self.downloads, quiet=self.quiet)
        if (wrong := difference(remote, own)) is not None:
            raise PreparationError(f"{own} {wrong}: it is another file than {remote.url}.")
        return own

    def file(self, name: str) -> Path:
        """The path of a file to make, in an existing folder."""
        path = self.made / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def build(self, module: str, builder: str, config: str | None = None) -> None:
        """Prepares a data set of tensorflow-datasets from downloads that are there."""
        tfds = tensorflow_datasets()
        kind = getattr(importlib.import_module(f"{_BUILDERS}.{module}"), builder)
        own = SETS[kind.name].manual if kind.name in SETS else ()
        manual = self.manual if any((self.manual / name).exists() for name in own) else None
        made = kind(data_dir=self.made, config=config, file_format="array_record")
        options = tfds.download.DownloadConfig(
            manual_dir=manual or self.downloads,
            try_download_gcs=False,
        )
        scratch = self.made / ".scratch"
        with _bars(tfds, quiet=self.quiet):
            made.download_and_prepare(download_dir=scratch, download_config=options)
        shutil.rmtree(scratch)


def tensorflow_datasets() -> Any:
    """The package, or an error that names the extra that brings it."""
    from calmoe_jax.data.tfds._builder import tensorflow_datasets as found

    return found()


def of_tfds(url: str, name: str) -> Remote:
    """A download of tensorflow-datasets, with the size and the checksum that it knows."""
    tensorflow_datasets()
    checksums = importlib.import_module("tensorflow_datasets.core.download.checksums")
    known = checksums.get_all_url_infos().get(url)
    if known is None:
        return Remote(url, name)
    return Remote(url, name, int(known.size), known.checksum)


def remotes(name: str) -> tuple[Remote, ...]:
    """What is downloaded for a data set, or for one domain of it (`domainnet/sketch`)."""
    name, _, domain = name.partition("/")
    if name == "sentiment4":
        return (_VADER,)
    if name == "wilds_civil_comments":
        return (_WILDS,)
    tensorflow_datasets()
    images = "tensorflow_datasets.image_classification"
    if name in ("mnist", "fashion_mnist"):
        mnist = importlib.import_module(f"{images}.mnist")
        base = (mnist.MNIST if name == "mnist" else mnist.FashionMNIST).URL
        files = [file.rpartition("/")[2] for file in SETS[name].files]
        return tuple(of_tfds(f"{base}{file}", file) for file in files)
    if name in ("cifar10", "cifar10_h"):
        votes = Remote(
            "https://github.com/jcpeterson/cifar-10h/raw/master/data/cifar10h-raw.zip",
            "cifar10h-raw.zip",
        )
        url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
        pixels = of_tfds(url, "cifar-10-binary.tar.gz")
        return (pixels,) if name == "cifar10" else (pixels, votes)
    if name == "cifar10_corrupted":
        corrupted = importlib.import_module(f"{images}.cifar10_corrupted")
        return (of_tfds(corrupted._DOWNLOAD_URL, "CIFAR-10-C.tar"),)
    if name == "civil_comments_identities":
        comments = importlib.import_module("tensorflow_datasets.text.civil_comments")
        return (of_tfds(comments._DOWNLOAD_URL, "civil_comments_v1.2.zip"),)
    upstream = importlib.import_module(f"{images}.domainnet.domainnet").Domainnet
    image = {config.name: config.img_url for config in upstream.BUILDER_CONFIGS}[domain]
    return (
        of_tfds(f"{upstream._BASE_URL}/{image}", f"{domain}.zip"),
        *(
            of_tfds(
                f"{upstream._BASE_URL}/domainnet/txt/{domain}_{part}.txt", f"{domain}_{part}.txt"
            )
            for part in ("train", "test")
        ),
    )


def shared_downloads(name: str, other: str) -> tuple[str, ...]:
    """The names of the downloads that two data sets have in common."""
    if {name, other} != {"cifar10", "cifar10_h"}:
        return ()
    others = remotes(other)
    return tuple(remote.name for remote in remotes(name) if remote in others)


def _files(name: str, shop: Workshop) -> Iterator[None]:
    """Files that are served as the tasks read them."""
    for remote in remotes(name):
        shutil.copyfile(shop.get(remote), shop.file(f"{name}/{remote.name}"))
    yield


def _sentiment4(name: str, shop: Workshop) -> Iterator[None]:
    (remote,) = remotes(name)
    archive = shop.get(remote)
    for stem in ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets"):
        tar_member(archive, f"/{stem}_anonDataRatings.txt")  # it is whole
    shutil.copyfile(archive, shop.file(SETS[name].files[0]))
    yield


def _openml(name: str, shop: Workshop) -> Iterator[None]:
    """Digits by scikit-learn, as images of whole numbers."""
    from sklearn.datasets import fetch_openml

    with _by_scikit_learn(name):
        found = fetch_openml(
            data_id=_OPENML[name], data_home=shop.downloads, as_frame=False, parser="liac-arff"
        )
    images, labels = digits_of_openml(name, found.data, found.target)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    shop.file(SETS[name].files[0]).write_bytes(buffer.getvalue())
    yield


@contextmanager
def _by_scikit_learn(name: str) -> Iterator[None]:
    """What its fetchers raise, as errors that name the data set; that they try again is no news."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise PreparationError(f"{name} could not be downloaded: {error}.") from error
    except (ValueError, KeyError, EOFError, tarfile.TarError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk
            raise
        raise CorruptDataError(
            f"what was downloaded of {name} is not complete: {error}."
        ) from error


def digits_of_openml(
    name: str, data: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, side, side] of bytes and labels 0 to 9.

    USPS comes with pixels in [-1, 1] and the labels 1 to 10 for the digits 0 to 9.
    """
    side = _SIDES[name]
    pixels, digits = np.asarray(data, np.float64), np.asarray(target).astype(np.float64)
    if pixels.ndim != 2 or pixels.shape[1] != side * side or digits.shape != pixels.shape[:1]:
        raise CorruptDataError(
            f"openml {name} must hold {side * side} pixels and a label a row, got {pixels.shape} "
            f"and {digits.shape}."
        )
    if name == "usps":
        pixels, digits = (pixels + 1) * 127.5, digits - 1
    white = 255 if name == "usps" else 16
    for what, values, high in (("pixels", pixels, white), ("labels", digits, 9)):
        if not (np.min(values) > -0.5 and np.max(values) < high + 0.5):
            raise CorruptDataError(
                f"openml {name}: {what} must be in [0, {high}] once scaled, got "
                f"{np.min(values)} to {np.max(values)}."
            )
    images = np.rint(pixels).astype(np.uint8).reshape(-1, side, side)
    return images, np.rint(digits).astype(np.int32)


def _newsgroups(name: str, shop: Workshop) -> Iterator[None]:
    """A line for each post: its group, a tab and its text. Posts without a word are left out."""
    from sklearn.datasets import fetch_20newsgroups

    own = [file for file in SETS[name].files if (shop.there / file).is_file()]
    lacking = [file for file in SETS[name].files if file not in own]
    if own:
        raise MissingDataError(
            f"{shop.there / lacking[0]} is lacking beside {own[0]}, which may be of another "
            f"edition than what {name} is downloaded as: training and test would differ by that. "
            f"Put the file that is lacking there, or move the other away."
        )
    for part, file in zip(("train", "test"), SETS[name].files, strict=True):
        with _by_scikit_learn(name):
            found = fetch_20newsgroups(data_home=shop.downloads, subset=part, shuffle=False)
        lines = []
        for group, text in zip(found.target, found.data, strict=True):
            if words := " ".join(text.split()):
                lines.append(f"{found.target_names[group]}\t{words}\n")
        shop.file(file).write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    yield


def _tfds(module: str, builder: str, config: str | None = None) -> Callable[..., Iterator[None]]:
    """Downloads that one builder reads."""

    def recipe(name: str, shop: Workshop) -> Iterator[None]:
        tensorflow_datasets()
        for remote in remotes(name):
            _placed(shop, remote)
        shop.build(module, builder, config)
        yield

    return recipe


def _manual(module: str, builder: str) -> Callable[..., Iterator[None]]:
    """What the user downloaded."""

    def recipe(name: str, shop: Workshop) -> Iterator[None]:
        if not any((shop.manual / each).exists() for each in SETS[name].manual):
            raise MissingDataError(
                f"{name} must be downloaded by hand: put {' or '.join(SETS[name].manual)} into "
                f"{shop.manual}, or name the folder that holds it with --manual-dir. It is at "
                f"{SETS[name].source}: {SETS[name].size}, {SETS[name].licence}."
            )
        shop.build(module, builder)
        yield

    return recipe


def _wilds(name: str, shop: Workshop) -> Iterator[None]:
    if not any((shop.manual / each).exists() for each in SETS[name].manual):
        tensorflow_datasets()
        _placed(shop, *remotes(name))
    shop.build("comments", "WildsCivilComments")
    yield


def _corrupted(name: str, shop: Workshop) -> Iterator[None]:
    tensorflow_datasets()
    _placed(shop, *remotes(name))
    try:
        for record in SETS[name].records:
            if newest_version(shop.there / record) is None:
                shop.build("cifar", "Cifar10Corrupted", record.partition("/")[2])
                yield
    finally:  # what it keeps between configurations
        importlib.import_module(f"{_BUILDERS}.cifar").Cifar10Corrupted.kept.clear()


def _domainnet(name: str, shop: Workshop) -> Iterator[None]:
    tensorflow_datasets()
    for domain in DOMAINNET_DOMAINS:
        if newest_version(shop.there / "domainnet64" / domain) is None:
            files = [_placed(shop, remote) for remote in remotes(f"{name}/{domain}")]
            shop.build("domainnet", "Domainnet64", domain)
            yield
            for file in files:  # gigabytes that are not needed again
                file.unlink()


def _placed(shop: Workshop, remote: Remote) -> Path:
    """A download in the folder that builders read, which the user's own file is linked into."""
    found, place = shop.get(remote), shop.downloads / remote.name
    if found != place:
        place.unlink(missing_ok=True)
        place.symlink_to(found.resolve())
    return place


@contextmanager
def _bars(tfds: Any, *, quiet: bool) -> Iterator[None]:
    """Bars of tensorflow-datasets where there is a terminal to see them, and nothing else of it."""
    if quiet or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()


RECIPES: dict[str, Callable[[str, Workshop], Iterator[None]]] = {
    "mnist": _files,
    "fashion_mnist": _files,
    "usps": _openml,
    "optdigits": _openml,
    "sentiment4": _sentiment4,
    "newsgroups": _newsgroups,
    "cifar10": _tfds("cifar", "Cifar10"),
    "cifar10_h": _tfds("cifar", "Cifar10H"),
    "cifar10_corrupted": _corrupted,
    "pacs": _manual("domains", "Pacs"),
    "office_home": _manual("domains", "OfficeHome"),
    "wilds_civil_comments": _wilds,
    "civil_comments_identities": _tfds("comments", "CivilComments", "CivilCommentsIdentities"),
    "domainnet": _domainnet,
}
