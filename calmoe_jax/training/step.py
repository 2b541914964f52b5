"""One epoch of one recipe as a pure function: gradient, rectification, AdamW, in a scan."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from calmoe_jax import calibration, mixture, reweighting, routing
from calmoe_jax.nn import Prediction
from calmoe_jax.study.methods import Recipe
from calmoe_jax.study.networks import Network, as_float

# Qualities that FGR draws from: Zhang et al., Frequency-aware Gradient Rectification, 2025.
_FILTER_QUALITIES = (15.0, 18.0, 25.0)


class Objective(NamedTuple):
    """Hyper-parameters of the losses of a batch.

    Attributes:
        eta: inverse temperature of the adversary.
        regret_threshold: of Robust Filtered, in nats.
        disagreement_threshold: of Robust Filtered.
        filter_share: share of a batch's images that FGR filters.
        load_balancing: coefficient of the load-balancing loss.
        z_loss: coefficient of the router z-loss.
        effective_fraction: perplexity of Radius Robust's weights over the batch size.
        adversary_decay: of the running partition of Cross-batch Robust.
    """

    eta: float
    regret_threshold: float
    disagreement_threshold: float
    filter_share: float
    load_balancing: float
    z_loss: float
    effective_fraction: float = 0.5
    adversary_decay: float = 0.9


class TrainState(NamedTuple):
    """All that is needed to go on training one seed, with its number and the epoch.

    Attributes:
        params: of the network.
        statistics: of its batch normalisation.
        opt_state: of the optimiser.
        adversary: of an adversary that remembers; `()` for the others.
    """

    params: PyTree
    statistics: PyTree
    opt_state: PyTree
    adversary: PyTree = ()


class BatchLog(NamedTuple):
    """What a step says of its batch; an epoch logs the means over its steps.

    Attributes:
        loss: the objective that was minimised, with the gate's losses.
        nll: mean log loss of the aggregate on the training batches, in nats.
        accuracy: on the training batches.
        effective_sample_size: `(sum w)^2 / sum w^2` of the adversary's weights on a batch; the
            batch size where the objective is the mean.
        importance: share of the routing weights that each expert got.
    """

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    accuracy: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    importance: Float[Array, " experts"]


class EpochLog(NamedTuple):
    """What an epoch says of itself.

    Attributes:
        means: means over the steps.
        bad_step: first step of the epoch with a non-finite loss or state; -1 if none.
    """

    means: BatchLog
    bad_step: Int[Array, ""]


EpochFn = Callable[
    [TrainState, Int[Array, ""], Int[Array, ""], jax.Array, jax.Array],
    tuple[TrainState, EpochLog],
]


def init_key(seed: Int[Array, ""]) -> jax.Array:
    """The key of a seed's initial weights."""
    return jax.random.split(jax.random.key(seed))[0]


def data_key(seed: Int[Array, ""]) -> jax.Array:
    """The key of a seed's batches: independent of its weights' key."""
    return jax.random.split(jax.random.key(seed))[1]


def make_epoch(
    network: Network,
    recipe: Recipe,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
) -> EpochFn:
    """Builds `epoch(state, seed, epoch, inputs, labels) -> (state, log)` for one seed.

    The order of the examples depends on the seed and the epoch alone, so that methods see the
    same batches, and a resumed run sees what an uninterrupted one would have. A remainder smaller
    than a batch is left out of the epoch.

    Args:
        network: the classifier.
        recipe: objective and rectification.
        objective: hyper-parameters of the losses.
        optimizer: gradient to update.
        batch_size: examples a step, at most the number of examples.
    """

    def epoch_of_one_seed(
        state: TrainState,
        seed: Int[Array, ""],
        epoch: Int[Array, ""],
        inputs: Shaped[Array, "examples ..."],
        labels: Int[Array, " examples"],
    ) -> tuple[TrainState, EpochLog]:
        key = jax.random.fold_in(data_key(seed), epoch)
        steps = len(labels) // batch_size
        order = jax.random.permutation(key, len(labels))[: steps * batch_size]

        def step(
            state: TrainState, batch: tuple[Int[Array, ""], Int[Array, " batch"]]
        ) -> tuple[TrainState, tuple[BatchLog, Bool[Array, ""]]]:
            number, rows = batch
            step_key = jax.random.fold_in(key, number)
            gradient, statistics, log, adversary = gradient_of_batch(
                state, step_key, inputs[rows], labels[rows]
            )
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            state = TrainState(params, statistics, opt_state, adversary)
            # of the whole state: Adam's moments can overflow while the parameters just stand still
            finite = jnp.isfinite(log.loss) & _all_finite(state)
            return state, (log, finite)

        numbers = jnp.arange(steps, dtype=jnp.int32)
        batches = (numbers, order.reshape(steps, batch_size))
        state, (logs, finite) = jax.lax.scan(step, state, batches)
        bad_step = jnp.where(finite.all(), -1, jnp.argmin(finite).astype(jnp.int32))
        means = jax.tree.map(lambda values: jnp.mean(values, axis=0), logs)
        return state, EpochLog(means, bad_step)

    def forward(
        params: PyTree, statistics: PyTree, inputs: Shaped[Array, "batch ..."]
    ) -> tuple[Prediction, PyTree]:
        # the regret is against all experts
        sparse = recipe.objective != "robust_filtered"
        return network.apply(params, statistics, inputs, train=True, sparse=sparse)

    def gradient_of_batch(
        state: TrainState,
        key: jax.Array,
        inputs: Shaped[Array, "batch ..."],
        labels: Int[Array, " batch"],
    ) -> tuple[PyTree, PyTree, BatchLog, PyTree]:
        """Gradient to the parameters, batch statistics, what to log, and the adversary."""

        def losses(
            params: PyTree, inputs: Shaped[Array, "batch ..."]
        ) -> tuple[Float[Array, " losses"], tuple[PyTree, BatchLog, PyTree]]:
            prediction, statistics = forward(params, state.statistics, inputs)
            log, adversary = batch_loss(recipe, objective, prediction, labels, state.adversary)
            values = [log.loss]
            if recipe.rectified:
                values.append(soft_calibration_error(prediction, labels))
            return jnp.stack(values), (statistics, log, adversary)

        def gradient_of(
            chosen: Float[Array, " losses"], inputs: Shaped[Array, "batch ..."]
        ) -> tuple[PyTree, PyTree, BatchLog, PyTree]:
            _, pull_back, others = jax.vjp(
                lambda params: losses(params, inputs), state.params, has_aux=True
            )
            return pull_back(chosen)[0], *others

        if not recipe.rectified:
            return gradient_of(jnp.ones(1, jnp.float32), inputs)
        # A loop of two passes of one program: side by side, XLA holds the activations of both
        # (5.3 GB instead of 2.7 for the benchmark's step) and the step takes a fifth longer.
        seen = jnp.stack([filter_some(inputs, key, objective.filter_share), as_float(inputs)])
        gradients, *others = jax.lax.map(
            lambda one: gradient_of(*one), (jnp.eye(2, dtype=jnp.float32), seen)
        )
        main, opposed = (jax.tree.map(lambda x, i=i: x[i], gradients) for i in range(2))
        statistics, log, adversary = jax.tree.map(lambda x: x[0], others)
        return reweighting.rectify_gradient(main, opposed), statistics, log, adversary

    return epoch_of_one_seed


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of a tree is finite (integers are): one pass over each leaf."""
    return jax.tree.reduce(
        jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), tree), jnp.array(True)
    )


def init_adversary(recipe: Recipe, objective: Objective) -> PyTree:
    """What the recipe's adversary remembers at the start; `()` for nothing."""
    if recipe.objective != "cross_batch_robust":
        return ()
    return _cross_batch(objective).init()


def _cross_batch(objective: Objective) -> reweighting.CrossBatchAdversary:
    return reweighting.cross_batch_tilt(eta=objective.eta, decay=objective.adversary_decay)


def batch_loss(
    recipe: Recipe,
    objective: Objective,
    prediction: Prediction,
    labels: Int[Array, " batch"],
    adversary: PyTree = (),
) -> tuple[BatchLog, PyTree]:
    """The recipe's loss of a batch with what to log of it, and the adversary afterwards."""
    weights = prediction.routing.combine_weights
    losses = mixture.mixture_losses(prediction.expert_log_probs, weights, labels)
    config = mixture.configuration(prediction.expert_log_probs, weights)
    num_experts = prediction.gate_logits.shape[-1]
    all_weights = routing.routing_weights(prediction.routing, num_experts=num_experts)
    loss, log_weights, adversary = _objective_of_batch(
        recipe, objective, losses, config, all_weights, labels, adversary
    )
    total, squares = (jax.nn.logsumexp(factor * log_weights) for factor in (1, 2))
    predicted = jnp.argmax(config.log_probs, axis=-1)
    log = BatchLog(
        loss=loss + _gate_losses(objective, prediction),
        nll=reweighting.erm_loss(losses.loss),
        accuracy=jnp.mean((predicted == labels).astype(jnp.float32)),
        effective_sample_size=jnp.exp(2 * total - squares),
        importance=jnp.mean(all_weights, axis=0),
    )
    return log, adversary


def _objective_of_batch(
    recipe: Recipe,
    objective: Objective,
    losses: mixture.MixtureLosses,
    config: mixture.Configuration,
    all_weights: Float[Array, "batch experts"],
    labels: Int[Array, " batch"],
    adversary: PyTree,
) -> tuple[Float[Array, ""], Float[Array, " batch"], PyTree]:
    """The objective, the adversary's log weights, and what it remembers."""
    eta, kind = objective.eta, recipe.objective
    constant = jax.lax.stop_gradient(losses.loss)
    even = jnp.full(labels.shape, -math.log(len(labels)), jnp.float32)
    if kind == "erm":
        return reweighting.erm_loss(losses.loss), even, adversary
    if kind == "robust":
        loss = reweighting.robust_loss(losses.loss, eta=eta, detach=recipe.detach)
        return loss, reweighting.tilted_log_weights(constant, eta=eta), adversary
    if kind == "robust_filtered":
        relevant = reweighting.routing_relevance(
            losses.regret,
            config.disagreement,
            regret_threshold=objective.regret_threshold,
            disagreement_threshold=objective.disagreement_threshold,
        )
        loss = reweighting.robust_filtered_loss(
            losses.loss, relevant, eta=eta, detach=recipe.detach
        )
        tilted = reweighting.tilted_log_weights(constant, eta=eta, where=relevant)
        return loss, jnp.where(relevant.any(), tilted, even), adversary
    if kind == "balanced_robust":
        classes = jax.nn.one_hot(labels, config.log_probs.shape[-1])
        moments = jnp.stack([config.confidence, config.entropy], axis=-1)
        constraints = jnp.concatenate([classes, all_weights, moments], axis=-1)
        solution = reweighting.entropy_balance(losses.loss, constraints, eta=eta)
        loss = reweighting.danskin_loss(solution, losses.loss, constraints)
        return loss, jnp.where(solution.converged, solution.log_weights, even), adversary
    if kind == "configuration_robust":
        features = mixture.configuration_features(config)
        signal = reweighting.configuration_signal(losses.loss, features)
        log_weights = reweighting.tilted_log_weights(signal, eta=eta)
    elif kind == "radius_robust":
        radius = reweighting.radius_of_fraction(objective.effective_fraction)
        log_weights = reweighting.entropy_balance(losses.loss, radius=radius).log_weights
    else:
        log_weights, adversary = _cross_batch(objective).update(losses.loss, adversary)
    return reweighting.weighted_loss(log_weights, losses.loss), log_weights, adversary


def _gate_losses(objective: Objective, prediction: Prediction) -> Float[Array, ""]:
    total = jnp.float32(0)
    if objective.load_balancing > 0:
        # where every expert is a slot, those of weight 0 do not count as load
        total += objective.load_balancing * routing.load_balancing_loss(
            routing.gate_probabilities(prediction.gate_logits),
            jax.lax.stop_gradient(prediction.routing),
        )
    if objective.z_loss > 0:
        total += objective.z_loss * routing.router_z_loss(prediction.gate_logits)
    return total


def soft_calibration_error(
    prediction: Prediction, labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """FGR's calibration loss: the soft-binned top-label error of the aggregate."""
    log_probs = mixture.mix_log_probs(
        prediction.expert_log_probs, prediction.routing.combine_weights
    )
    confidence, correct = calibration.top_label(jnp.exp(log_probs), labels)
    return calibration.soft_binned_error(confidence, correct)


def filter_some(
    inputs: Shaped[Array, "batch ..."], key: jax.Array, share: float
) -> Shaped[Array, "batch ..."]:
    """FGR's filter on the first images of a batch (it is in random order); features stay."""
    inputs = as_float(inputs)
    if inputs.ndim != 4:
        return inputs
    count = max(1, int(share * len(inputs)))
    quality = jax.random.choice(key, jnp.array(_FILTER_QUALITIES), (count,))
    return inputs.at[:count].set(reweighting.dct_filter(inputs[:count], quality))
