"""Tasks of images as tasks of features, so that studies of mixtures on them fit two cores.

A ResNet-18 of three stages and a small width is trained once, as a single classifier, on one part
of the training images; mixtures are then trained on its features of the other part, which it never
saw, so that features of training and of held-out examples are alike. Router and experts stand on
one backbone in the paper too, but there it is trained with them and wider: figures on these tasks
are not those of the paper's size.
"""

import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from calmoe_jax._files import write_whole
from calmoe_jax.data import Split, Task
from calmoe_jax.nn import ResNet18, SingleClassifier, from_nnx
from calmoe_jax.nn.network import as_float
from calmoe_jax.study.config import ModelConfig, TrainConfig, with_defaults
from calmoe_jax.study.networks import build_optimizer
from calmoe_jax.training import Checkpoints, MetricsLog, Training, objectives, train

# Width of the ResNet's first stage, its stages, passes over its images, and their number.
WIDTH, STAGES, EPOCHS, IMAGES = 16, 3, 8, 10_000
_SIZE = 32
_CHUNK = 500


def _resnet(rngs: nnx.Rngs) -> ResNet18:
    return ResNet18(3, stages=STAGES, width=WIDTH, rngs=rngs)


def colour(task: Task) -> bool:
    """Whether a task's inputs are colour images.

    Args:
        task: any.
    """
    return task.holds_images and task.train.inputs.shape[-1] == 3


def without_colour_images(task: Task, folder: Path) -> Task:
    """The task, of features if its inputs are colour images.

    Args:
        task: any.
        folder: where backbones are kept, each in a folder of its own (see `family`).
    """
    if not colour(task):
        return task
    return of_images(task, folder / family(task.name))


def of_images(task: Task, folder: Path) -> Task:
    """The task with features `[n, 64]` in place of images.

    Args:
        task: of colour images of 32 or 64 pixels; those of 64 are halved first.
        folder: where the backbone and the features are kept; what is there is not computed again.
            Tasks of the same training images share one.

    Returns:
        The task. Training examples of the backbone are not among the new ones.
    """
    task = halved(task)
    path = folder / f"{task.name}-features.npz"
    count = min(IMAGES, len(task.train) // 2)
    rows = np.arange(len(task.train))  # in an order by a hash of their numbers already
    rest = task.train.take(rows[count:], "train", "train", task.train.description)
    splits = (rest, task.calibration, *task.evaluation)
    if not path.is_file():
        _write_features(task, rows[:count], splits, folder, path)
    with np.load(path) as found:
        featured = [dataclasses.replace(s, inputs=found[s.name]) for s in splits]
    return dataclasses.replace(
        task, train=featured[0], calibration=featured[1], evaluation=tuple(featured[2:])
    )


def family(name: str) -> str:
    """The folder of a task's backbone: one for cifar10h and cifar10c, which train on the same.

    Its name has the backbone's size, so that features of another are never taken for these.

    Args:
        name: name of the task.
    """
    data = "cifar10" if name.startswith("cifar10") else name
    return f"{data}-width-{WIDTH}-stages-{STAGES}-epochs-{EPOCHS}-images-{IMAGES}"


def halved(task: Task) -> Task:
    """The task with images of 32 pixels where they are of 64.

    Args:
        task: of colour images.
    """
    evaluation = tuple(_small(split) for split in task.evaluation)
    return dataclasses.replace(
        task, train=_small(task.train), calibration=_small(task.calibration), evaluation=evaluation
    )


def _small(split: Split) -> Split:
    """The split with images of 32 pixels, as means of 2 x 2 where they are of 64."""
    images = split.inputs
    if images.shape[1] == _SIZE:
        return split
    cells = images.reshape(len(images), _SIZE, 2, _SIZE, 2, 3)
    means = np.rint(cells.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)
    return dataclasses.replace(split, inputs=means)


def _write_features(
    task: Task, rows: np.ndarray, splits: tuple[Split, ...], folder: Path, path: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    options = with_defaults(ModelConfig(), TrainConfig(epochs=EPOCHS, checkpoint_every=1))
    network = from_nnx(lambda rngs: SingleClassifier(_resnet(rngs), len(task.classes), rngs=rngs))
    training = Training(
        "backbone", network, objectives.erm(), build_optimizer(options, len(rows)), EPOCHS, 0,
        options.batch_size,
    )  # fmt: skip
    with tqdm(total=EPOCHS, unit="epoch", disable=None, desc=f"{task.name}, backbone") as bar:
        trained = train(
            training, task.train.inputs[rows], task.train.labels[rows], (42,),
            checkpoints=Checkpoints(folder / "backbone"), log=MetricsLog(folder / "backbone.jsonl"),
            checkpoint_every=1, on_epoch=lambda loss: bar.update(),
        )  # fmt: skip
    params, state = jax.tree.map(
        lambda x: x[0], (trained.state.params, trained.state.network_state)
    )
    graph, weights, others = nnx.split(nnx.eval_shape(lambda: _resnet(nnx.Rngs(0))), nnx.Param, ...)
    nnx.replace_by_pure_dict(weights, params["backbone"])
    nnx.replace_by_pure_dict(others, state["backbone"])

    @jax.jit
    def features(x: jax.Array) -> jax.Array:
        return nnx.merge(graph, weights, others)(as_float(x), train=False)

    found = {}
    for split in tqdm(splits, unit="split", disable=None, desc=f"{task.name}, features"):
        parts = [
            np.asarray(features(jnp.asarray(_chunk(split.inputs, start))))
            for start in range(0, len(split), _CHUNK)
        ]
        found[split.name] = np.concatenate(parts)[: len(split)]
    write_whole(path, _npz(found))


def _chunk(images: np.ndarray, start: int) -> np.ndarray:
    """Images of a fixed number, the last ones repeated."""
    rows = images[start : start + _CHUNK]
    return np.concatenate([rows, np.repeat(rows[-1:], _CHUNK - len(rows), axis=0)])


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
