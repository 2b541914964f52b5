"""Backbones: inputs to features. Each has `num_features`, and `__call__(x, *, train)`."""

from calmoe_jax.nn.backbones._transformer import MoEBlocks as MoEBlocks
from calmoe_jax.nn.backbones.distilbert import DISTILBERT_SIZES as DISTILBERT_SIZES
from calmoe_jax.nn.backbones.distilbert import DistilBERT as DistilBERT
from calmoe_jax.nn.backbones.distilbert import DistilBERTSize as DistilBERTSize
from calmoe_jax.nn.backbones.mlp import MLP as MLP
from calmoe_jax.nn.backbones.resized import Resized as Resized
from calmoe_jax.nn.backbones.resnet import ResNet18 as ResNet18
from calmoe_jax.nn.backbones.standardized import IMAGENET_PIXELS as IMAGENET_PIXELS
from calmoe_jax.nn.backbones.standardized import SYMMETRIC_PIXELS as SYMMETRIC_PIXELS
from calmoe_jax.nn.backbones.standardized import PixelScale as PixelScale
from calmoe_jax.nn.backbones.standardized import Standardized as Standardized
from calmoe_jax.nn.backbones.text import TextEncoder as TextEncoder
from calmoe_jax.nn.backbones.vit import VIT_SIZES as VIT_SIZES
from calmoe_jax.nn.backbones.vit import ViT as ViT
from calmoe_jax.nn.backbones.vit import ViTSize as ViTSize
