"""Configurations are checked when they are made, and defaults follow the routing."""

from typing import get_args

import pytest

from calmoe_jax.nn import VIT_SIZES
from calmoe_jax.study.config import ModelConfig, RunConfig, TrainConfig, ViTSize, with_defaults


def test_defaults_that_depend_on_the_routing():
    dense = with_defaults(ModelConfig(), TrainConfig())
    hard = with_defaults(ModelConfig(routing="hard"), TrainConfig())
    values = (dense.warmup_epochs, dense.load_balancing, dense.z_loss, dense.clip_norm)
    assert values == (20, 0, 0, 0)
    assert (hard.load_balancing, hard.z_loss, hard.clip_norm) == (0.1, 0.001, 1.0)
    chosen = with_defaults(
        ModelConfig(routing="hard"), TrainConfig(load_balancing=0.0, warmup_epochs=0, clip_norm=0.0)
    )
    assert (chosen.load_balancing, chosen.warmup_epochs, chosen.clip_norm) == (0, 0, 0)


def test_every_size_of_the_vision_transformer_has_a_name():
    assert set(get_args(ViTSize)) == set(VIT_SIZES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(eta=0.0), "eta must be positive and finite, got eta=0.0"),
        (lambda: TrainConfig(eta=-1.0), "eta must be positive"),
        (lambda: TrainConfig(epochs=0), "epochs must be at least 1, got epochs=0"),
        (lambda: TrainConfig(batch_size=0), "batch_size"),
        (lambda: TrainConfig(warmup_epochs=51), r"warmup_epochs must be in \[0, 50\]"),
        (lambda: TrainConfig(learning_rate=float("nan")), "learning_rate"),
        (lambda: TrainConfig(filter_share=1.5), "filter_share"),
        (lambda: TrainConfig(load_balancing=-0.1), "load_balancing"),
        (lambda: ModelConfig(routing="top_k", k=5), r"k must be in \[1, experts=4\]"),
        (lambda: ModelConfig(experts=0), "experts must be at least 1, got experts=0"),
        (lambda: ModelConfig(stages=5), "stages"),
        (lambda: RunConfig(seeds=0), "seeds must be at least 1, got seeds=0"),
        (lambda: RunConfig(first_seed=-1), "first_seed"),
    ],
)
def test_bad_configurations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
