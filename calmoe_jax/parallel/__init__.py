"""Many devices: the only part of the library that sees a mesh.

mesh = data_mesh()                                  # all devices along one axis, "data"
step = over_devices(partial(train_step, network=..., ...), mesh)
state, log = step(state, batch, key)                # the batch is spread, the state is shared
"""

from calmoe_jax.parallel.data import data_mesh as data_mesh
from calmoe_jax.parallel.data import over_devices as over_devices
