"""Checks that a task, a network and an objective fit together, before anything is written."""

from typing import Any

import jax
import jax.numpy as jnp

from calmoe_jax._errors import UserError
from calmoe_jax.data import Task
from calmoe_jax.mixture import Prediction
from calmoe_jax.nn.network import Network
from calmoe_jax.study.methods import Method
from calmoe_jax.training import Batch
from calmoe_jax.training.step import batch_loss


class RunInputError(UserError):
    """Task, network and methods do not fit together; the message says what to fix."""


def check_network(network: Network, task: Task, *, batch_size: int, name: str) -> Prediction:
    """Traces a network on the shapes of a batch.

    Args:
        network: the network.
        task: the task to train on.
        batch_size: examples in the batch.
        name: its name in messages.

    Returns:
        The shapes of its prediction.

    Raises:
        RunInputError: if it fails on the task's inputs, or its prediction does not fit the task.
    """
    inputs = _spec(task.train.inputs, batch_size)
    try:
        variables = jax.eval_shape(network.init, jax.random.key(0))
    except Exception as error:
        raise RunInputError(f"{name}: init(key) fails: {_first_line(error)}") from error
    if not isinstance(variables, tuple) or len(variables) != 2:
        raise RunInputError(
            f"{name}: init(key) must return (params, network_state), got a "
            f"{type(variables).__name__}."
        )
    found: Any = None
    for train in (False, True):
        try:
            found = jax.eval_shape(
                lambda p, s, x, train=train: network.apply(p, s, x, train=train, sparse=False),
                *variables, inputs,
            )  # fmt: skip
        except Exception as error:
            shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", inputs)
            raise RunInputError(
                f"{name}: apply fails on inputs of task {task.name}, {shapes}: {_first_line(error)}"
            ) from error
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Prediction)):
        raise RunInputError(
            f"{name}: apply must return (prediction, network_state) with a Prediction, as "
            f"calmoe_jax.mixture.predict returns, got {type(found).__name__}."
        )
    prediction, state = found
    shape, classes = prediction.log_probs.shape, len(task.classes)
    if shape != (batch_size, classes):
        raise RunInputError(
            f"{name} must predict the {classes} classes of task {task.name} for each of "
            f"{batch_size} examples, got log_probs.shape={shape}: give its last layer {classes} "
            "outputs."
        )
    if _types(state) != _types(variables[1]):
        raise RunInputError(
            f"{name}: apply must return a network_state of the shapes that init made, got "
            f"{_types(state)} where init made {_types(variables[1])}."
        )
    return prediction


def check_objective(method: Method, prediction: Prediction, *, batch_size: int) -> None:
    """Traces a method's objective on the shapes of a batch.

    Args:
        method: the method.
        prediction: shapes of the prediction of its network.
        batch_size: examples in the batch.

    Raises:
        RunInputError: if it fails, or returns values of the wrong form.
    """
    name = f"method {method.name}: its objective"
    state = method.objective.init()
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def loss(prediction: Prediction, labels: jax.Array, state: Any) -> Any:
        return batch_loss(method.objective, prediction, Batch(None, labels), state)

    try:
        log, after = jax.eval_shape(loss, prediction, labels, state)
    except Exception as error:
        raise RunInputError(f"{name} fails on a batch: {_first_line(error)}") from error
    if log.loss.shape != () or not jnp.issubdtype(log.loss.dtype, jnp.floating):
        raise RunInputError(
            f"{name} must return a loss that is one float, got {log.loss.dtype} of shape "
            f"{log.loss.shape}."
        )
    if log.effective_sample_size.shape != ():
        raise RunInputError(f"{name} must return one log weight per example, of shape [examples].")
    if _types(after) != _types(state):
        raise RunInputError(
            f"{name} must return a state of the shapes that init made, got {_types(after)} where "
            f"init made {_types(state)}."
        )


def _spec(inputs: Any, batch_size: int) -> Any:
    def one(x: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), dtype)

    return jax.tree.map(one, inputs)


def _types(tree: Any) -> Any:
    return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
