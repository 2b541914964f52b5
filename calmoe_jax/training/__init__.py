"""Training: configurations, methods, the compiled epoch, checkpoints, the loop."""

from calmoe_jax.study.config import ModelConfig as ModelConfig
from calmoe_jax.study.config import RunConfig as RunConfig
from calmoe_jax.study.config import TrainConfig as TrainConfig
from calmoe_jax.study.methods import METHODS as METHODS
from calmoe_jax.study.methods import PAPER_METHODS as PAPER_METHODS
from calmoe_jax.study.methods import Method as Method
from calmoe_jax.study.methods import Recipe as Recipe
from calmoe_jax.study.methods import recipes_of as recipes_of
from calmoe_jax.training.checkpoints import Checkpoints as Checkpoints
from calmoe_jax.training.log import MetricsLog as MetricsLog
from calmoe_jax.training.loop import NonFiniteLossError as NonFiniteLossError
from calmoe_jax.training.loop import TrainedSeeds as TrainedSeeds
from calmoe_jax.training.loop import train_recipe as train_recipe
