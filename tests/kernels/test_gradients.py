import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdet.kernels import switch
from jaxdet.kernels.gradients import clip_by_global_norm

GRADIENTS = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.array([-4.0]), "d": jnp.ones(())}}


@pytest.mark.parametrize("target", ["plain", "cpu", "gpu"])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clips_as_optax_does(monkeypatch, target, max_norm):
    monkeypatch.setattr(switch, "target", lambda: target)
    clipped, norm = clip_by_global_norm(GRADIENTS, max_norm)
    clip = optax.clip_by_global_norm(max_norm)
    expected, _ = clip.update(GRADIENTS, clip.init(GRADIENTS))
    assert norm == pytest.approx(np.sqrt(55 + 16 + 1))
    assert clipped["b"].keys() == {"c", "d"}
    np.testing.assert_allclose(clipped["a"], expected["a"], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"]["c"], expected["b"]["c"], rtol=1e-6)


def test_what_is_not_finite_is_seen_in_the_norm():
    _, norm = clip_by_global_norm({"a": jnp.array([1.0, jnp.nan])}, 1.0)
    assert not np.isfinite(norm)
