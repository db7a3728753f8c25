"""Whether the memory of a device holds a training step, told before the first one."""

from collections.abc import Callable

import jax
from jax.stages import Compiled

from jaxdet import InputError
from jaxdet.data.machine import in_words


def limit() -> int | None:
    """Bytes that JAX may take on a device of this process; None where it does not say: a CPU.

    Of a GPU that is three quarters, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    known = [of["bytes_limit"] for of in stats if of and "bytes_limit" in of]
    return min(known, default=None)


def planned(step: Compiled) -> int:
    """Bytes on each device while a compiled step runs: what it is given, makes and needs."""
    plan = step.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes  # the old state, whose place the new one takes
    )


def compile_to_fit(step: Callable, state: object, batch: dict, parts: int = 1) -> Compiled:
    """The jitted step(state, batch) compiled for these arrays.

    Args:
        batch: arrays on the devices, each split over all of them.
        parts: `train.accumulate`.

    Raises:
        InputError: if a device has less memory than the step needs. It names the batch that would
            fit: memory is taken to grow with the images by as much as from half of them to all,
            for which the step is compiled once more.
    """
    compiled, there = step.lower(state, batch).compile(), limit()
    if there is None or planned(compiled) <= there:
        return compiled
    images, devices = batch["images"].shape[0], jax.device_count()
    each = images // (devices * parts)  # on a device at a time
    needs = f"{images} images, {each} a device at a time, need {in_words(planned(compiled))} of its"
    has = f"memory, and JAX may take {in_words(there)} of it"
    fits = 0
    if each > 1:
        half = step.lower(state, _shapes(batch, devices * parts * (each // 2))).compile()
        growth = (planned(compiled) - planned(half)) / (each - each // 2)
        fits = each - -(-(planned(compiled) - there) // max(int(growth), 1))
    if fits < 1:
        raise InputError(
            f"config.train.batch_size: {needs} {has}: not even 1 a device will fit; choose "
            "model.backbone.remat=True, a smaller data.image_size or a smaller network"
        )
    ways = [f"config.train.batch_size={fits * devices * parts}"]
    every = images // devices
    if more := [n for n in range(parts + 1, every + 1) if every % n == 0 and every // n <= fits]:
        ways.append(f"config.train.accumulate={more[0]}, which keeps the recipe")
    raise InputError(
        f"config.train.batch_size: {needs} {has}: about {fits} a device will fit; choose "
        f"{', or '.join(ways)}; model.backbone.remat=True takes less memory, too"
    )


def _shapes(batch: dict, images: int) -> dict:
    """A batch of so many images, by its shapes alone."""
    return {
        name: jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype, sharding=x.sharding)
        for name, x in batch.items()
    }
