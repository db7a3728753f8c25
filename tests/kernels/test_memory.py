"""Memory that a step frees is there for the next."""

import os
import platform
import resource
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="said to glibc")
def test_memory_that_a_step_frees_is_not_fetched_anew():
    # Of a process of its own: the setting is for good, and comes before JAX starts.
    program = """if True:
        import resource
        import jax, jax.numpy as jnp, numpy as np
        from jaxdet.runs import parallel
        parallel.start(joins=False)
        step = jax.jit(lambda x: jnp.exp(x) @ x[:256])  # needs 16 MB for exp(x), and as many out
        mesh = parallel.make_mesh()
        # Not where JAX could use it in place: it copies, in another thread.
        batch = np.ones(16384 * 256 + 1, np.float32)[1:].reshape(16384, 256)
        def run(steps):
            for _ in range(steps):
                x = step(parallel.shard_batch({"x": batch}, mesh)["x"])
            x.block_until_ready()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        run(20)  # now and then what is kept lies in pieces too small, and more is added
        print(-run(1) + run(100))
    """
    # One device: several compute on threads of their own.
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    fetched = int(done.stdout) * resource.getpagesize() / 100  # bytes a step
    # At most 0.5 MB in 26 processes, 1.2 to 21 where a part of what this needs is left out.
    assert fetched < 1e6
