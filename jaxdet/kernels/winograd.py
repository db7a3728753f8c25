"""3x3 convolutions with a quarter of the multiplications, for CPUs.

Winograd's F(4x4, 3x3), as Lavin and Gray 2016 use it. An image is cut into tiles of 6x6 pixels that
overlap by two, and tile, kernel and output are each multiplied by a small matrix from both sides.
Between these transforms, a convolution is one product of matrices for each of a tile's 36 places,
where the plain one has nine for each of the 16 pixels that come out.
"""

import operator
from collections.abc import Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

OUT = 4  # pixels along a side that come out of a tile
IN = OUT + 2  # pixels along a side that go into it

# What every tile has in each row of it, for its six columns.
Places = list[Float[Array, "6 b tall wide c"]]


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What multiplies a tile (6, 6), a kernel (6, 3) and an output (4, 6).

    A convolution is a product of polynomials, given by its values at six points (Toom and Cook):
    these and infinity. The common 0, 1, -1, 2, -2 lose four times as much to rounding.
    """
    points = np.array([0, 0.75, -0.75, 1.5, -1.5])
    others = [np.delete(points, i) for i in range(len(points))]
    tile = [*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]]
    scale = [[np.prod(point - rest)] for point, rest in zip(points, others, strict=True)]
    infinity = np.eye(OUT)[-1]
    kernel = np.vstack([points[:, None] ** np.arange(3) / scale, infinity[1:]])
    output = np.vstack([points[:, None] ** np.arange(OUT), infinity])
    return np.array(tile), kernel, output.T


OF_TILE, OF_KERNEL, OF_OUTPUT = _matrices()


def pays(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> bool:
    """Whether training is faster with `conv_3x3`: with enough channels and pixels, as measured.

    Not where devices share a batch: they would tell each other 36 parts of a kernel's gradient,
    not nine.
    """
    b, h, w, c = x.shape
    if not isinstance(b, int):  # exported for any batch
        return False
    enough = c + kernel.shape[3] >= 72 and b * h * w >= 1024
    return enough and x.dtype != jnp.bfloat16 and jax.device_count() == 1


@jax.custom_vjp
def conv_3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """The convolution of stride 1, padded by 1.

    In float32, it and its gradients are within 5e-6 of the largest value.
    """
    return _forward(x, kernel)[0]


@jax.named_scope("winograd")
def _forward(x, kernel):
    _, h, w, _ = x.shape
    products = list(map(_product, _to_places(OF_TILE, x), _kernels(kernel)))
    return _to_image(OF_OUTPUT, products)[:, :h, :w], (x, kernel)


@jax.named_scope("winograd")
def _backward(kept, g):
    """The steps of `_forward`, transposed and in reverse; tiles of the gradient serve both."""
    x, kernel = kept
    _, h, w, _ = x.shape
    of_output = _to_places(OF_OUTPUT.T, g)
    transposed = (k.swapaxes(1, 2) for k in _kernels(kernel))
    of_tile = list(map(_product, of_output, transposed))
    of_x = _to_image(OF_TILE.T, of_tile)[:, :h, :w]
    of_kernels = list(map(_sum_over_tiles, _to_places(OF_TILE, x), of_output))
    return of_x, jax.linear_transpose(_kernels, kernel)(of_kernels)[0]


conv_3x3.defvjp(_forward, _backward)


def _kernels(kernel: Float[Array, "3 3 c d"]) -> list[Float[Array, "6 c d"]]:
    """The kernel, multiplied by its matrix and the transpose."""
    both = np.kron(OF_KERNEL, OF_KERNEL).astype(kernel.dtype)
    return list((both @ kernel.reshape(9, -1)).reshape(IN, IN, *kernel.shape[2:]))


def _to_places(matrix: np.ndarray, image: Float[Array, "b h w c"]) -> Places:
    """The image's tiles, or their inner 4x4, each multiplied by the matrix and its transpose."""
    size = matrix.shape[1]
    border = (IN - size) // 2

    def cut(x, axis):
        # One axis at a time: XLA keeps what it pads, and so makes the columns only once.
        widths = [(0, 0)] * x.ndim
        widths[axis] = 1, 1 + -x.shape[axis] % OUT
        x = jnp.pad(x, widths)
        end = x.shape[axis] - IN + 1
        starts = range(border, border + size)
        return [jax.lax.slice_in_dim(x, i, i + end, OUT, axis) for i in starts]

    columns = jnp.stack(_times(matrix, cut(image, 2)))
    return _times(matrix, cut(columns, 2))


def _to_image(matrix: np.ndarray, places: Places) -> Float[Array, "b h w c"]:
    """Tiles multiplied by the matrix and its transpose, side by side; where 6x6 overlap, summed."""

    def join(planes, axis):
        planes = _times(matrix, planes)
        if len(planes) == IN:
            above, first, *middle, last, below = planes
            planes = first + _moved(below, 1, axis), *middle, last + _moved(above, -1, axis)
        shape = [-1 if i == axis else n for i, n in enumerate(planes[0].shape)]
        return jnp.stack(planes, axis + 1).reshape(shape)

    # The barrier, or XLA takes the columns apart before it joins them, which is slower.
    columns = jax.lax.optimization_barrier(join(places, 2))
    return join(list(columns), 2)


def _moved(x: Float[Array, "*n"], by: int, axis: int) -> Float[Array, "*n"]:
    """Moved along the axis; zeros come in."""
    widths = [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), widths)


def _times(matrix: np.ndarray, planes: Sequence[Array]) -> list[Array]:
    """The matrix times a vector of planes; its zeros cost nothing."""
    return [
        reduce(operator.add, [float(m) * x for m, x in zip(row, planes, strict=True) if m])
        for row in matrix
    ]


def _product(
    places: Float[Array, "6 b tall wide c"], kernels: Float[Array, "6 c d"]
) -> Float[Array, "6 b tall wide d"]:
    rows = places.reshape(IN, -1, places.shape[-1])
    return (rows @ kernels).reshape(*places.shape[:-1], -1)


@jax.vmap
def _sum_over_tiles(x, g):
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])
