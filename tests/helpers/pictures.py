"""Small files in the layout of the tasks of colour images."""

import io

import numpy as np
from PIL import Image


def picture(label, seed, size):
    """A colour gradient by the label, and some noise."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin((label + 1) * x + c) + np.cos((c + 1) * y + label) for c in range(3)]
    return np.clip(127 + 50 * np.stack(waves, -1) + 8 * rng.randn(size, size, 3), 0, 255).astype(
        np.uint8
    )


def jpeg_of(pixels, *, kind="JPEG", quality=75):
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind, quality=quality)
    return written.getvalue()


def decoded(raw):
    return np.asarray(Image.open(io.BytesIO(raw)))


def arrays_of(files, labels, **more):
    """The arrays of an npz file of JPEG files."""
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "ends": np.cumsum([len(file) for file in files]),
        "labels": np.array(labels, np.uint8),
        **more,
    }


def write(folder, name, arrays):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def votes_on(labels, seed=0):
    """About twenty votes an image: most agree, some do not, and some err together."""
    rng = np.random.RandomState(seed)
    sure = np.array([0.99, 0.8, 0.6])[np.arange(len(labels)) % 3]
    counts = [
        rng.multinomial(20, np.where(np.arange(10) == label, p, (1 - p) / 9))
        for label, p in zip(labels, sure, strict=True)
    ]
    return np.array(counts, np.uint8)


def cifar(count=120, tested=40):
    """The arrays of the two files of CIFAR-10."""
    made = {}
    for name, size, seed in (("train", count, 0), ("test", tested, 1)):
        labels = np.arange(size) % 10
        files = [jpeg_of(picture(y, 1000 * seed + i, 32)) for i, y in enumerate(labels)]
        made[name] = arrays_of(files, labels)
    made["test"]["human_counts"] = votes_on(made["test"]["labels"])
    return made


def write_cifar(folder, made):
    for name, arrays in made.items():
        write(folder, f"cifar10/{name}.npz", arrays)
    return folder


def write_pacs(folder, count=30):
    domains = "art_painting", "cartoon", "photo", "sketch"
    for number, domain in enumerate(domains):
        labels = np.arange(count + number) % 7
        files = [jpeg_of(picture(y, 100 * number + i, 64)) for i, y in enumerate(labels)]
        write(folder, f"pacs/{domain}.npz", arrays_of(files, labels))
    return folder
