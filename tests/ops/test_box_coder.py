import jax.numpy as jnp
import numpy as np

from jaxdet.ops import box_coder


def test_encode_by_hand():
    anchor = jnp.array([[0.0, 0.0, 10.0, 20.0]])
    box = jnp.array([[5.0, 10.0, 25.0, 20.0]])  # centre (15, 15), size (20, 10)
    expected = [[1.0, 0.25, np.log(2), np.log(0.5)]]
    np.testing.assert_allclose(box_coder.encode(box, anchor), expected, rtol=1e-6)


def test_decode_inverts_encode():
    rng = np.random.default_rng(0)
    corner = rng.uniform(-50, 50, (2, 200, 2))
    a, b = np.concatenate([corner, corner + rng.uniform(1, 60, (2, 200, 2))], -1).astype("f")
    np.testing.assert_allclose(
        box_coder.decode(box_coder.encode(jnp.array(a), jnp.array(b)), jnp.array(b)), a, atol=1e-3
    )


def test_decode_limits_growth():
    anchor = jnp.array([[0.0, 0.0, 16.0, 16.0]])
    box = box_coder.decode(jnp.array([[0.0, 0.0, 50.0, 0.0]]), anchor)
    np.testing.assert_allclose(box[0, 2] - box[0, 0], 1000, rtol=1e-5)
