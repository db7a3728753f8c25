"""A step that does not fit is told before it runs, with the batch that does."""

import re
from types import SimpleNamespace
from unittest import mock

import jax
import pytest

from jaxdet import InputError
from jaxdet.runs import parallel
from jaxdet.training import device_memory
from jaxdet.training.train_step import compile_training
from tests.conftest import command


class Step:
    """Stands for a jitted step that needs 100 bytes, and 10 for each image of a device."""

    compiled = 0

    def __init__(self, devices=1, parts=1):
        self.share = devices * parts

    def __call__(self, state, batch):
        raise AssertionError("it is not to be run")

    def lower(self, state, batch):
        Step.compiled += 1
        each = batch["images"].shape[0] // self.share
        plan = SimpleNamespace(
            argument_size_in_bytes=70, output_size_in_bytes=60, alias_size_in_bytes=50,
            temp_size_in_bytes=20 + 10 * each,
        )  # fmt: skip
        compiled = mock.Mock(spec=jax.stages.Compiled, memory_analysis=lambda: plan)
        return SimpleNamespace(compile=lambda: compiled)


@pytest.fixture
def error(monkeypatch):
    """The line for a batch on devices with so many bytes; None if it fits."""

    def error_of(images, limit, devices=1, parts=1):
        monkeypatch.setattr(device_memory, "limit", lambda: limit)
        monkeypatch.setattr(device_memory.jax, "device_count", lambda: devices)
        batch = {"images": jax.numpy.zeros((images, 2, 2))}
        try:
            device_memory.compile_to_fit(Step(devices, parts), None, batch, parts)
        except InputError as error:
            return str(error)

    return error_of


def test_a_step_that_fits_is_compiled_once(error):
    before = Step.compiled
    for limit in (None, 260, 1000):
        assert error(16, limit) is None
    assert Step.compiled == before + 3


@pytest.mark.parametrize(
    "images,limit,devices,parts,fits,batch_size,accumulate",
    [
        (16, 259, 1, 1, 15, 15, 2),
        (16, 180, 1, 1, 8, 8, 2),
        (16, 179, 1, 1, 7, 7, 4),
        (15, 179, 1, 1, 7, 7, 3),
        (32, 179, 2, 1, 7, 14, 4),
        (32, 139, 2, 2, 3, 12, 8),
        (16, 110, 1, 1, 1, 1, 16),
    ],
)
def test_what_does_not_fit_is_named_with_what_does(
    error, images, limit, devices, parts, fits, batch_size, accumulate
):
    said = error(images, limit, devices, parts)
    assert said.startswith(f"config.train.batch_size: {images} images, ") and "\n" not in said
    assert f"about {fits} a device will fit" in said
    assert f"config.train.batch_size={batch_size}, or config.train.accumulate={accumulate}," in said
    # Both of them do.
    assert error(batch_size, limit, devices, parts) is None
    assert error(images, limit, devices, accumulate) is None


def test_where_not_even_one_fits_there_are_other_ways(error):
    for images in (1, 16):
        assert "not even 1 a device will fit; choose model.backbone.remat" in error(images, 109)


@pytest.mark.slow
def test_the_estimate_of_a_real_step(config, batches, monkeypatch):
    """Of the tiny network on this CPU, which plans memory too: what is named is what fits, as
    memory grows by the images."""
    config.model.update({"anchor_scales": (2.0,), "aspect_ratios": (1.0,)})
    init, step = compile_training(config, 14, parallel.make_mesh())
    state, devices = jax.eval_shape(init), jax.device_count()
    batch = parallel.shard_batch(batches[0], parallel.make_mesh())

    def shapes(each):
        return device_memory._shapes(batch, each * devices)

    def needed(each):
        return device_memory.planned(step.lower(state, shapes(each)).compile())

    there = needed(48)
    monkeypatch.setattr(device_memory, "limit", lambda: there)
    with pytest.raises(InputError) as caught:
        device_memory.compile_to_fit(step, state, shapes(64))
    fits = int(re.search(r"about (\d+) a device", str(caught.value))[1])
    assert 46 <= fits <= 50


def test_a_run_that_does_not_fit_ends_before_its_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "limit", lambda: 1)
    done = command(*tiny, f"--workdir={tmp_path}/run")
    assert done.code == 2 and "Traceback" not in done.stderr
    assert "config.train.batch_size: 4 images" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "run/checkpoints").glob("[0-9]*"))


def test_a_cpu_has_no_limit_and_of_several_devices_the_least_counts(monkeypatch):
    assert device_memory.limit() is None
    devices = [SimpleNamespace(memory_stats=lambda n=n: {"bytes_limit": n}) for n in (9, 7, 8)]
    monkeypatch.setattr(device_memory.jax, "local_devices", lambda: devices)
    assert device_memory.limit() == 7
