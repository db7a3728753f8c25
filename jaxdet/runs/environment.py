"""What the environment tells JAX: what would change a run is not taken over from there."""

import os
import sys

import jax

from jaxdet import InputError

# A run that goes on elsewhere draws the same numbers, in the same types: these are as they come.
# The last two would make errors of what the code does on purpose: a bias is added to each pixel.
OF_A_RUN = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_rank_promotion": "allow",
    "jax_numpy_dtype_promotion": "standard",
}


def settle() -> None:
    """Set what a run's numbers and types depend on; a note says what was set otherwise.

    To be called before anything is computed.
    """
    for name, value in OF_A_RUN.items():
        if getattr(jax.config, name) != value:
            jax.config.update(name, value)
            if jax.process_index() == 0:
                print(
                    f"note: {name.upper()} is set: a run does not depend on it, and goes on with "
                    f"{value}",
                    file=sys.stderr,
                )


def stay_on_cpu() -> None:
    """Ask for no other device, for what only reads and writes files. To be called before JAX is
    used.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_platform_name", "cpu")


def check_devices() -> None:
    """Raise InputError unless JAX finds the devices that it is told to use."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is not installed
        reason = (str(error).strip().splitlines() or [""])[0].partition(" (set JAX_PLATFORMS")[0]
        told = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
        setting = "".join(f"{name}={os.environ[name]}: " for name in told)
        raise InputError(
            f"{setting}JAX finds no such device here{f' ({reason})' if reason else ''}: "
            f"unset {told[0]}, or install JAX for it"
            if told
            else f"JAX finds no device here ({reason})"
        ) from error
