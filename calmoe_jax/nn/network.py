"""A classifier as a pair of pure functions of its parameters and its state."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from calmoe_jax.mixture import Prediction


class Network(NamedTuple):
    """A classifier as a pair of pure functions: the interface of training and evaluation.

    It can wrap a model of any neural network library; `from_nnx` wraps a Flax NNX module.

    Attributes:
        init: `key -> (params, network_state)`. `params` are the trainable parameters; the state is
            everything else that the network holds (batch statistics, keys of dropout), `()` if
            nothing. Both are pytrees of arrays.
        apply: `(params, network_state, inputs, *, train, sparse) -> (prediction, network_state)`,
            with a `Prediction` of the batch. `train` switches dropout and batch statistics on.
            With `sparse` only the chosen experts need be computed; the slots of the prediction
            are then the chosen experts. A network that always computes all experts ignores it
            (`**_`).
        param_specs: `params -> specs`: partition specs of the parameters, where some are sharded
            over devices (see `calmoe_jax.training.sharded_training`); `None` if none is. `apply`
            then gets the device's own shards.

    Example:
        >>> def init(key):
        ...     gate, experts = jax.random.split(key)
        ...     return {"gate": jax.random.normal(gate, (4, 2)),
        ...             "experts": jax.random.normal(experts, (4, 2, 3))}, ()
        >>> def apply(params, state, inputs, *, train, **_):
        ...     logits = jnp.einsum("nd,dec->nec", inputs, params["experts"])
        ...     log_probs = jax.nn.log_softmax(logits)
        ...     return cm.mixture.predict(log_probs, inputs @ params["gate"]), state
        >>> network = Network(init, apply)
        >>> prediction, _ = network.apply(*network.init(jax.random.key(0)), jnp.ones((5, 4)), train=True)
        >>> prediction.log_probs.shape
        (5, 3)
    """  # noqa: E501 (the example's call is one line)

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Prediction, PyTree]]
    param_specs: Callable[[PyTree], PyTree] | None = None


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Makes a `Network` from a Flax NNX module.

    Args:
        make: makes the module from a source of keys: `params` for initial weights, any other
            name (`dropout`, `noise`) for random numbers at run time. The module is called as
            `module(inputs, train=...)` and returns a `Prediction`, as `cm.mixture.predict` does;
            if its call has an argument `sparse`, that is passed too (see `Network`). Images of
            dtype uint8 are converted to floats in [0, 1] first.

    Returns:
        The network. Its parameters are the module's `nnx.Param`, its state everything else that
        the module holds; both are nested dictionaries of arrays. Parameters of a
        `MoELayer(expert_axis=...)` have partition specs over that axis.

    Example:
        >>> from flax import nnx
        >>> from calmoe_jax import nn
        >>> network = nn.from_nnx(
        ...     lambda rngs: nn.MoEClassifier(nn.MLP(4, (8,), rngs=rngs), 3, rngs=rngs))
        >>> params, state = network.init(jax.random.key(0))
        >>> prediction, state = network.apply(params, state, jnp.ones((5, 4)), train=False)
        >>> prediction.log_probs.shape
        (5, 3)
    """
    abstract: Any = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    takes_sparse = _takes(abstract, "sparse")
    graph, params_template, others_template = _split(abstract)

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        rngs = nnx.Rngs(jax.random.fold_in(key, 1), params=key)
        _, params, others = _split(make(rngs))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(others)

    def apply(
        params: PyTree, network_state: PyTree, inputs: PyTree, *, train: bool, sparse: bool = False
    ) -> tuple[Prediction, PyTree]:
        held = _filled(params_template, params), _filled(others_template, network_state)
        module: Any = nnx.merge(graph, *held)
        options = {"sparse": sparse} if takes_sparse else {}
        prediction = module(as_float(inputs), train=train, **options)
        return prediction, nnx.to_pure_dict(_split(module)[2])

    def param_specs(params: PyTree) -> PyTree:
        del params  # the module says it
        return nnx.to_pure_dict(jax.tree.map(_spec, params_template, is_leaf=_is_variable))

    return Network(init, apply, param_specs)


def as_float(inputs: PyTree) -> PyTree:
    """Converts uint8 images to floats in [0, 1]; other inputs stay as they are."""

    def one(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x

    return jax.tree.map(one, inputs)


def num_experts(network: Network, inputs: PyTree) -> int:
    """Number of experts of a network, from its gate logits; 1 for a single classifier.

    Args:
        network: the network.
        inputs: shapes of a batch, as `jax.ShapeDtypeStruct` or arrays.
    """
    params, state = jax.eval_shape(network.init, jax.random.key(0))

    def gate_logits(params: PyTree, state: PyTree, inputs: PyTree) -> jax.Array:
        prediction, _ = network.apply(params, state, inputs, train=False, sparse=False)
        return prediction.gate_logits

    return int(jax.eval_shape(gate_logits, params, state, inputs).shape[-1])


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _spec(variable: Any) -> P:
    """The partition spec of a parameter: over the axis that its layer names, if any."""
    axis = variable.get_metadata().get("shard_axis")
    if axis is None:
        return P()
    value = variable.get_value()
    return P(*(None,) * (value.ndim + variable.get_metadata()["shard_dim"]), axis)


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    """The graph, the parameters, and everything else that a module holds."""
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, params, others = parts
    return graph, params, others


def _takes(module: nnx.Module, name: str) -> bool:
    """Whether a module's call takes an argument by this name."""
    parameters = inspect.signature(type(module).__call__).parameters
    return name in parameters


def _filled(template: PyTree, values: PyTree) -> PyTree:
    """A copy of an NNX state, with the values of a nested dictionary."""
    state = jax.tree.map(lambda leaf: leaf, template)
    nnx.replace_by_pure_dict(state, values)
    return state
