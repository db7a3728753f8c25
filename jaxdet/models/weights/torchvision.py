"""What torchvision's files hold: names of a pyramid's parts, and filters for colour pictures."""

import numpy as np
from jaxtyping import Float

from jaxdet.models.layers import names_of_layer

# What torchvision's models expect, and timm's: grey levels 0..1, normalised so.
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Where the backbone is in a detector; in a classifier it is the whole.
BODY = "backbone.body."


def pyramid_names(num_laterals: int, num_inner: int) -> dict[str, tuple[str, ...]]:
    """What torchvision calls each array of a detector's pyramid, now and before.

    In older files its layers are not yet blocks of several, whose first is "0" now.

    Args:
        num_laterals: how many of C2 to C5 our pyramid is made from.
        num_inner: how many theirs is; the last of both is C5's.
    """
    names = {}
    for theirs in range(max(0, num_inner - num_laterals), num_inner):
        i = theirs + num_laterals - num_inner
        for ours, blocks in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
            block = f"backbone.fpn.{blocks}.{theirs}"
            names |= names_of_layer(f"fpn/{ours}/{i}", f"{block}.0", block)
    for i in range(2):
        names |= names_of_layer(f"fpn/extra/{i}", f"backbone.fpn.extra_blocks.p{i + 6}")
    return names


def to_grey(
    kernel: Float[np.ndarray, "h w 3 out"],
) -> tuple[Float[np.ndarray, "h w 1 out"], Float[np.ndarray, "h w 1 out"]]:
    """Filters for colour made ones for grey pictures (`images.normalize`), and for ones.

    With g = 0.5 + 0.25 x a grey level and x what our network sees, channel c of theirs is
    0.25 x / STD[c] + (0.5 - MEAN[c]) / STD[c]: the filters are summed once with the one factor, for
    x, and once with the other, for a channel of ones. Both are padded with zeros, as theirs is, so
    outputs are equal up to the border.
    """
    kernel = kernel.astype(np.float64)
    of_x, of_ones = (
        (kernel * factor[:, None]).sum(axis=2, keepdims=True).astype(np.float32)
        for factor in (0.25 / STD, (0.5 - MEAN) / STD)
    )
    return of_x, of_ones
