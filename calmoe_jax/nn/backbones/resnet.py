"""ResNet-18, for small images or with the stem for ImageNet's."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from calmoe_jax._checks import check_at_least, check_choice, check_range
from calmoe_jax.nn.backbones._convolution import loop_friendly_conv
from calmoe_kernels.varying import varying_axes

Stem = Literal["cifar", "imagenet"]

_HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class _BatchNorm(nnx.BatchNorm):
    """Batch normalisation by the whole batch, where `shard_map` gives each device a part of it."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "tokens height width channels"], *, train: bool
    ) -> Float[Array, "tokens height width channels"]:
        axes: Any = tuple(sorted(varying_axes(x)))
        self.axis_name = axes or None
        result: jax.Array = super().__call__(x, use_running_average=not train)
        return result


class _Block(nnx.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, dtype: jnp.dtype | type, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = _conv(channels_in, channels, 3, stride, dtype, rngs)
        self.norm1 = _norm(channels, dtype, rngs)
        self.conv2 = _conv(channels, channels, 3, 1, dtype, rngs)
        self.norm2 = _norm(channels, dtype, rngs)
        self.projects = stride != 1 or channels_in != channels
        if self.projects:
            self.shortcut = _conv(channels_in, channels, 1, stride, dtype, rngs)
            self.shortcut_norm = _norm(channels, dtype, rngs)

    def __call__(
        self, x: Float[Array, "tokens height width channels"], *, train: bool
    ) -> Float[Array, "tokens height2 width2 channels2"]:
        kept = x
        if self.projects:
            kept = self.shortcut_norm(self.shortcut(x), train=train)
        x = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        x = self.norm2(self.conv2(x), train=train)
        return jax.nn.relu(x + kept)


class ResNet18(nnx.Module):
    """ResNet-18: a stem, then 1 to 4 stages of two blocks.

    The stem for small images is a 3x3 convolution at full resolution; ImageNet's is a 7x7
    convolution of stride 2 and the maximum over 3x3 windows of stride 2, and its four stages are
    the published network. Stages have `width`, 2, 4 and 8 times `width` channels, each after the
    first at half the resolution; features are the spatial mean. With width 64 and 3 colour
    channels the parameters number 149,824, 675,392, 2,775,104 and 11,168,832 for 1 to 4 stages
    after the stem for small images, and 7,680 more after ImageNet's: 11,176,512 for 4 stages.
    Initialisation: He normal (fan-out) convolutions without bias, batch normalisation with scale 1
    and bias 0, momentum 0.9. Normalisation takes its means in float32, whatever the dtype. Where
    `shard_map` gives each device a part of a batch, it normalises by the whole batch; under
    `pmap`, or without `check_vma`, each device by its part.

    Example:
        >>> net = ResNet18(3, stem="imagenet", width=8, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((2, 64, 64, 3))).shape
        (2, 64)

    References:
        He et al., Deep Residual Learning for Image Recognition, 2016.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        stages: int = 4,
        width: int = 64,
        stem: Stem = "cifar",
        dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stem and the stages.

        Args:
            in_channels: channels of the images.
            stages: number of stages, 1 to 4; the paper's CIFAR models have 3.
            width: channels of the first stage.
            stem: `"cifar"` for small images, `"imagenet"` for those of about 224 x 224, which it
                reduces to a quarter of height and width.
            dtype: dtype of the computation; parameters and statistics are float32.
            rngs: source of the initial weights.

        Raises:
            ValueError: if a size is out of range, or the stem is unknown.
        """
        check_at_least("in_channels", in_channels, 1)
        check_range("stages", stages, 1, 4)
        check_at_least("width", width, 1)
        check_choice("stem", stem, get_args(Stem))
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.stem = _conv(in_channels, width, size, stride, dtype, rngs)
        self.pools = stem == "imagenet"
        self.norm = _norm(width, dtype, rngs)
        blocks, channels_in = [], width
        for stage in range(stages):
            channels = width * 2**stage
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_Block(channels_in, channels, stride, dtype, rngs))
                channels_in = channels
        self.blocks = nnx.List(blocks)
        self.num_features = channels_in

    def __call__(
        self, x: Float[Array, "tokens height width channels"], *, train: bool = False
    ) -> Float[Array, "tokens features"]:
        """Features of a batch of images.

        Args:
            x: images.
            train: whether to normalise by the batch and to update the running statistics.
        """
        x = jax.nn.relu(self.norm(self.stem(x), train=train))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x, train=train)
        return jnp.mean(x, axis=(1, 2))


def _conv(
    channels_in: int,
    channels: int,
    size: int,
    stride: int,
    dtype: jnp.dtype | type,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        channels_in,
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_HE_NORMAL,
        conv_general_dilated=_convolve,
        dtype=dtype,
        rngs=rngs,
    )


def _convolve(
    x: Float[Array, "tokens height width channels"],
    kernel: Float[Array, "rows columns channels channels2"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **settings: Any,
) -> Float[Array, "tokens height2 width2 channels2"]:
    """The convolution of `nnx.Conv`: XLA's own, but on CPUs one whose gradients are fast in loops.

    Strides and padding are alike in both directions here; which one runs is decided when the
    program is compiled for a platform, not by the machine that traces it.
    """

    def own(
        x: Float[Array, "tokens height width channels"],
        kernel: Float[Array, "rows columns channels channels2"],
    ) -> Float[Array, "tokens height2 width2 channels2"]:
        return loop_friendly_conv(x, kernel, strides[0], padding[0][0])

    def xla(
        x: Float[Array, "tokens height width channels"],
        kernel: Float[Array, "rows columns channels channels2"],
    ) -> Float[Array, "tokens height2 width2 channels2"]:
        result: jax.Array = jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)
        return result

    return jax.lax.platform_dependent(x, kernel, cpu=own, default=xla)


def _norm(channels: int, dtype: jnp.dtype | type, rngs: nnx.Rngs) -> _BatchNorm:
    return _BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)
