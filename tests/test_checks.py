"""Errors name the argument, the rule and the value."""

import jax.numpy as jnp
import pytest

from calmoe_jax import _checks as checks


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (checks.check_positive, ("eta", 0), "eta must be positive and finite, got eta=0"),
        (
            checks.check_positive,
            ("eta", float("inf")),
            "eta must be positive and finite, got eta=inf",
        ),
        (checks.check_positive, ("eta", float("nan")), "got eta=nan"),
        (checks.check_non_negative, ("c", -1.0), "c must be non-negative and finite, got c=-1.0"),
        (checks.check_non_negative, ("c", float("nan")), "got c=nan"),
        (checks.check_at_least, ("n", 0, 1), "n must be at least 1, got n=0"),
        (checks.check_range, ("s", 5, 1, 4), r"s must be in \[1, 4\], got s=5"),
        (checks.check_range, ("s", float("nan"), 1, 4), "got s=nan"),
        (checks.check_choice, ("r", "x", ("a", "b")), "r must be one of a, b, got r='x'"),
        (
            checks.check_same_size,
            ("w", jnp.zeros((3, 2)), 0, 4, "tokens"),
            r"w must have tokens=4 along axis 0, got w.shape=\(3, 2\)",
        ),
        (
            checks.check_where,
            ("where", jnp.ones((3, 1), bool), (3,)),
            r"where must have the shape \(3,\) of what it masks, got where.shape=\(3, 1\)",
        ),
    ],
)
def test_messages(check, arguments, message):
    with pytest.raises(ValueError, match=message):
        check(*arguments)


def test_what_passes():
    checks.check_positive("eta", 1e-30)
    checks.check_positive("eta", jnp.array(-1.0))  # may be traced: the caller's business
    checks.check_non_negative("c", 0)
    checks.check_non_negative("c", None)
    checks.check_range("s", 4, 1, 4)
    checks.check_choice("r", "b", ("a", "b"))
    checks.check_same_size("w", jnp.zeros((3, 2)), 1, 2, "experts")
    checks.check_where("where", None, (3,))
    checks.check_where("where", jnp.ones(3, bool), (3,))


def test_shapes_are_checked_in_tests():
    import jaxtyping

    import calmoe_jax as cm

    with pytest.raises(jaxtyping.TypeCheckError):
        cm.mix.__wrapped__(jnp.ones((2, 3, 4)), jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
