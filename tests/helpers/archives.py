"""Tiny archives in the true layout of data sets, as bytes."""

import csv
import gzip
import hashlib
import io
import json
import zipfile

import numpy as np
import texts
from PIL import Image
from texts import GROUPS, babble

CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def idx_files(train=400, test=60):
    rng = np.random.RandomState(0)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        files[f"{part}-images-idx3-ubyte.gz"] = idx(rng.randint(0, 256, (count, 28, 28)))
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(np.arange(count) % 10)
    return files


def tar(content, *, compressed=True):
    """The same bytes at every time."""
    plain = gzip.decompress(texts.tar(content))
    return gzip.compress(plain, mtime=0) if compressed else plain


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)
    return buffer.getvalue()


def picture(seed, size=(30, 20), form="JPEG"):
    pixels = np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def cifar(per_file=12, **replaced):
    """Images of noise, those of `cifar_pixels`; named files are replaced, or left out for None."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    content = {"batches.meta.txt": "\n".join([*CIFAR_CLASSES, "", ""]).encode()}
    for number, name in enumerate(names):
        labels, pixels = cifar_pixels(number, per_file)
        planes = pixels.transpose(0, 3, 1, 2).reshape(per_file, -1)
        content[f"{name}.bin"] = np.concatenate([labels[:, None], planes], axis=1).tobytes()
    content |= {name.replace("__", "."): raw for name, raw in replaced.items()}
    return tar({f"cifar-10-batches-bin/{n}": raw for n, raw in content.items() if raw is not None})


def cifar_pixels(number, count):
    rng = np.random.RandomState(number)
    labels = ((np.arange(count) + number) % 10).astype(np.uint8)
    return labels, rng.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def votes(images=12, **replaced):
    """Five votes an image, of which image `i` has `i % 4` for the next class; and a check."""
    labels, _ = cifar_pixels(5, images)
    columns = ("annotator_id", "trial_index", "is_attn_check", "chosen_label", "reaction_time")
    rows = []
    for image in range(images):
        for annotator in range(5):
            chosen = (labels[image] + (annotator < image % 4)) % 10
            rows.append([annotator, image, 0, chosen, 1500.5, image])
        rows.append([9, 200, 1, 3, 900.0, -99999])
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow([*columns, "cifar10_test_test_idx"])
    table.writerows(rows)
    content = {"cifar10h-raw.csv": text.getvalue().encode()} | replaced
    return zipped({name: raw for name, raw in content.items() if raw is not None})


def corrupted(names, images=3):
    """Five severities of each corruption; the pixel is the corruption's number and the row's."""
    content = {"labels": np.tile(np.arange(images), 5).astype(np.uint8)}
    for number, name in enumerate(names):
        rows = np.arange(5 * images, dtype=np.uint8)[:, None, None, None]
        content[name] = np.broadcast_to(10 * number + rows, (5 * images, 32, 32, 3))
    return corrupted_arrays(content)


def corrupted_arrays(content):
    """Arrays by name, as CIFAR-10-C lies in its archive."""
    files = {}
    for name, array in content.items():
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(array))
        files[f"CIFAR-10-C/{name}.npy"] = buffer.getvalue()
    return tar(files, compressed=False)


def domains(folders, classes, images, top="kfold"):
    """Images in folders of domains and classes, by path."""
    paths = [f"{f}/{c}/pic_{i:03d}.jpg" for f in folders for c in classes for i in range(images)]
    return {f"{top}/{path}": picture(seed) for seed, path in enumerate(paths)}


def comments(train=260, validation=40, test=60):
    """Rows of WILDS's table by name of column."""
    rng = np.random.RandomState(0)
    rows = []
    for split, count in (("train", train), ("val", validation), ("test", test)):
        for number in range(count):
            toxic = number % 3 == 0
            row = {"": len(rows), "id": 239600 + len(rows), "split": split}
            row["comment_text"] = f'{babble(rng, "toxic" if toxic else "civil")}\nsaid "he", they'
            row["toxicity"] = 0.5 if toxic else 0.4999
            row |= {name: (number % (i + 4) == 0) / 2 for i, name in enumerate(IDENTITIES)}
            row["identity_any"] = max(row[name] for name in IDENTITIES)
            rows.append(row)
    return rows


def comments_csv(rows, newline="\n"):
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator=newline)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def newsgroups(train=3, test=2):
    rng = np.random.RandomState(0)
    content = {}
    for part, count in (("train", train), ("test", test)):
        for number, group in enumerate(GROUPS):
            for i in range(count):
                text = f"From: someone\nSubject: {group}\n\n{babble(rng, group[:3])}\tha\xe9\n"
                name = f"20news-bydate-{part}/{group}/{100 * number + i}"
                content[name] = text.encode("latin-1")
    return tar(content)


def openml(name, data_id, pixels, labels, url):
    """What its server answers, by path; the table in the format ARFF."""
    columns = [f"v{i}" for i in range(pixels.shape[1])]
    classes = sorted({int(label) for label in labels})
    lines = [f"@relation {name}", *(f"@attribute {column} numeric" for column in columns)]
    lines += [f"@attribute class {{{','.join(map(str, classes))}}}", "@data"]
    for row, label in zip(pixels.tolist(), labels.tolist(), strict=True):
        lines.append(",".join(map(str, [*row, int(label)])))
    table = "\n".join(lines).encode()
    features = [
        {
            "index": str(i), "name": column, "data_type": "numeric", "is_target": "false",
            "is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0",
        }
        for i, column in enumerate(columns)
    ]  # fmt: skip
    target = {"index": str(len(columns)), "name": "class", "data_type": "nominal"}
    features.append(features[0] | target | {"is_target": "true"})
    description = {
        "id": str(data_id), "name": name, "version": "1", "format": "ARFF", "status": "active",
        "description": "tiny",
        "file_id": "7", "default_target_attribute": "class", "url": f"{url}/table.arff",
        "md5_checksum": hashlib.md5(table).hexdigest(),
    }  # fmt: skip
    qualities = [{"name": "NumberOfInstances", "value": str(float(len(labels)))}]
    return {
        f"info/{data_id}": json.dumps({"data_set_description": description}).encode(),
        f"features/{data_id}": json.dumps({"data_features": {"feature": features}}).encode(),
        f"qualities/{data_id}": json.dumps({"data_qualities": {"quality": qualities}}).encode(),
        "table.arff": table,
    }
