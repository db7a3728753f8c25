"""Feature pyramid network (Lin et al. 2017, "Feature Pyramid Networks for Object Detection")."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxdet import ConfigError
from jaxdet.models.layers import conv, relu

# Uniform with bound sqrt(3 / fan_in), as torchvision's FPN has it (kaiming_uniform_ with a = 1).
uniform = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")


def upsample_to(x: jax.Array, height: int, width: int) -> jax.Array:
    """Nearest neighbour, twice the size, cut to an odd target."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, :height, :width]


class FPN(nnx.Module):
    """C2-C5 in, the pyramid `levels` out, all with `channels` channels.

    Levels up to 5 come from the top-down path; 6 is a 3x3 stride-2 convolution of P5 (`p6_from`
    "p5") or of C5 ("c5"), and 7 another of 6 after a ReLU (RetinaNet's P6 and P7).

    Raises:
        ConfigError: unless levels are consecutive, start at 2 to 5 and end at 5 to 7.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        levels: tuple[int, ...],
        *,
        p6_from: str = "p5",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        first, last = min(levels), max(levels)
        if levels != tuple(range(first, last + 1)) or not 2 <= first <= 5 <= last <= 7:
            raise ConfigError("model.levels", f"{levels} must be consecutive, from 2..5 to 5..7")

        def layer(channels_in, kernel, stride=1):
            return conv(
                channels_in, channels, kernel, stride,
                bias=True, kernel_init=uniform, dtype=dtype, rngs=rngs,
            )  # fmt: skip

        self.first, self.p6_from = first, p6_from
        self.lateral = nnx.List([layer(c, 1) for c in in_channels[first - 2 :]])
        self.output = nnx.List([layer(channels, 3) for _ in in_channels[first - 2 :]])
        sizes = [channels if p6_from == "p5" else in_channels[-1], channels]
        self.extra = nnx.List([layer(size, 3, 2) for size in sizes[: last - 5]])

    def __call__(self, features: Sequence[jax.Array]) -> list[jax.Array]:
        laterals = [
            layer(x) for layer, x in zip(self.lateral, features[self.first - 2 :], strict=True)
        ]
        for i in range(len(laterals) - 2, -1, -1):
            laterals[i] += upsample_to(laterals[i + 1], *laterals[i].shape[1:3])
        pyramid = [layer(x) for layer, x in zip(self.output, laterals, strict=True)]
        top = pyramid[-1] if self.p6_from == "p5" else features[-1]
        for layer in self.extra:
            pyramid.append(layer(top))
            top = relu(pyramid[-1])
        return pyramid
