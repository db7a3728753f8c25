import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet import InputError
from jaxdet.kernels import compilation
from jaxdet.runs.parallel import make_mesh
from jaxdet.training.train_step import compile_training


@pytest.fixture(autouse=True)
def asked_anew():
    compilation.compiler_options.cache_clear()
    yield
    compilation.compiler_options.cache_clear()


def test_the_option_is_passed_on_a_cpu():
    assert compilation.compiler_options(False) == compilation.CPU_OPTIONS
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", lambda f, **kwargs: seen.update(kwargs) or f)
        compilation.jit(lambda x: x, donate_argnums=0)
    assert seen == {"compiler_options": compilation.CPU_OPTIONS, "donate_argnums": 0}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "CPU_OPTIONS", {"xla_cpu_no_such_option": ""})
    assert compilation.compiler_options() is None
    assert compilation.jit(lambda x: x + 1)(1) == 2


def test_a_gpu_is_asked_to_be_deterministic_where_the_config_asks(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation.compiler_options() is None
    assert compilation.compiler_options(True) == {"xla_gpu_deterministic_ops": True}
    # XLA takes it, wherever it compiles for.
    assert compilation.jit(lambda x: x + 1, True)(1) == 2
    compilation.compiler_options.cache_clear()
    monkeypatch.setattr(compilation, "GPU_DETERMINISTIC", {"xla_gpu_no_such_option": True})
    with pytest.raises(InputError, match="deterministic: this version of XLA does not know"):
        compilation.compiler_options(True)


def test_no_step_has_what_a_gpu_cannot_make_deterministic(config, batches):
    """XLA has no such kernel for select-and-scatter, the gradient of `reduce_window`."""
    init, step = compile_training(config, 14, make_mesh())
    program = step.lower(jax.eval_shape(init), batches[0]).as_text()
    assert "stablehlo.convolution" in program and "select_and_scatter" not in program


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
