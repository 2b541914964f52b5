"""Writes logs where a model is trained or deployed: batch by batch, in parts that are whole."""

import io
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from calmoe_jax._checks import check_at_least
from calmoe_jax._files import write_whole
from calmoe_jax.audit.names import SINGLE, WIDE
from calmoe_jax.mixture import Prediction

Columns = dict[str, np.ndarray]


def log_batch(
    prediction: Prediction | Mapping[str, Any],
    labels: Any = None,
    *,
    targets: Any = None,
    clusters: Any = None,
    where: Any = None,
    time: Any = None,
    drawn_probability: Any = None,
    peer_probs: Any = None,
) -> Columns:
    """The columns of one batch, by the names that `read_logs` knows.

    Args:
        prediction: as from `mixture.predict`; or arrays by those names, such as `expert_probs` and
            `routing_weights`, `expert_logits`, or `probs` where there is the aggregate alone.
        labels: class of each example, -1 where it is unknown, or a distribution over the classes;
            all unknown by default.
        targets: which examples the model met in deployment; those without label by default.
        clusters: cluster of each example.
        where: which examples count; padding does not.
        time: when each example was seen.
        drawn_probability: with which each labelled target was chosen for labelling.
        peer_probs: what the same model trained with other seeds predicts, `[n, peers, classes]`.

    Returns:
        NumPy arrays with a row for each example. Of a prediction: the experts' probabilities and
        the routing weights in the order of the experts where all of them were computed, else those
        of the slots with `expert_indices`.

    Raises:
        ValueError: if a name is not one of `read_logs`, or arrays differ in examples.

    Example:
        >>> prediction = mixture.predict(jnp.log(jnp.full((5, 3, 2), 0.5)), jnp.zeros((5, 3)))
        >>> {name: values.shape for name, values in log_batch(prediction).items()}
        {'expert_probs': (5, 3, 2), 'routing_weights': (5, 3), 'labels': (5,)}
    """
    if isinstance(prediction, Prediction):
        columns = _of_prediction(prediction)
    else:
        columns = _given(prediction)
    size = len(next(iter(columns.values())))
    known = np.full(size, -1) if labels is None else np.asarray(labels)
    columns["labels" if known.ndim == 1 else "label_probs"] = known
    others = {
        "targets": targets, "clusters": clusters, "where": where, "time": time,
        "drawn_probability": drawn_probability, "peer_probs": peer_probs,
    }  # fmt: skip
    columns.update({name: np.asarray(x) for name, x in others.items() if x is not None})
    for name, values in columns.items():
        if values.shape[:1] != (size,):
            raise ValueError(
                f"{name} must have a row for each of the {size} examples, got shape {values.shape}."
            )
    return columns


class LogWriter:
    """Writes batches to the parts of a folder, for `read_logs` and `calmoe audit`.

        with LogWriter("logs") as writer:
            for batch in stream:
                prediction = predict(batch)
                writer(prediction, labels)       # or writer.append(log_batch(...))

    A part appears whole or not at all, under the next free number, so that neither an interruption
    nor a second start loses or changes an earlier one. What was not yet written is written when the
    block ends, also by an exception. The writer is a callback: inside `jax.jit`,
    `jax.debug.callback(writer, prediction, labels)`. Threads may share it; several processes need a
    folder each.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rows_per_part: int = 50_000,
        form: str = "npz",
    ) -> None:
        """Makes the folder if it is not there.

        Args:
            folder: where the parts are.
            rows_per_part: a part is written as soon as as many examples wait.
            form: of the parts; `parquet` needs pyarrow.

        Raises:
            ValueError: if `form` is neither, or `rows_per_part` is less than 1.
        """
        check_at_least("rows_per_part", rows_per_part, 1)
        if form not in ("npz", "parquet"):
            raise ValueError(f"form must be npz or parquet, got form={form!r}.")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows_per_part = rows_per_part
        self._form = form
        self._waiting: list[Columns] = []
        self._lock = threading.Lock()

    def __call__(
        self, prediction: Prediction | Mapping[str, Any], labels: Any = None, **others: Any
    ) -> None:
        """Appends a batch.

        Args:
            prediction: as for `log_batch`.
            labels: as for `log_batch`.
            **others: as for `log_batch`.
        """
        self.append(log_batch(prediction, labels, **others))

    def append(self, columns: Columns) -> None:
        """Appends the columns of a batch.

        Args:
            columns: as from `log_batch`; the arrays must not be changed afterwards.

        Raises:
            ValueError: if the batch has other columns than those before it, or columns of other
                axes.
        """
        with self._lock:
            if self._waiting:
                _check_alike(self._waiting[0], columns)
            self._waiting.append(columns)
            if self._rows() >= self._rows_per_part:
                self._write()

    def flush(self) -> None:
        """Writes what waits, as a part of its own; nothing if nothing waits."""
        with self._lock:
            self._write()

    def __enter__(self) -> "LogWriter":
        """The writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Writes what waits."""
        self.flush()

    def _rows(self) -> int:
        return sum(len(next(iter(batch.values()))) for batch in self._waiting)

    def _write(self) -> None:
        if not self._rows():
            return
        columns = {
            name: np.concatenate([batch[name] for batch in self._waiting])
            for name in self._waiting[0]
        }
        path, waiting = self._next(), self._waiting
        self._waiting = []
        try:
            write_whole(path, _npz(columns) if self._form == "npz" else _parquet(columns))
        except BaseException:
            if not path.exists():  # an interruption may come after it is written
                self._waiting = waiting
            raise

    def _next(self) -> Path:
        numbers = [int(p.stem.removeprefix("part-")) for p in self.folder.glob("part-[0-9]*.*")]
        return self.folder / f"part-{max(numbers, default=-1) + 1:06d}.{self._form}"


def _of_prediction(prediction: Prediction) -> Columns:
    log_probs = np.asarray(prediction.expert_log_probs, np.float32)
    weights = np.asarray(prediction.routing.combine_weights, np.float32)
    indices = np.asarray(prediction.routing.expert_indices)
    probs = np.exp(log_probs)
    if indices.shape[1] < prediction.gate_logits.shape[-1]:
        return {"expert_probs": probs, "routing_weights": weights, "expert_indices": indices}
    order = np.argsort(indices, axis=1)
    return {
        "expert_probs": np.take_along_axis(probs, order[..., None], axis=1),
        "routing_weights": np.take_along_axis(weights, order, axis=1),
    }


def _given(arrays: Mapping[str, Any]) -> Columns:
    for name in arrays:
        if name not in WIDE and name not in SINGLE:
            known = ", ".join([*WIDE, *SINGLE])
            raise ValueError(f"prediction must have names among {known}; got {name}.")
    if not arrays:
        raise ValueError("prediction must have an array, got none.")
    return {name: np.asarray(values) for name, values in arrays.items()}


def _check_alike(first: Columns, batch: Columns) -> None:
    def axes(columns: Columns) -> dict[str, tuple[int, ...]]:
        return {name: values.shape[1:] for name, values in columns.items()}

    if axes(first) != axes(batch):
        raise ValueError(
            f"columns must be those of the batches before, {axes(first)}, got {axes(batch)}."
        )


def _npz(columns: Columns) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]  # not of its own argument
    return buffer.getvalue()


def _parquet(columns: Columns) -> bytes:
    import pyarrow
    from pyarrow import parquet

    def nested(values: np.ndarray) -> Any:
        array = pyarrow.array(values.reshape(-1))
        for size in values.shape[:0:-1]:
            array = pyarrow.FixedSizeListArray.from_arrays(array, size)
        return array

    buffer = io.BytesIO()
    table = pyarrow.table({name: nested(values) for name, values in columns.items()})
    parquet.write_table(table, buffer)
    return buffer.getvalue()
