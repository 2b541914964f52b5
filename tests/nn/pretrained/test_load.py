"""What cannot be loaded: an error that says why, and the backbone as it was."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from flax import nnx

from calmoe_jax import nn


def resnet():
    return nn.ResNet18(3, stages=2, width=4, stem="imagenet", rngs=nnx.Rngs(0))


def without(*names):
    return {n: x for n, x in published.resnet18().items() if n not in names}


def changed(name, value):
    return published.resnet18() | {name: value}


NAN = published.resnet18()["bn1.weight"] * [1, 1, np.nan, 1]


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without("bn1.running_var"), r"missing: bn1\.running_var\."),
        (changed("layer3.0.conv1.weight", np.zeros(3)), r"surplus: layer3\.0\.conv1\.weight\."),
        (
            changed("conv1.weight", np.zeros((4, 3, 3, 3), np.float32)),
            r"another shape: conv1\.weight \[4, 3, 3, 3\] instead of \[4, 3, 7, 7\]\. The publi.*"
            r'ResNet18\(3, stages=4, width=64, stem="imagenet"\)',
        ),
        (
            without("bn1.bias") | {"more": np.zeros(1), "bn1.weight": np.zeros(3)},
            r"missing: bn1\.bias; surplus: more; of another shape: bn1\.weight \[3\] inst.* \[4\]",
        ),
        (changed("bn1.weight", np.ones(4, int)), r"not floats: bn1\.weight\."),
        (changed("bn1.weight", NAN), r"not finite: bn1\.weight\."),
        (changed("bn1.bias", np.full(4, np.inf)), r"not finite: bn1\.bias\."),
        ({}, r"missing: bn1\.bias, bn1\.running_mean, bn1\.running_var, bn1\.weight and 4\d more"),
        (published.timm_vit(), "as ResNet-18 of timm and torchvision names them, got missing"),
    ],
)
def test_tensors_that_are_not_the_backbones(tensors, message):
    net = resnet()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net)))
    with pytest.raises(nn.PretrainedError, match=message):
        nn.load_pretrained(net, tensors)
    after = nnx.to_pure_dict(nnx.state(net))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_stacked_blocks_are_checked_one_by_one():
    net = nn.DistilBERT(20, 6, width=8, depth=2, heads=2, mlp_width=12, rngs=nnx.Rngs(0))
    tensors = published.distilbert()
    name = "distilbert.transformer.layer.1.attention.k_lin.weight"
    for wrong, message in (
        (tensors | {name: np.zeros((8, 9), np.float32)}, r"layer\.1.*k_lin.* instead of \[8, 8\]"),
        (published.distilbert(depth=3), r"surplus: distilbert\.transformer\.layer\.2\."),
        (published.distilbert(depth=1), r"missing: distilbert\.transformer\.layer\.1\."),
        (published.distilbert(vocab=21), r"word_embeddings\.weight \[21, 8\] instead of \[20, 8\]"),
    ):
        with pytest.raises(nn.PretrainedError, match=message):
            nn.load_pretrained(net, wrong)


def test_backbones_without_published_weights():
    text = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12}
    for make in (
        lambda rngs: nn.MLP(4, (8,), rngs=rngs),
        lambda rngs: nn.ViT.of_size("tiny", (8, 8, 3), moe=nn.MoEBlocks(4), rngs=rngs),
        lambda rngs: nn.TextEncoder(20, 6, **text, rngs=rngs),
    ):
        net = nnx.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        with pytest.raises(ValueError, match=f"or a DistilBERT, got {type(net).__name__}"):
            nn.load_pretrained(net, {})


def test_a_file_is_its_tensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {name: np.ascontiguousarray(x) for name, x in published.resnet18().items()}
    numpy.save_file(tensors, tmp_path / "net.safetensors")
    net, other = resnet(), resnet()
    assert nn.load_pretrained(net, tmp_path / "net.safetensors") == nn.load_pretrained(
        other, tensors
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(net)),
        nnx.to_pure_dict(nnx.state(other)),
    )
    half = {"a": np.ones((2, 3), jnp.bfloat16)}
    numpy.save_file(half, tmp_path / "half.safetensors")
    np.testing.assert_array_equal(nn.read_tensors(tmp_path / "half.safetensors")["a"], half["a"])


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    with pytest.raises(nn.PretrainedError, match=r"must be a safetensors file, .*none is none"):
        nn.load_pretrained(resnet(), tmp_path / "none")
    with pytest.raises(nn.PretrainedError, match="must be a safetensors file"):
        nn.read_tensors(tmp_path)
    for content in (b"", b"abc", b"\x08" + b"\0" * 7 + b'{"a": 1}'):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(nn.PretrainedError, match=r"bad cannot be read as a safetensors file"):
            nn.read_tensors(tmp_path / "bad")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(nn.PretrainedError, match=r"pip install 'calmoe_jax\[text\]'"):
        nn.read_tensors(tmp_path / "bad")
