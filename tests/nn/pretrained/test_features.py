"""Published weights give published features: against loops over NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from flax import nnx

from calmoe_jax import nn

RNG = np.random.RandomState(3)
IMAGES = jnp.asarray(RNG.randn(2, 18, 13, 3), jnp.float32)
PATCHED = jnp.asarray(RNG.randn(3, 4, 6, 3), jnp.float32)
IDS = jnp.asarray(RNG.randint(0, 20, (3, 6)), jnp.int32)
MASK = jnp.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)


def resnet(stem="imagenet", **options):
    return nn.ResNet18(3, **{"stages": 2, "width": 4, "stem": stem, "rngs": nnx.Rngs(0)} | options)


def vit(**options):
    sizes = {"patch_size": 2, "width": 8, "depth": 2, "heads": 2, "mlp_width": 12}
    return nn.ViT((4, 6, 3), **sizes | {"rngs": nnx.Rngs(0)} | options)


def distilbert(**options):
    sizes = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12}
    return nn.DistilBERT(20, 6, **sizes | {"rngs": nnx.Rngs(0)} | options)


@pytest.mark.parametrize(("stem", "size"), [("cifar", 3), ("imagenet", 7)])
def test_a_resnet(stem, size):
    tensors = published.resnet18(size=size)
    net = resnet(stem)
    loaded = nn.load_pretrained(net, tensors)
    assert loaded.left_out == tuple(sorted(n for n in tensors if "fc." in n or "batches" in n))
    assert loaded.pixels == nn.IMAGENET_PIXELS
    want = published.resnet18_features(IMAGES, tensors, imagenet=stem == "imagenet")
    graph, state = nnx.split(net)
    found = jax.jit(lambda state: nnx.merge(graph, state)(IMAGES))(state)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", ["timm", "torchvision", "torchvision of old"])
def test_a_vision_transformer(names):
    timm = published.timm_vit()
    tensors = timm
    if names != "timm":
        tensors = published.torchvision_names(timm, old=names.endswith("old"))
    net = vit()
    loaded = nn.load_pretrained(net, tensors)
    head = "head" if names == "timm" else "heads.head"
    assert loaded.left_out == (f"{head}.bias", f"{head}.weight")
    assert loaded.pixels == (nn.SYMMETRIC_PIXELS if names == "timm" else nn.IMAGENET_PIXELS)
    found = jax.jit(net.__call__)(PATCHED).values
    want = published.timm_vit_features(PATCHED, timm)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["distilbert.", ""])
def test_a_distilbert(prefix):
    tensors = published.distilbert(prefix=prefix)
    net = distilbert()
    loaded = nn.load_pretrained(net, tensors)
    assert len(loaded.left_out) == 4
    assert loaded.pixels is None
    found = jax.jit(net.__call__)({"ids": IDS, "mask": MASK}).values
    want = published.distilbert_features(IDS, MASK, tensors, prefix=prefix)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_half_precision_of_the_file_is_made_up_for():
    tensors = {
        name: np.asarray(x, jnp.bfloat16 if "ffn" in name else np.float16)
        for name, x in published.distilbert().items()
    }
    net = distilbert()
    nn.load_pretrained(net, tensors)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(net))} == {jnp.dtype("float32")}
    want = published.distilbert_features(IDS, MASK, tensors)
    np.testing.assert_allclose(
        jax.jit(net.__call__)((IDS, MASK)).values, want, rtol=1e-4, atol=1e-5
    )


def test_a_network_starts_from_published_weights_with_any_key():
    tensors = published.resnet18()
    loaded = nn.load_pretrained(resnet(), tensors)

    def make(rngs):
        backbone = resnet(rngs=rngs)
        nn.load_pretrained(backbone, tensors)
        return nn.MoEClassifier(nn.Standardized(backbone, loaded.pixels), 3, rngs=rngs)

    network = nn.from_nnx(make)
    params, state = jax.jit(jax.vmap(network.init))(jax.random.split(jax.random.key(1), 2))
    stem = params["backbone"]["backbone"]["stem"]["kernel"]
    for seed in range(2):
        np.testing.assert_array_equal(stem[seed], tensors["conv1.weight"].transpose(2, 3, 1, 0))
    mean = state["backbone"]["backbone"]["norm"]["mean"][1]
    np.testing.assert_array_equal(mean, tensors["bn1.running_mean"])
    heads = params["experts"]["kernels"][0]
    assert float(jnp.abs(heads[0] - heads[1]).max()) > 0.01  # the rest is the key's
