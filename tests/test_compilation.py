import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import compilation


@pytest.fixture(autouse=True)
def asked_anew():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_the_option_is_passed_on_a_cpu():
    assert compilation.compiler_options() == compilation.CPU_OPTIONS
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", lambda f, **kwargs: seen.update(kwargs) or f)
        compilation.jit(lambda x: x, donate_argnums=0)
    assert seen == {"compiler_options": compilation.CPU_OPTIONS, "donate_argnums": 0}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_no_such_option": ""})
    assert compilation.compiler_options() is None
    assert compilation.jit(lambda x: x + 1)(1) == 2


def test_convolutions_and_gradients_are_those_of_plain_jit():
    x, k = (
        jax.random.normal(jax.random.key(i), s)
        for i, s in enumerate([(2, 16, 16, 8), (3, 3, 8, 8)])
    )

    def loss(x, k):
        y = jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    for ours, plain in zip(compilation.jit(gradient)(x, k), jax.jit(gradient)(x, k), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
