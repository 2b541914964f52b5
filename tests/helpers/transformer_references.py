"""An oracle of the transformers: their forward pass by plain loops over NumPy arrays in float64."""

import jax
import numpy as np
import references
import scipy.special
import sparse_references


def arrays(module_params):
    """Parameters as nested dictionaries of float64 arrays."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), module_params)


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p):
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))


def mix_heads(q, k, v, heads, mask):
    """Values of one example mixed by attention, one head and one token after the other."""
    mixed, size = np.zeros_like(q), q.shape[1] // heads
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        for t in range(len(q)):
            scores = k[:, own] @ q[t, own] / np.sqrt(size)
            weights = references.softmax(np.where(mask, scores, -np.inf))
            mixed[t, own] = weights @ v[:, own]
    return mixed


def attention(x, p, heads, mask):
    """Of one example."""
    q, k, v = np.split(linear(x, p["inputs"]), 3, axis=1)
    return linear(mix_heads(q, k, v, heads, mask), p["output"])


def block(x, p, heads, mask, moe=None, capacity=None):
    """One block of a batch, and the load of its experts."""
    x = np.stack([
        one + attention(norm(one, p["norm1"]), p["attention"], heads, m)
        for one, m in zip(x, mask, strict=True)
    ])  # fmt: skip
    normed = norm(x, p["norm2"])
    if moe is None:
        return x + linear(gelu(linear(normed, p["mlp"]["inner"])), p["mlp"]["outer"]), None
    flat = normed.reshape(-1, normed.shape[-1])
    experts = p["sparse"]["experts"]
    params = tuple(experts[name] for name in ("w_in", "w_out", "b_in", "b_out"))
    output, load, *_ = sparse_references.sparse_layer(
        flat, flat @ p["sparse"]["router"]["kernel"], params, where=mask.reshape(-1), k=moe.k,
        act=sparse_references.gelu, renormalize=moe.renormalize, capacity=capacity,
    )  # fmt: skip
    return x + output.reshape(x.shape), load


def transformer(x, p, heads, mask, moe=None, capacity=None):
    """All blocks and the last normalisation, and the loads of the sparse layers."""
    number = len(jax.tree.leaves(p["blocks"])[0])
    loads = []
    for i in range(number):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        if moe is None:
            x, _ = block(x, layer, heads, mask)
        else:
            x, _ = block(x, layer["dense"], heads, mask)
            x, load = block(x, layer["sparse"], heads, mask, moe, capacity)
            loads.append(load)
    return norm(x, p["norm"]), loads


def vit(images, p, *, patch, heads, moe=None, capacity=None):
    """Features of images, and the loads."""
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    examples = []
    for image in np.asarray(images, np.float64):
        tokens = [p["class_token"]]
        for i in range(rows):
            for j in range(columns):
                cut = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                tokens.append(linear(cut.reshape(-1), p["patches"]))
        examples.append(np.stack(tokens) + p["positions"])
    x = np.stack(examples)
    mask = np.ones(x.shape[:2], bool)
    out, loads = transformer(x, p["transformer"], heads, mask, moe, capacity)
    return out[:, 0], loads


def text(ids, mask, p, *, heads, moe=None):
    """Features of texts, and the loads."""
    x = p["vocabulary"][ids] + p["positions"][: ids.shape[1]]
    out, loads = transformer(x, p["transformer"], heads, mask, moe)
    return out[:, 0], loads
