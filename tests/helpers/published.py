"""Random weights under the published names, and what they compute, by loops over NumPy arrays."""

import numpy as np
from transformer_references import gelu, mix_heads


def _arrays(rng, shapes):
    """Normal numbers; scales about 1, variances positive."""
    tensors = {}
    for name, shape in shapes.items():
        x = 0.3 * rng.randn(*shape)
        if name.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif len(shape) == 1 and name.endswith("weight"):
            x = 1 + x
        tensors[name] = x.astype(np.float32)
    return tensors


def _with_weight_and_bias(shapes):
    both = {}
    for name, shape in shapes.items():
        both[f"{name}.weight"] = shape
        both[f"{name}.bias"] = (shape[0],)
    return both


def resnet18(seed=0, *, width=4, stages=2, channels=3, size=7, classes=5):
    """Weights of timm's and torchvision's ResNet-18."""
    shapes = {"conv1.weight": (width, channels, size, size)}
    norms = {"bn1": width}
    before = width
    for stage in range(stages):
        own = width * 2**stage
        for block in range(2):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (own, before, 3, 3)
            shapes[f"{name}.conv2.weight"] = (own, own, 3, 3)
            norms |= {f"{name}.bn1": own, f"{name}.bn2": own}
            if stage and not block:
                shapes[f"{name}.downsample.0.weight"] = (own, before, 1, 1)
                norms[f"{name}.downsample.1"] = own
            before = own
    for name, own in norms.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{kind}"] = (own,)
    shapes |= {"fc.weight": (classes, before), "fc.bias": (classes,)}
    tensors = _arrays(np.random.RandomState(seed), shapes)
    counts = {f"{name}.num_batches_tracked": np.array(7) for name in norms}
    return tensors | counts


def timm_vit(seed=0, *, width=8, depth=2, mlp=12, patch=2, tokens=7, channels=3):
    """Weights of timm's vision transformer."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    maps = {"patch_embed.proj": (width, channels, patch, patch), "norm": (width,)}
    for i in range(depth):
        maps |= {
            f"blocks.{i}.norm1": (width,),
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.norm2": (width,),
            f"blocks.{i}.mlp.fc1": (mlp, width),
            f"blocks.{i}.mlp.fc2": (width, mlp),
        }
    maps["head"] = (5, width)
    return _arrays(np.random.RandomState(seed), shapes | _with_weight_and_bias(maps))


def torchvision_names(tensors, *, old=False):
    """Weights of timm's vision transformer under torchvision's names."""
    inner, outer = ("linear_1", "linear_2") if old else ("0", "3")
    parts = [
        ("cls_token", "class_token"), ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj.", "conv_proj."), ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj.", "self_attention.out_proj."), ("norm1.", "ln_1."), ("norm2.", "ln_2."),
        ("norm.", "encoder.ln."), ("mlp.fc1.", f"mlp.{inner}."), ("mlp.fc2.", f"mlp.{outer}."),
        ("blocks.", "encoder.layers.encoder_layer_"), ("head.", "heads.head."),
    ]  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        for old_part, new_part in parts:
            name = name.replace(old_part, new_part)
        renamed[name] = tensor
    return renamed


def distilbert(seed=0, *, vocab=20, length=6, width=8, depth=2, mlp=12, prefix="distilbert."):
    """Weights of a DistilBERT of transformers, with a classifier's head."""
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (vocab, width),
        f"{prefix}embeddings.position_embeddings.weight": (length, width),
    }
    maps = {f"{prefix}embeddings.LayerNorm": (width,)}
    for i in range(depth):
        layer = f"{prefix}transformer.layer.{i}"
        maps |= {f"{layer}.attention.{n}_lin": (width, width) for n in ("q", "k", "v", "out")}
        maps |= {
            f"{layer}.sa_layer_norm": (width,),
            f"{layer}.ffn.lin1": (mlp, width),
            f"{layer}.ffn.lin2": (width, mlp),
            f"{layer}.output_layer_norm": (width,),
        }
    maps |= {"pre_classifier": (width, width), "classifier": (2, width)}
    return _arrays(np.random.RandomState(seed), shapes | _with_weight_and_bias(maps))


class Network:
    """Layers by the names of their weights, in float64."""

    def __init__(self, tensors):
        self.tensors = {name: np.asarray(x, np.float64) for name, x in tensors.items()}

    def linear(self, name, x):
        return x @ self.tensors[f"{name}weight"].T + self.tensors[f"{name}bias"]

    def layer_norm(self, name, x, epsilon):
        rows = np.array(x)
        for row in rows.reshape(-1, rows.shape[-1]):
            row[:] = (row - row.mean()) / np.sqrt(row.var() + epsilon)
        return rows * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def conv(self, name, x, stride):
        """Of one image with its channels first."""
        kernel = self.tensors[f"{name}.weight"]
        size = kernel.shape[-1]
        pad = size // 2
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        rows, columns = ((n + 2 * pad - size) // stride + 1 for n in x.shape[1:])
        result = np.zeros((len(kernel), rows, columns))
        for i in range(rows):
            for j in range(columns):
                seen = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
                for c in range(len(kernel)):
                    result[c, i, j] = np.sum(seen * kernel[c])
        return result

    def batch_norm(self, name, x):
        """Of one image, by the running statistics."""
        weight, bias, mean, var = (
            self.tensors[f"{name}.{kind}"][:, None, None]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def max_pool(x):
    """The largest of 3 x 3 pixels, at every second one."""
    channels, height, width = x.shape
    result = np.zeros((channels, (height + 1) // 2, (width + 1) // 2))
    for c in range(channels):
        for i in range(result.shape[1]):
            for j in range(result.shape[2]):
                rows = slice(max(2 * i - 1, 0), 2 * i + 2)
                result[c, i, j] = x[c, rows, max(2 * j - 1, 0) : 2 * j + 2].max()
    return result


def resnet18_features(images, tensors, *, stages=2, imagenet=True):
    """Of images with their channels last."""
    net, found = Network(tensors), []
    for image in np.asarray(images, np.float64):
        x = image.transpose(2, 0, 1)
        x = np.maximum(net.batch_norm("bn1", net.conv("conv1", x, 2 if imagenet else 1)), 0)
        if imagenet:
            x = max_pool(x)
        for stage in range(1, stages + 1):
            for block in range(2):
                name = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = net.batch_norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, stride))
                y = net.batch_norm(f"{name}.bn2", net.conv(f"{name}.conv2", np.maximum(y, 0), 1))
                if f"{name}.downsample.0.weight" in tensors:
                    shortcut = net.conv(f"{name}.downsample.0", x, stride)
                    x = net.batch_norm(f"{name}.downsample.1", shortcut)
                x = np.maximum(x + y, 0)
        found.append(x.mean(axis=(1, 2)))
    return np.stack(found)


def timm_vit_features(images, tensors, *, heads=2, patch=2, depth=2):
    """Of images with their channels last: the class token."""
    net, found = Network(tensors), []
    kernel = net.tensors["patch_embed.proj.weight"]
    width = len(kernel)
    for image in np.asarray(images, np.float64):
        tokens = [net.tensors["cls_token"][0, 0]]
        for i in range(0, image.shape[0], patch):
            for j in range(0, image.shape[1], patch):
                seen = image[i : i + patch, j : j + patch].transpose(2, 0, 1)
                token = [np.sum(seen * one) for one in kernel]
                tokens.append(np.array(token) + net.tensors["patch_embed.proj.bias"])
        x = np.stack(tokens) + net.tensors["pos_embed"][0]
        for i in range(depth):
            name = f"blocks.{i}"
            joint = net.linear(f"{name}.attn.qkv.", net.layer_norm(f"{name}.norm1", x, 1e-6))
            q, k, v = joint[:, :width], joint[:, width : 2 * width], joint[:, 2 * width :]
            x = x + net.linear(f"{name}.attn.proj.", mix_heads(q, k, v, heads, True))
            inner = net.linear(f"{name}.mlp.fc1.", net.layer_norm(f"{name}.norm2", x, 1e-6))
            x = x + net.linear(f"{name}.mlp.fc2.", gelu(inner))
        found.append(net.layer_norm("norm", x, 1e-6)[0])
    return np.stack(found)


def distilbert_features(ids, mask, tensors, *, heads=2, depth=2, prefix="distilbert."):
    """The last state of the first token of each text."""
    net, found = Network(tensors), []
    embeddings = f"{prefix}embeddings."
    for text, seen in zip(np.asarray(ids), np.asarray(mask), strict=True):
        x = np.stack([
            net.tensors[f"{embeddings}word_embeddings.weight"][token]
            + net.tensors[f"{embeddings}position_embeddings.weight"][place]
            for place, token in enumerate(text)
        ])  # fmt: skip
        x = net.layer_norm(f"{embeddings}LayerNorm", x, 1e-12)
        for i in range(depth):
            name = f"{prefix}transformer.layer.{i}"
            q, k, v = (net.linear(f"{name}.attention.{n}_lin.", x) for n in "qkv")
            mixed = net.linear(f"{name}.attention.out_lin.", mix_heads(q, k, v, heads, seen))
            x = net.layer_norm(f"{name}.sa_layer_norm", x + mixed, 1e-12)
            outer = net.linear(f"{name}.ffn.lin2.", gelu(net.linear(f"{name}.ffn.lin1.", x)))
            x = net.layer_norm(f"{name}.output_layer_norm", x + outer, 1e-12)
        found.append(x[0])
    return np.stack(found)
