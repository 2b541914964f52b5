"""Many devices: the only part of the library that makes a mesh.

mesh = device_mesh(expert_shards=4)                 # all devices, as ("data", "expert")
step = over_devices(partial(train_step, network=..., ...), mesh)    # one pure step, spread
state, log = step(state, batch, key)                # the batch is spread, the state is shared

`calmoe_jax.training.sharded_training` is made of `sharded_step`, where parameters of experts are
sharded too.
"""

from calmoe_jax.parallel.data import over_devices as over_devices
from calmoe_jax.parallel.mesh import data_mesh as data_mesh
from calmoe_jax.parallel.mesh import device_mesh as device_mesh
from calmoe_jax.parallel.sharded import batch_sharding as batch_sharding
from calmoe_jax.parallel.sharded import sharded_step as sharded_step
