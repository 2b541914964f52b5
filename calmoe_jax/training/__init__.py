"""Training: objectives, one pure step, drivers that call it, checkpoints.

`Objective(init, loss)` defines what is minimised, `train_step` takes one step on one `Batch`, and
`train` is a driver for data in memory: all seeds in one program, with checkpoints. `train_on_mesh`
spreads batches over devices and processes, and `train_on_stream` reads them as it goes.
"""

from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.training import objectives as objectives
from calmoe_jax.training.batch import Batch as Batch
from calmoe_jax.training.checkpoints import Checkpoints as Checkpoints
from calmoe_jax.training.in_memory import EpochLog as EpochLog
from calmoe_jax.training.in_memory import train_epoch as train_epoch
from calmoe_jax.training.log import MetricsLog as MetricsLog
from calmoe_jax.training.objective import LossFn as LossFn
from calmoe_jax.training.objective import Objective as Objective
from calmoe_jax.training.objective import Rectification as Rectification
from calmoe_jax.training.on_mesh import train_on_mesh as train_on_mesh
from calmoe_jax.training.sharded import ShardedTraining as ShardedTraining
from calmoe_jax.training.sharded import sharded_training as sharded_training
from calmoe_jax.training.state import StepLog as StepLog
from calmoe_jax.training.state import TrainState as TrainState
from calmoe_jax.training.state import init_state as init_state
from calmoe_jax.training.step import apply_gradients as apply_gradients
from calmoe_jax.training.step import step_gradients as step_gradients
from calmoe_jax.training.step import train_step as train_step
from calmoe_jax.training.streaming import train_on_stream as train_on_stream
from calmoe_jax.training.trainer import NonFiniteLossError as NonFiniteLossError
from calmoe_jax.training.trainer import TrainedSeeds as TrainedSeeds
from calmoe_jax.training.trainer import Training as Training
from calmoe_jax.training.trainer import train as train

_register_named_tuples(__name__)
