"""Flax NNX modules: backbones, the mixture-of-experts classifier, the single classifier."""

from calmoe_jax.nn.backbones import MLP as MLP
from calmoe_jax.nn.backbones import VIT_SIZES as VIT_SIZES
from calmoe_jax.nn.backbones import MoEBlocks as MoEBlocks
from calmoe_jax.nn.backbones import ResNet18 as ResNet18
from calmoe_jax.nn.backbones import TextEncoder as TextEncoder
from calmoe_jax.nn.backbones import ViT as ViT
from calmoe_jax.nn.backbones import ViTSize as ViTSize
from calmoe_jax.nn.calibration_metric import CalibrationMetric as CalibrationMetric
from calmoe_jax.nn.classifiers import Backbone as Backbone
from calmoe_jax.nn.classifiers import Experts as Experts
from calmoe_jax.nn.classifiers import MoEClassifier as MoEClassifier
from calmoe_jax.nn.classifiers import Router as Router
from calmoe_jax.nn.classifiers import SingleClassifier as SingleClassifier
from calmoe_jax.nn.classifiers import count_parameters as count_parameters
from calmoe_jax.nn.features import Features as Features
from calmoe_jax.nn.moe_layer import ExpertWeights as ExpertWeights
from calmoe_jax.nn.moe_layer import MoELayer as MoELayer
from calmoe_jax.nn.moe_layer import SelectionBias as SelectionBias
from calmoe_jax.nn.network import Network as Network
from calmoe_jax.nn.network import from_nnx as from_nnx
