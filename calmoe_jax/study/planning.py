"""`calmoe plan`: the training step of a model, compiled for a pod that is not here."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calmoe_jax._checks import check_choice
from calmoe_jax._errors import UserError
from calmoe_jax._files import to_json
from calmoe_jax.nn import MoEBlocks, MoEClassifier, Network, ResNet18, ViT, from_nnx
from calmoe_jax.nn.backbones import VIT_SIZES
from calmoe_jax.parallel import batch_sharding, device_mesh
from calmoe_jax.parallel.collectives import Collective
from calmoe_jax.parallel.mesh import EXPERT_AXIS
from calmoe_jax.parallel.plan import Memory, Plan, plan_step
from calmoe_jax.parallel.topologies import Topology, topology
from calmoe_jax.study.config import TrainConfig
from calmoe_jax.study.methods import METHODS
from calmoe_jax.study.plan_config import PlanConfig
from calmoe_jax.training import Batch, ShardedTraining, objectives, sharded_training

SCHEMA = 1
_RESNET = "resnet18"


class Planned(NamedTuple):
    """A plan, and the largest batch that is estimated to fit.

    Attributes:
        config: what was planned.
        plan: the plan.
        largest_batch: the largest batch whose memory, a straight line through this plan's and that
            of half the batch, fits; `None` where the device's memory is not known.
        parameters: number of trainable parameters.
    """

    config: PlanConfig
    plan: Plan
    largest_batch: int | None
    parameters: int


def plan_training(config: PlanConfig, topology_name: str, *, largest: bool = True) -> Planned:
    """Compiles the training step of a configuration for a topology.

    Args:
        config: what to plan.
        topology_name: the devices; see `calmoe_jax.parallel.topologies`.
        largest: whether to compile for half the batch too, to find the largest.

    Returns:
        A `Planned`.

    Raises:
        UserError: if the topology is unknown or its compiler not installed, or sizes do not
            divide.
    """
    try:
        check_choice("model", config.model, (*VIT_SIZES, _RESNET))
        trained = tuple(name for name, method in METHODS.items() if not method.single)
        check_choice("objective", config.objective, trained)
        devices = topology(topology_name)
        training = _training(config, devices)
        plan = _plan(config, training, devices, config.batch)
        half = config.batch // 2
        possible = half and half % training.mesh.size == 0 and devices.hardware is not None
        other = _plan(config, training, devices, half) if largest and possible else None
    except ValueError as error:
        raise UserError(str(error)) from error
    shapes = training.state_like().params
    number = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return Planned(config, plan, _largest(plan, other, training.mesh.size), number)


def _training(config: PlanConfig, devices: Topology) -> ShardedTraining:
    number = len(devices.devices)
    shards = config.expert_shards
    if shards is None:
        shards = _most_shards(config.experts, number // devices.slices) if config.is_sparse else 1
    mesh = device_mesh(devices.devices, expert_shards=shards)
    objective = METHODS[config.objective].objective(TrainConfig())
    if config.is_sparse:
        objective = objectives.with_layer_losses(
            objective, importance=0.005, load=0.005, z_loss=0.0001
        )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return sharded_training(_network(config), objective, optimizer, mesh)


def _most_shards(experts: int, devices: int) -> int:
    """The largest number of devices that experts and devices divide by."""
    return max(n for n in range(1, experts + 1) if experts % n == 0 and devices % n == 0)


def _network(config: PlanConfig) -> Network:
    dtype = jnp.dtype(config.dtype)
    shape = (config.image, config.image, 3)
    moe = None
    if config.is_sparse:
        moe = MoEBlocks(
            config.experts, k=config.k, capacity_factor=config.capacity_factor, prioritized=False,
            expert_axis=EXPERT_AXIS, exchange=config.exchange,
        )  # fmt: skip

    def make(rngs: Any) -> MoEClassifier:
        backbone: Any
        if config.model == _RESNET:
            backbone = ResNet18(3, rngs=rngs)
        else:
            backbone = ViT.of_size(
                config.model, shape, moe=moe, dtype=dtype, remat=config.remat, rngs=rngs
            )
        return MoEClassifier(backbone, config.classes, num_experts=config.heads, rngs=rngs)

    return from_nnx(make)


def _plan(config: PlanConfig, training: ShardedTraining, devices: Topology, size: int) -> Plan:
    rows, shared = batch_sharding(training.mesh), NamedSharding(training.mesh, P())
    image = (size, config.image, config.image, 3)
    labels: Any = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=rows)
    batch = Batch(jax.ShapeDtypeStruct(image, jnp.uint8, sharding=rows), labels)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=shared)
    state = training.state_like()
    parts = {
        "parameters": state.params,
        "moments": state.opt_state,
        "other state": (state.network_state, state.objective_state),
        "batch": batch,
    }
    return plan_step(
        training.step, (state, batch, key), training.mesh, devices, names=parts, num_examples=size
    )


def _largest(plan: Plan, other: Plan | None, step: int) -> int | None:
    if other is None or plan.available is None:
        return None
    slope = (plan.needed - other.needed) / (plan.num_examples - other.num_examples)
    fixed = plan.needed - slope * plan.num_examples
    if slope <= 0 or fixed >= plan.available:
        return 0
    return int((plan.available - fixed) / slope) // step * step


def describe(planned: Planned) -> str:
    """A plan as a table.

    Args:
        planned: the plan.
    """
    plan, config = planned.plan, planned.config
    fits = {True: "fits", False: "does not fit", None: "memory of the device not known"}[plan.fits]
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    lines = [
        f"{plan.topology}: {mesh}; {config.model}, {planned.parameters / 1e6:.1f} M parameters, "
        f"batch {plan.num_examples}, {config.objective}, {config.dtype}",
        f"  memory of a device: {_size(plan.needed)}"
        + (f" of {_size(plan.available)}" if plan.available else "")
        + f": {fits}",
    ]
    if plan.memory is not None:
        parts = {**plan.memory.arguments, "temporary": plan.memory.temporary}
        parts["program"] = plan.memory.code
        lines += [f"    {name:<20}{_size(value):>12}" for name, value in parts.items()]
    if planned.largest_batch is not None:
        lines.append(f"  largest batch that fits, estimated: {planned.largest_batch}")
    lines.append(f"  products of a device: {plan.flops / 1e12:.2f} Tflop")
    if plan.compute_seconds is not None and plan.exchange_seconds is not None:
        lines.append(
            f"  at least {1e3 * plan.compute_seconds:.1f} ms for them, "
            f"{1e3 * plan.exchange_seconds:.1f} ms for exchanges (lower bounds: peak speeds)"
        )
    lines.append(f"  exchanges, {_size(plan.bytes_sent)} sent by each device:")
    lines += [f"    {_line(each)}" for each in plan.collectives[:12]]
    if len(plan.collectives) > 12:
        rest = sum(each.bytes_sent for each in plan.collectives[12:])
        lines.append(f"    and {len(plan.collectives) - 12} smaller ones, {_size(rest)}")
    lines.append(f"  compiled in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)


def _line(each: Collective) -> str:
    axes = ", ".join(each.axes) + (", from slice to slice" if each.far else "")
    return (
        f"{each.times:>4} x {each.kind:<16}{_size(each.num_bytes):>10}  "
        f"{each.group_size} devices over {axes}"
    )


def _size(number: int | float) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def difference(old: Planned, new: Planned) -> str:
    """What changes from one plan to another: memory, operations, and exchanges that come and go.

    Args:
        old: a plan.
        new: another one.
    """
    rows = [
        ("memory of a device", old.plan.needed, new.plan.needed),
        ("bytes sent by a device", old.plan.bytes_sent, new.plan.bytes_sent),
    ]
    lines = [f"{old.plan.topology} -> {new.plan.topology}"]
    lines += [f"  {name}: {_size(a)} -> {_size(b)} ({_change(a, b)})" for name, a, b in rows]
    a, b = old.plan.flops, new.plan.flops
    lines.append(f"  products: {a / 1e12:.3f} -> {b / 1e12:.3f} Tflop ({_change(a, b)})")
    before, after = (
        {(c.kind, c.axes, c.num_bytes): c.times for c in one.plan.collectives} for one in (old, new)
    )
    for key in sorted(before.keys() | after.keys()):
        first, second = before.get(key, 0), after.get(key, 0)
        if first != second:
            kind, axes, size = key
            lines.append(
                f"  {kind} of {_size(size)} over {', '.join(axes)}: {first} -> {second} times"
            )
    return "\n".join(lines)


def _change(a: int | float, b: int | float) -> str:
    return f"{100 * (b - a) / a:+.1f} %" if a else "new"


def to_file(planned: Sequence[Planned]) -> str:
    """Plans as JSON.

    Args:
        planned: the plans.
    """
    plain = [
        {
            "config": dataclasses.asdict(one.config),
            "largest_batch": one.largest_batch,
            "parameters": one.parameters,
            "plan": one.plan._asdict()
            | {
                "memory": None if one.plan.memory is None else one.plan.memory._asdict(),
                "collectives": [each._asdict() for each in one.plan.collectives],
            },
        }
        for one in planned
    ]
    return to_json({"schema": SCHEMA, "plans": plain})


def from_file(path: Path) -> list[Planned]:
    """Reads plans.

    Args:
        path: a file that `to_file` made.

    Raises:
        UserError: if it is not one.
    """
    try:
        held = json.loads(path.read_text())
        if held["schema"] != SCHEMA:
            raise KeyError("schema")
        return [_planned(one) for one in held["plans"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of plans (schema {SCHEMA}): {error!r}.") from error


def _planned(held: dict[str, Any]) -> Planned:
    plain = held["plan"]
    memory = None if plain["memory"] is None else Memory(**plain["memory"])
    collectives = [
        Collective(**{**each, "axes": tuple(each["axes"])}) for each in plain["collectives"]
    ]
    plan = Plan(**{**plain, "memory": memory, "collectives": collectives})
    return Planned(PlanConfig(**held["config"]), plan, held["largest_batch"], held["parameters"])
