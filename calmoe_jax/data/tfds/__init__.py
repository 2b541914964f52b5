"""Splits of the data sets of tensorflow-datasets, read without TensorFlow (the `data` extra).

>>> from calmoe_jax.data import Task
>>> from calmoe_jax.data.tfds import class_names, from_tfds
>>> task = Task(  # doctest: +SKIP
...     name="cifar10",
...     classes=class_names("cifar10"),
...     train=from_tfds("cifar10", split="train[:90%]", kind="train"),
...     calibration=from_tfds("cifar10", split="train[90%:]", kind="calibration"),
...     evaluation=(
...         from_tfds("cifar10", split="test", kind="id"),
...         from_tfds("cifar10_corrupted/fog_3", split="test", kind="shift", name="fog_3"),
...     ),
... )
"""

from calmoe_jax.data.tfds.names import class_names as class_names
from calmoe_jax.data.tfds.source import from_tfds as from_tfds
