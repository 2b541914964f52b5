"""(e) The tilt is improper: the best prediction is not the truth, but a known curve.

Weights `exp(eta L)` depend on the label. The pointwise minimiser of `(1 / eta) log E exp(eta L)`,
with L the log loss, is `p ~ pi^(1 / (1 + eta))` in place of the truth pi: under-confident. With the
gradient through the weights it is lower still. On batches of n examples the minimum is that of
`E (1 / eta) log mean_n exp(eta L)`: the truth for n = 1, the curve for large n. The expectation
over all batches is one integral, `E log sum_i Z_i = int_0^inf (exp(-t) - (E exp(-t Z))^n) / t dt`.

Networks are trained on examples whose true probabilities are known, with the library's objectives,
for each batch size; and with weights that depend on the routing configuration alone, which leave
the truth in its place. Those are estimated on a part of the batch and so nearly so, not exactly.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.optimize import minimize, minimize_scalar
from tqdm import tqdm

from calmoe_jax.drawing.style import look
from calmoe_jax.nn import MLP, MoEClassifier, from_nnx
from calmoe_jax.training import Batch, Objective, init_state, objectives, train_step

TITLE = "Weights that depend on the label move the best prediction away from the truth"
ETAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
ETA = 2.0
THREE_CLASSES = (0.7, 0.2, 0.1)
BATCH_SIZES = (1, 2, 8, 128)
TRUTHS = (0.5, 0.6, 0.7, 0.8, 0.9)  # P(Y = 1 | x) of five equally frequent inputs
SEEDS = 3
STEPS = {1: 40_000, 2: 20_000, 8: 8000, 128: 3000}  # by batch size
_LEARNING_RATE = 0.003


def tilted(truth: Sequence[float], eta: float) -> np.ndarray:
    """The closed form: `pi^(1 / (1 + eta))`, normalised.

    Args:
        truth: probability of each class.
        eta: inverse temperature of the tilt, at least 0.
    """
    powers = np.asarray(truth, np.float64) ** (1 / (1 + eta))
    return powers / powers.sum()


def population_minimiser(truth: Sequence[float], eta: float) -> np.ndarray:
    """The minimiser of `(1 / eta) log E exp(eta L)` over distributions, by a general search.

    Args:
        truth: probability of each class, all above 0.
        eta: inverse temperature, above 0.
    """
    log_truth = np.log(np.asarray(truth, np.float64))

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        scores = np.append(free, 0.0)
        log_probs = scores - np.logaddexp.reduce(scores)
        terms = log_truth - eta * log_probs
        value = np.logaddexp.reduce(terms)
        weights = np.exp(terms - value)
        return float(value / eta), (np.exp(log_probs) - weights)[:-1]

    found = minimize(loss, np.zeros(len(log_truth) - 1), jac=True, method="BFGS",
                     options={"gtol": 1e-10})  # fmt: skip
    scores = np.append(found.x, 0.0)
    return np.exp(scores - np.logaddexp.reduce(scores))


def through_weights(truth: float, eta: float) -> float:
    """The minimiser of `J = E_q L`, `q ~ pi exp(eta L)`, the weights not held constant.

    Args:
        truth: probability of class 1.
        eta: inverse temperature.
    """

    def value(p: float) -> float:
        losses = -np.log([p, 1 - p])
        weights = np.array([truth, 1 - truth]) * np.exp(eta * losses)
        return float(weights @ losses / weights.sum())

    found = minimize_scalar(value, bounds=(1e-6, 1 - 1e-6), method="bounded",
                            options={"xatol": 1e-10})  # fmt: skip
    return float(found.x)


# nodes of the integral, in log t; the integrand is smooth and decays at both ends
_LOG_T = np.linspace(-45.0, 7.0, 1601)


def expected_batch_loss(
    logits: np.ndarray, truths: np.ndarray, eta: float, size: int
) -> tuple[float, np.ndarray]:
    """`E (1 / eta) log mean_n exp(eta L)` over batches, and its gradient to the logits.

    Inputs are equally frequent, labels drawn from the truth.

    Args:
        logits: of class 1, for each input.
        truths: probability of class 1 of each input.
        eta: inverse temperature.
        size: examples in a batch, n.
    """
    signs = np.array([1.0, -1.0])
    chances = np.stack([truths, 1 - truths]) / len(truths)
    losses = np.logaddexp(0, -signs[:, None] * logits)
    z = np.exp(eta * losses)
    t = np.exp(_LOG_T)
    each = chances[:, :, None] * np.exp(-t * z[:, :, None])
    phi = each.sum((0, 1))
    step = _LOG_T[1] - _LOG_T[0]
    value = float(np.sum(np.exp(-t) - phi**size) * step)
    slope = np.sum(size * phi ** (size - 1) * t * each, axis=-1) * step  # to Z of each outcome
    wrong = -signs[:, None] / (1 + np.exp(signs[:, None] * logits))  # of the loss to the logit
    gradient = (slope * eta * z * wrong).sum(0)
    return (value - math.log(size)) / eta, gradient / eta


def batch_minimiser(truths: Sequence[float], eta: float, size: int) -> np.ndarray:
    """Probabilities of class 1 that minimise the expected loss of batches of a size.

    Args:
        truths: probability of class 1 of each of several equally frequent inputs.
        eta: inverse temperature.
        size: examples in a batch.
    """
    given = np.asarray(truths, np.float64)
    found = minimize(expected_batch_loss, np.zeros(len(given)), args=(given, eta, size), jac=True,
                     method="BFGS", options={"gtol": 1e-8})  # fmt: skip
    return 1 / (1 + np.exp(-found.x))


_NETWORK = from_nnx(
    lambda rngs: MoEClassifier(
        MLP(len(TRUTHS), (16,), rngs=rngs), 2, num_experts=2, router_hidden=8, rngs=rngs
    )
)


@partial(jax.jit, static_argnames=("objective", "batch_size", "steps"))
def _trained(seeds: jax.Array, *, objective: Objective, batch_size: int, steps: int) -> jax.Array:
    """Probability of class 1 for each input, `[seeds, inputs]`: the mean over the last half."""
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))
    inputs, truths = jnp.eye(len(TRUTHS)), jnp.asarray(TRUTHS)

    def one_seed(seed: jax.Array) -> jax.Array:
        start, data = jax.random.split(jax.random.key(seed))
        state = init_state(_NETWORK, objective, optimizer, start)

        def step(carry: tuple[Any, jax.Array], number: jax.Array) -> tuple[Any, None]:
            state, total = carry
            which, event, own = jax.random.split(jax.random.fold_in(data, number), 3)
            rows = jax.random.randint(which, (batch_size,), 0, len(TRUTHS))
            labels = jax.random.bernoulli(event, truths[rows]).astype(jnp.int32)
            state, _ = train_step(
                state, Batch(inputs[rows], labels), own,
                network=_NETWORK, objective=objective, optimizer=optimizer,
            )  # fmt: skip
            found, _ = _NETWORK.apply(state.params, state.network_state, inputs, train=False)
            probs = jnp.exp(found.log_probs[:, 1])
            return (state, total + jnp.where(number < steps // 2, 0, probs)), None

        carry, _ = jax.lax.scan(step, (state, jnp.zeros(len(TRUTHS))), jnp.arange(steps))
        return carry[1] / (steps - steps // 2)

    return jax.lax.map(one_seed, seeds)


def trained(objective: Objective, *, batch_size: int, steps: int, seeds: int) -> np.ndarray:
    """Probability of class 1 that networks of several seeds come to, `[seeds, inputs]`.

    Args:
        objective: what they minimise.
        batch_size: examples in a batch, drawn anew in each step.
        steps: of Adam, with a cosine schedule.
        seeds: number of networks.
    """
    found = _trained(jnp.arange(seeds), objective=objective, batch_size=batch_size, steps=steps)
    return np.asarray(found, np.float64)


def compute(*, steps: Mapping[int, int] = STEPS, seeds: int = SEEDS) -> dict[str, Any]:
    """Minimisers by closed form and search, and trained networks.

    Args:
        steps: of a network, by batch size.
        seeds: networks of each kind.
    """
    binary = {
        str(eta): [
            {"truth": truth, "closed": float(tilted((truth, 1 - truth), eta)[0]),
             "searched": float(population_minimiser((truth, 1 - truth), eta)[0]),
             "through_weights": through_weights(truth, eta)}
            for truth in (*TRUTHS[1:], 0.99)
        ]
        for eta in ETAS[1:]
    }  # fmt: skip
    three = [
        {"eta": eta, "closed": tilted(THREE_CLASSES, eta).tolist(),
         "searched": (population_minimiser(THREE_CLASSES, eta) if eta else
                      np.array(THREE_CLASSES)).tolist()}
        for eta in ETAS
    ]  # fmt: skip
    kinds = [(f"tilt, n = {n}", objectives.robust(eta=ETA), n) for n in BATCH_SIZES]
    configuration = objectives.configuration_robust(eta=ETA)
    kinds.append(("weights of S, n = 128", configuration, 128))
    networks = {}
    for name, objective, size in tqdm(kinds, unit="network", disable=None, leave=False, desc="(e)"):
        own = name.startswith("tilt")
        expected = batch_minimiser(TRUTHS, ETA, size).tolist() if own else list(TRUTHS)
        found = trained(objective, batch_size=size, steps=steps[size], seeds=seeds)
        networks[name] = {
            "expected": expected,
            "found": found.tolist(),
            "largest_difference": float(np.max(np.abs(found.mean(0) - expected))),
        }
    return {
        "eta": ETA,
        "truths": list(TRUTHS),
        "binary": binary,
        "three_classes": three,
        "one_input_of_0.9": {
            str(n): float(batch_minimiser((0.9,), ETA, n)[0]) for n in BATCH_SIZES
        },
        "networks": networks,
    }


def draw(found: dict[str, Any]) -> Figure:
    """Minimisers against the truth, of three classes against eta, and trained networks.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(12.0, 4.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    fine = np.linspace(0.5, 1, 101)
    for ax in (left, right):
        ax.plot([0.5, 1], [0.5, 1], color="#7F7F7F", lw=1)
        ax.set_xlabel("true probability of class 1")
    for i, (eta, lines) in enumerate(found["binary"].items()):
        curve = [tilted((x, 1 - x), float(eta))[0] for x in fine]
        left.plot(fine, curve, color=look(i)["color"], lw=1.2)
        truths = [line["truth"] for line in lines]
        left.plot(truths, [line["searched"] for line in lines], **(look(i) | {"ls": ""}),
                  label=f"η = {float(eta):g}")  # fmt: skip
    left.set_title("The minimiser, closed form (lines)\nand by search (marks)")
    left.set_ylabel("best prediction under the tilt")
    left.legend(frameon=False, fontsize=9)
    etas = [line["eta"] for line in found["three_classes"]]
    smooth = np.linspace(0, max(etas), 200)
    for c, truth in enumerate(THREE_CLASSES):
        middle.plot(smooth, [tilted(THREE_CLASSES, e)[c] for e in smooth], color=look(c)["color"])
        middle.plot(etas, [line["searched"][c] for line in found["three_classes"]],
                    **(look(c) | {"ls": ""}), label=f"truth {truth:g}")  # fmt: skip
    middle.axhline(1 / 3, color="#7F7F7F", lw=1)
    middle.set_ylim(0, 0.75)
    middle.set_xlabel("η")
    middle.set_title("Three classes become alike\nas η grows")
    middle.legend(frameon=False, fontsize=9)
    for i, (name, line) in enumerate(found["networks"].items()):
        mean = np.mean(line["found"], axis=0)
        if name.startswith("tilt"):
            right.plot(found["truths"], line["expected"], color=look(i)["color"], lw=1.2)
        right.plot(found["truths"], mean, **(look(i) | {"ls": ""}), label=name)
    right.set_title(
        f"Networks trained on batches of n (marks),\nη = {found['eta']:g}, and the theory (lines)"
    )
    right.set_ylim(0.49, 1.02)
    right.set_ylabel("probability by the network, mean of seeds")
    right.legend(frameon=False, fontsize=8.5, loc="upper left")
    figure.suptitle(TITLE)
    return figure
