"""The paper's own study: its seven methods on its data, beside the published figures.

`python -m experiments.paper --dataset cifar10h [--quick] [--backbone NAME] [--held-out DOMAIN]
[--pretrained FILE] [--tokenizer FILE] [--seeds N] [--data-dir DIR] [--runs DIR] [--out DIR]`

The data sets are cifar10h, pacs, civil_comments and office_home; of the second and the last one
domain is left out (`--held-out`; sketch and art by default). Warm-up, objectives, seeds 42 to 46
and subsets are the paper's; PACS and Office-Home have ImageNet's ResNet-18 (give its weights),
civil_comments DistilBERT where a tokeniser is given (and its weights), otherwise features of words.
What the paper lacks stands beside its errors: accuracy, log loss, the signed gap, a converged
temperature, repair without labels, and intervals. Two sizes: the paper's (for a GPU: ResNet-18 of
width 64 with three stages on CIFAR-10H; not run yet), and `--quick`, which two cores can run (fewer
images, channels and passes; the table's head says how many). Runs go on where they stopped.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calmoe_jax._files import write_whole
from calmoe_jax.data import Task, load_tokenizer, resolve_task
from calmoe_jax.data.local import civil_comments
from calmoe_jax.data.sets import data_folder
from calmoe_jax.study import ModelConfig, Results, TrainConfig, run
from calmoe_jax.study.config import PAPER_METHODS
from experiments.features import halved
from experiments.trained import write_json

# Calibration errors as published (second-hand: reported, not verified): of CIFAR-10H's and
# CivilComments' hard subsets, and of PACS with sketches left out.
PUBLISHED: dict[str, dict[str, float]] = {
    "cifar10h": {
        "single": 0.276, "vanilla": 0.281, "mocae": 0.262, "fgr": 0.262, "robust": 0.074,
        "robust_filtered": 0.122, "fgr_robust": 0.065,
    },
    "civil_comments": {
        "single": 0.105, "vanilla": 0.108, "mocae": 0.101, "fgr": 0.065, "robust": 0.037,
        "robust_filtered": 0.040,
    },
    "pacs_sketch": {
        "single": 0.217, "vanilla": 0.183, "mocae": 0.190, "fgr": 0.176, "robust": 0.033,
        "robust_filtered": 0.065,
    },
}  # fmt: skip
CALIBRATORS = ("none", "temperature", "safe", "bold")
_METRICS = ("accuracy", "nll", "ece", "smooth_ece", "confidence_gap")
_DOMAINS = {"pacs": "sketch", "office_home": "art"}
_DIGITS = 5


class Size(NamedTuple):
    """How large a study is.

    Attributes:
        name: paper or quick.
        images: training examples at most; 0 for all.
        width: channels of the ResNet's first stage.
        epochs: passes over the training examples.
        warmup: of them with the mean loss.
        seeds: number of seeds.
    """

    name: str
    images: int
    width: int
    epochs: int
    warmup: int
    seeds: int

    @property
    def train(self) -> TrainConfig:
        """The optimisation."""
        return TrainConfig(epochs=self.epochs, warmup_epochs=self.warmup, checkpoint_every=1)

    @property
    def resnet(self) -> ModelConfig:
        """The mixture on a ResNet-18 with the stem of small images."""
        return ModelConfig(backbone="resnet18", width=self.width)


PAPER = Size("paper", 0, 64, 50, 20, 5)
QUICK = Size("quick", 4000, 8, 8, 3, 3)


def study(
    dataset: str, size: Size, *, model: dict[str, Any], held_out: str | None,
    data_dir: Path | None, runs: Path, tokenizer: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs the methods, or goes on, and gathers what the table shows.

    Args:
        dataset: cifar10h, pacs, civil_comments or office_home.
        size: how large.
        model: options of the classifier besides its width.
        held_out: the domain that is left out, where one is.
        data_dir: folder with the data.
        runs: folder of the runs.
        tokenizer: of civil_comments' texts: a vocabulary or a tokenizer.json.
    """
    name = dataset
    if dataset in _DOMAINS:
        name = f"{dataset}_{held_out or _DOMAINS[dataset]}"
    task = resolve_task(name, data_dir) if tokenizer is None else _tokens(data_dir, tokenizer)
    if size.images:
        task = smaller(task, size.images)
    options = _model_of(task, dataset, size) | model
    results = run(
        task, PAPER_METHODS, out=runs / f"{name}-{size.name}", model=ModelConfig(**options),
        train=size.train, seeds=size.seeds, data_dir=data_dir,
    )  # fmt: skip
    return {
        "dataset": name,
        "size": size._asdict() | {"images": len(task.train)},
        "model": dataclasses.asdict(ModelConfig(**options)),
        "environment": dataclasses.asdict(results.environment),
        "splits": {s.name: {"kind": s.kind, "n": s.n} for s in results.splits},
        "rows": rows_of(results),
        "intervals": [
            dataclasses.asdict(c) for c in results.comparisons
            if c.calibrator in CALIBRATORS and c.metric == "ece"
        ],
    }  # fmt: skip


def _model_of(task: Task, dataset: str, size: Size) -> dict[str, Any]:
    """The paper's backbone for a data set, of the size."""
    if isinstance(task.train.inputs, dict):
        return {"backbone": "distilbert"}
    if not task.holds_images:
        return {"backbone": "mlp"}
    if dataset in _DOMAINS and not size.images:
        return {"backbone": "resnet18", "stem": "imagenet", "width": size.width}
    return {"backbone": "resnet18", "width": size.width}


def _tokens(data_dir: Path | None, tokenizer: Path) -> Task:
    """civil_comments with tokens in place of words' features."""
    comments, tokens = (
        civil_comments.load_texts(data_folder(data_dir).path),
        load_tokenizer(tokenizer),
    )
    splits = (comments.train, comments.calibration, comments.test)
    return comments.task(*(dataclasses.replace(s, inputs=tokens(s.inputs)) for s in splits))


def smaller(task: Task, images: int) -> Task:
    """The first training examples, images of at most 32 pixels.

    Args:
        task: any.
        images: number of training examples that are kept, if there are more.
    """
    train = task.train.take(np.arange(min(images, len(task.train))), "train", "train", "a part")
    task = dataclasses.replace(task, train=train)
    return halved(task) if task.holds_images else task


def rows_of(results: Results) -> list[dict[str, Any]]:
    """For each method, split and calibrator the metrics of every seed."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for record in results.records:
        if record.calibrator not in CALIBRATORS:
            continue
        where = record.method, record.split, record.calibrator
        row = rows.setdefault(
            where,
            {"method": where[0], "split": where[1], "calibrator": where[2], "kind": record.kind}
            | {metric: [] for metric in _METRICS},
        )
        for metric in _METRICS:
            value = getattr(record, metric)
            row[metric].append(None if value is None else round(value, _DIGITS))
    return list(rows.values())


def table(found: dict[str, Any]) -> str:
    """The table in Markdown: the published figure and ours, with what the paper lacks."""
    size, published = found["size"], PUBLISHED.get(found["dataset"], {})
    target = target_of(found)
    inside = next(n for n, x in found["splits"].items() if x["kind"] == "id")
    at = {(r["method"], r["split"], r["calibrator"]): r for r in found["rows"]}
    of_interval = {(c["method"], c["calibrator"], c["split"]): c for c in found["intervals"]}
    lines = [
        f"{found['dataset']}, {size['name']} size: {size['images']:,} training examples, "
        f"{found['model']['backbone']} of width {found['model']['width']}, {size['epochs']} epochs "
        f"({size['warmup']} of warm-up), {size['seeds']} seeds; `{target}`, "
        f"{found['splits'][target]['n']:,} examples.\n",
        "| method | published ECE | ECE | against vanilla, 95 % interval | gap | accuracy | NLL | "
        "with temperature | repaired, safe | bold | in distribution: ECE | accuracy |",
        "|---" * 12 + "|",
    ]
    for method in dict.fromkeys(r["method"] for r in found["rows"]):
        plain, id_row = at[method, target, "none"], at[method, inside, "none"]
        known = published.get(method)
        c = of_interval.get((method, "none", target))
        interval = f"{c['difference']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f})" if c else "–"
        errors = [_mean(at[method, target, x], "ece") for x in CALIBRATORS[1:]]
        spread = np.std(plain["ece"], ddof=1) if len(plain["ece"]) > 1 else 0.0
        nll = plain["nll"]
        lines.append(
            f"| {method} | {'–' if known is None else f'{known:.3f}'} | "
            f"{_mean(plain, 'ece'):.3f} ± {spread:.3f} | {interval} | "
            f"{_mean(plain, 'confidence_gap'):+.3f} | {_mean(plain, 'accuracy'):.3f} | "
            f"{'inf' if None in nll else f'{np.mean(nll):.3f}'} | "
            f"{' | '.join(f'{e:.3f}' for e in errors)} | {_mean(id_row, 'ece'):.3f} | "
            f"{_mean(id_row, 'accuracy'):.3f} |"
        )
    return "\n".join(lines)


def page(folder: Path) -> str:
    """The page of a folder of results: a table for each.

    Args:
        folder: with the files that runs wrote.
    """
    parts = [
        "# The paper's study\n\n"
        "Written by `python -m experiments.paper` from the results beside it. Published figures "
        "are second-hand: reported, not verified. Pixels of CIFAR-10 are re-encoded as JPEG, PACS "
        "is reduced to 64 pixels."
    ]
    for path in sorted(folder.glob("*.json")):
        parts.append(f"{table(json.loads(path.read_text()))}\n\n{in_words(path)}")
    return "\n\n".join(parts) + "\n"


def in_words(path: Path) -> str:
    """Whether the robust objective does here what was published of it, in a sentence.

    Args:
        path: a file of results.
    """
    found = json.loads(path.read_text())
    target = target_of(found)
    at = {(r["method"], r["calibrator"]): r for r in found["rows"] if r["split"] == target}
    plain, robust = (at[name, "none"] for name in ("vanilla", "robust"))
    gap = _mean(plain, "confidence_gap")
    scaled = [_mean(at[name, "temperature"], "ece") for name in ("vanilla", "robust")]
    c = next(
        c for c in found["intervals"]
        if (c["method"], c["calibrator"], c["split"]) == ("robust", "none", target)
    )  # fmt: skip
    clear = "smaller" if c["high"] < 0 else "larger" if c["low"] > 0 else "not clearly different"
    side = "over-confident" if gap > 0 else "under-confident"
    return (
        f"The plain mixture is {side} there (gap {gap:+.3f}). The error of Robust MoE is {clear}: "
        f"{_mean(robust, 'ece'):.3f} against {_mean(plain, 'ece'):.3f} ({c['difference']:+.3f}, "
        f"{c['low']:+.3f} to {c['high']:+.3f}); after one temperature each {scaled[1]:.3f} against "
        f"{scaled[0]:.3f}."
    )


def target_of(found: dict[str, Any]) -> str:
    """The split of the published figures: the hard subset, or else the shift.

    Args:
        found: results.
    """
    kinds = {name: x["kind"] for name, x in found["splits"].items()}
    hard = next((n for n, k in kinds.items() if k == "hard"), None)
    return hard or next(n for n, k in kinds.items() if k == "shift")


def _mean(row: dict[str, Any], metric: str) -> float:
    return float(np.mean(row[metric]))


def main() -> None:
    """Runs, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    choices = ("cifar10h", "pacs", "civil_comments", "office_home")
    parser.add_argument("--dataset", choices=choices, required=True)
    parser.add_argument("--quick", action="store_true", help="the size of two cores")
    parser.add_argument("--backbone", help="as `calmoe run --backbone` takes it")
    parser.add_argument("--pretrained", help="safetensors file of the backbone")
    parser.add_argument("--tokenizer", type=Path, help="of civil_comments, for DistilBERT")
    parser.add_argument("--held-out", help="the domain that is left out")
    parser.add_argument("--seeds", type=int, help="number of seeds, from 42")
    parser.add_argument("--data-dir", type=Path, help="folder with the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"), help="where runs are")
    parser.add_argument("--out", type=Path, help="folder of the results and their page")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else PAPER
    if arguments.seeds:
        size = size._replace(seeds=arguments.seeds)
    if arguments.tokenizer and arguments.dataset != "civil_comments":
        parser.error("--tokenizer is for civil_comments")
    given = {"backbone": arguments.backbone, "pretrained": arguments.pretrained}
    found = study(
        arguments.dataset, size, model={k: v for k, v in given.items() if v is not None},
        held_out=arguments.held_out, data_dir=arguments.data_dir, runs=arguments.runs,
        tokenizer=arguments.tokenizer,
    )  # fmt: skip
    print("\n" + table(found))
    if arguments.out:
        write_json(arguments.out / f"{found['dataset']}-{size.name}.json", found)
        write_whole(arguments.out / "README.md", page(arguments.out))


if __name__ == "__main__":
    main()
