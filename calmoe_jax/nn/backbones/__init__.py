"""Backbones: inputs to features. Each has `num_features`, and `__call__(x, *, train)`."""

from calmoe_jax.nn.backbones.mlp import MLP as MLP
from calmoe_jax.nn.backbones.resnet import ResNet18 as ResNet18
