"""Named problems of routing and dispatch, each with its sizes written down, and their arrays."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

LOADS = ("balanced", "zipf", "one_expert")


class Problem(NamedTuple):
    """Sizes, dtypes and load of one layer.

    Attributes:
        name: how `--problems` calls it.
        tokens: tokens `T`.
        d: width of a token.
        experts: number of experts `E`.
        k: experts per token.
        x_dtype: dtype of tokens and of the experts' outputs.
        logits_dtype: dtype of the gate logits.
        load: `balanced`; `zipf`, where the expert of rank `r` has `-log r` added to its logits;
            or `one_expert`, which every token chooses first.
        scores: `softmax` or `sigmoid`.
        renormalize: whether a token's weights sum to one.
        num_groups: groups of experts.
        groups_per_token: groups a token's experts may come from.
        biased: whether a selection bias moves the choice.
    """

    name: str
    tokens: int
    d: int
    experts: int
    k: int
    x_dtype: str = "bfloat16"
    logits_dtype: str = "float32"
    load: str = "balanced"
    scores: str = "softmax"
    renormalize: bool = True
    num_groups: int = 1
    groups_per_token: int = 1
    biased: bool = False

    @property
    def rows(self) -> int:
        """Rows of the dispatched array, without capacity or padding."""
        return self.tokens * self.k


class Inputs(NamedTuple):
    """The arrays of a problem. The experts are cut out: what they return is an input.

    Attributes:
        logits: gate logits `[tokens, experts]`.
        bias: selection bias `[experts]`, where the problem has one.
        x: tokens `[tokens, d]`.
        outputs: what the experts return `[rows, d]`.
        d_rows: cotangent of the dispatched rows `[rows, d]`.
        d_y: cotangent of the combined tokens `[tokens, d]`.
    """

    logits: jax.Array
    bias: jax.Array | None
    x: jax.Array
    outputs: jax.Array
    d_rows: jax.Array
    d_y: jax.Array


_MODELS = (
    # Mistral AI 2024: hidden size 4096, the gate in the dtype of the model
    Problem("mixtral_8x7b", 8192, 4096, 8, 2, logits_dtype="bfloat16"),
    # DeepSeek-AI 2024: hidden size 7168, sigmoid scores with a bias, 4 of 8 groups
    Problem(
        "deepseek_v3", 8192, 7168, 256, 8, scores="sigmoid", num_groups=8, groups_per_token=4,
        biased=True,
    ),
    # Qwen3-30B-A3B, 2025: hidden size 2048 (Qwen3-235B-A22B has 4096)
    Problem("qwen3_moe", 32768, 2048, 128, 8),
    # Fedus et al. 2021, Switch-Base with 128 experts: width 768, the weight is the probability
    Problem("switch_base", 65536, 768, 128, 1, renormalize=False),
    # Riquelme et al. 2021, V-MoE-L/16 with 32 experts: width 1024, 256 images of 196 patches
    Problem("v_moe", 50176, 1024, 32, 2, renormalize=False),
)  # fmt: skip

_ROUTES = (  # the sizes that the bounds on routing name; d is that of the measured permutes
    Problem("route_128_k2", 65536, 4096, 128, 2),
    Problem("route_128_k8", 65536, 2048, 128, 8),
    Problem("route_256_k8", 8192, 4096, 256, 8),
)

_SKEWED = (
    ("mixtral_8x7b", "one_expert"),
    ("deepseek_v3", "zipf"),
    ("qwen3_moe", "zipf"),
    ("switch_base", "zipf"),
    ("v_moe", "one_expert"),
)

_TINY = Problem("tiny", 1000, 72, 6, 2)  # no size a power of two

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        *_ROUTES,
        *_MODELS,
        _TINY,
        *(
            next(p for p in _MODELS if p.name == name)._replace(name=f"{name}_{load}", load=load)
            for name, load in _SKEWED
        ),
    )
}


def cut(problem: Problem) -> Problem:
    """The problem with at most 8192 tokens and a width of at most 512: what a CPU can take."""
    return problem._replace(tokens=min(problem.tokens, 8192), d=min(problem.d, 512))


def make_inputs(problem: Problem, seed: int = 0) -> Inputs:
    """Makes the arrays of a problem.

    The logits of a row lie on a grid and differ by at least `1 / (64 experts)` (float32), so that
    `top_k` of logits and `top_k` of their softmax choose the same experts.

    Args:
        problem: the problem.
        seed: seed of all arrays.

    Returns:
        Its `Inputs`.

    Raises:
        ValueError: if the load is unknown.
    """
    if problem.load not in LOADS:
        raise ValueError(f"load must be one of {', '.join(LOADS)}, got load={problem.load!r}.")
    return _make(problem, jax.random.key(seed))


@partial(jax.jit, static_argnums=0)
def _make(problem: Problem, key: jax.Array) -> Inputs:
    keys = jax.random.split(key, 5)
    tokens, experts, k = problem.tokens, problem.experts, problem.k
    ranks = jax.random.permutation(keys[0], experts)
    preference = {
        "balanced": jnp.zeros(experts),
        "zipf": -jnp.log1p(ranks),
        "one_expert": jnp.where(ranks == 0, 16.0, 0.0),
    }[problem.load]
    logits = jax.random.normal(keys[1], (tokens, experts)) + preference[None]
    logits = (jnp.round(logits * 64) + (jnp.arange(experts) / experts)[None]) / 64
    x = jax.random.normal(keys[2], (tokens, problem.d))
    d_y = jax.random.normal(keys[3], (tokens, problem.d))
    # cheaper than as many random numbers, and still no two rows are equal
    factors = (1 + jnp.arange(k) / k)[:, None, None]
    dtype = problem.x_dtype
    return Inputs(
        logits=logits.astype(problem.logits_dtype),
        bias=0.01 * jax.random.normal(keys[4], (experts,)) if problem.biased else None,
        x=x.astype(dtype),
        outputs=(factors * x[None, ::-1]).astype(dtype).reshape(problem.rows, problem.d),
        d_rows=(factors * d_y[None, ::-1]).astype(dtype).reshape(problem.rows, problem.d),
        d_y=d_y.astype(dtype),
    )
