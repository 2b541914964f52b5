"""Pretrained weights of timm, torchvision and transformers, read from safetensors files.

    backbone = nn.ResNet18(3, stem="imagenet", rngs=rngs)
    loaded = nn.load_pretrained(backbone, "resnet18.safetensors")
    backbone = nn.Standardized(backbone, loaded.pixels)  # images in [0, 1], as everywhere here

Inside the function that `from_nnx` takes, give the tensors instead, so that the file is read once:
`tensors = nn.read_tensors(path)` outside, `nn.load_pretrained(backbone, tensors)` inside.
"""

from calmoe_jax.nn.pretrained.errors import PretrainedError as PretrainedError
from calmoe_jax.nn.pretrained.files import read_tensors as read_tensors
from calmoe_jax.nn.pretrained.load import Loaded as Loaded
from calmoe_jax.nn.pretrained.load import load_pretrained as load_pretrained
