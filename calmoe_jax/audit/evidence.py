"""What repairs and draws of labels rest on: held-out examples and targets as evidence.

Everything is computed in blocks of examples, so that no array of all experts' predictions is held
twice.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture, shift
from calmoe_jax.audit import scoring
from calmoe_jax.audit.logs import Logs, log_arrays, log_of, take
from calmoe_jax.shift.estimators import Evidence
from calmoe_jax.shift.few_labels import correctness_model
from calmoe_jax.shift.repair import usable_temperature

# Held-out examples that targets are compared with; the others are left out evenly.
MOST_REFERENCES = 2000
# Of more targets no neighbours are searched for the guess at each one's correctness, and the
# label-free gap rests on so many, evenly spread.
MOST_COMPARED = 20_000
_BLOCK = 2**16


class HeldOut(NamedTuple):
    """The labelled held-out examples.

    Attributes:
        evidence: all of them, at the temperature fitted on them.
        labels: their classes.
        references: at most 2000 of them, evenly spread, with coordinates where experts were logged
            and peers where these were.
        reference_labels: classes of these.
        rows: their rows in the logs.
        temperature: the temperature fitted on all.
        converged: whether a finite one is optimal.
        peer_temperatures: those of the peers, fitted on all likewise; `None` without peers.
    """

    evidence: Evidence
    labels: jax.Array
    references: Evidence
    reference_labels: jax.Array
    rows: np.ndarray
    temperature: float
    converged: bool
    peer_temperatures: jax.Array | None


class Population(NamedTuple):
    """Targets that a repair is for, padded at the end.

    Attributes:
        rows: their rows in the logs, without padding.
        evidence: their predictions, at the held-out temperature.
        correctness: a guess at the correctness of each, made without their labels.
        label_free: gaps estimated without labels.
        compared: how many were compared with the references for these; 0 if none was.
        guessed_by: what the guess knows beside the confidence: `neighbours`, `peers`.
    """

    rows: np.ndarray
    evidence: Evidence
    correctness: jax.Array
    label_free: shift.LabelFreeGaps
    compared: int
    guessed_by: tuple[str, ...]


def held_out(logs: Logs) -> HeldOut:
    """Fits the temperature, and prepares what targets are compared with.

    Args:
        logs: checked logs.
    """
    rows = np.flatnonzero(~logs.targets if logs.where is None else logs.where & ~logs.targets)
    mixed = _aggregate(logs, rows)
    labels = logs.labels if logs.label_probs is None else logs.label_probs
    truth = jnp.asarray(labels[rows], jnp.int32 if labels.ndim == 1 else jnp.float32)
    fit = _fit(mixed, truth)
    temperature = float(usable_temperature(fit))
    scaled = _scaled(mixed, temperature)
    classes = jnp.asarray(logs.labels[rows], jnp.int32)
    some = spread(len(rows), MOST_REFERENCES)
    of_peers = _peer_temperatures(logs, rows, truth)
    references = Evidence(
        scaled[some], _peers(logs, rows[some], of_peers), _coordinates(logs, rows[some])
    )
    return HeldOut(
        Evidence(scaled), classes, references, classes[some], rows, temperature,
        bool(fit.converged), of_peers,
    )  # fmt: skip


def population(
    logs: Logs, known: HeldOut, rows: np.ndarray, *, padded: int | None = None
) -> Population:
    """Prepares targets.

    Args:
        logs: checked logs.
        known: the held-out examples.
        rows: rows of the targets in the logs, at least one.
        padded: number of targets with padding, so that several calls share programs.
    """
    size = len(rows)
    length = size if padded is None else max(padded, size)
    where = None if padded is None else jnp.arange(length) < size
    held = np.pad(rows, (0, length - size), mode="edge")
    targets = Evidence(_scaled(_aggregate(logs, held), known.temperature), where=where)
    of_peers = known.peer_temperatures
    if logs.aggregate_only and of_peers is None:  # there is nothing to compare with
        guess, gaps = (of(known.evidence, known.labels, targets) for of in (_guess, _gaps))
        return Population(rows, targets, guess, gaps, 0, ())
    if size <= MOST_COMPARED:
        compared = targets._replace(
            peers=_peers(logs, held, of_peers), coordinates=_coordinates(logs, held)
        )
        guess, gaps = (
            of(known.references, known.reference_labels, compared) for of in (_guess, _gaps)
        )
        seen = {"neighbours": compared.coordinates, "peers": compared.peers}
        guessed_by = tuple(name for name, x in seen.items() if x is not None)
        return Population(rows, targets, guess, gaps, size, guessed_by)
    guess = _guess(known.evidence, known.labels, targets)
    some = spread(size, MOST_COMPARED)
    compared = Evidence(
        targets.log_probs[some], _peers(logs, rows[some], of_peers), _coordinates(logs, rows[some])
    )
    gaps = _gaps(known.references, known.reference_labels, compared)
    return Population(rows, targets, guess, gaps, len(some), ())


def words_of_guess(guessed_by: tuple[str, ...]) -> str:
    """What a guess at correctness that knows no neighbours does know, in words.

    Args:
        guessed_by: as in `Population`.
    """
    return "its confidence and the peers" if "peers" in guessed_by else "its confidence alone"


def spread(size: int, most: int) -> np.ndarray:
    """Evenly spread positions among `size`, at most so many.

    Args:
        size: how many there are.
        most: how many to take.
    """
    return np.linspace(0, size - 1, min(size, most)).round().astype(int)


_guess = jax.jit(correctness_model)
_gaps = jax.jit(shift.label_free_gaps)


_scale = jax.jit(calibration.calibrators.scale_log_probs)


def _scaled(mixed: jax.Array, temperature: float) -> jax.Array:
    return _scale(mixed, jnp.full(1, temperature, jnp.float32))


def _aggregate(logs: Logs, rows: np.ndarray) -> jax.Array:
    return in_blocks(logs, rows, mixture.mix_log_probs)


def _coordinates(logs: Logs, rows: np.ndarray) -> jax.Array | None:
    if logs.aggregate_only:
        return None
    return in_blocks(logs, rows, shift.configuration_coordinates)


def _fit(log_probs: jax.Array, truth: jax.Array) -> calibration.calibrators.TemperatureFit:
    """The temperature for labels, or distributions over them."""
    no_clusters = jnp.zeros(len(log_probs), jnp.int32)
    return scoring.fit_temperature(scoring.Scored(log_probs, truth, no_clusters, None, None))[0]


def _peer_temperatures(logs: Logs, rows: np.ndarray, truth: jax.Array) -> jax.Array | None:
    """The temperature of each peer, fitted as the model's own."""
    if logs.peer_probs is None:
        return None
    peers = np.moveaxis(logs.peer_probs[rows], 1, 0)
    return jnp.stack([usable_temperature(_fit(log_of(of_one), truth)) for of_one in peers])


def _peers(logs: Logs, rows: np.ndarray, temperatures: jax.Array | None) -> jax.Array | None:
    """Log probabilities of the peers, `[peers, rows, classes]`, each at its temperature."""
    if logs.peer_probs is None or temperatures is None:
        return None
    return _scale_each(log_of(np.moveaxis(logs.peer_probs[rows], 1, 0)), temperatures)


_scale_each = jax.jit(jax.vmap(lambda x, t: calibration.calibrators.scale_log_probs(x, t[None])))


def in_blocks(logs: Logs, rows: np.ndarray, function: object, *constants: jax.Array) -> jax.Array:
    """A function of the experts' log probabilities and the routing weights, block by block.

    Args:
        logs: checked logs.
        rows: rows of the examples.
        function: of a block of both, and the constants; compiled once for each object.
        *constants: arrays that are the same for every block.
    """
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    return jnp.concatenate(
        [_of_arrays(function, *log_arrays(take(logs, x)), *constants) for x in blocks]
    )


@partial(jax.jit, static_argnums=0)
def _of_arrays(function: object, *arrays: jax.Array) -> jax.Array:
    return function(*arrays)  # type: ignore[operator]
