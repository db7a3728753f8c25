import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from configs import retina
from jaxdet import InputError
from jaxdet.inference.detector import load_detector
from jaxdet.runs import config as configs
from jaxdet.training import loop


def test_a_run_is_of_its_images(config, dataset, sets, tmp_path):
    """Others under the same workdir, or the same corrected and built anew, are refused."""
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    fewer = sets[0].take(np.arange(len(sets[0]) - 1))
    with pytest.raises(InputError, match="has other training images than tfds_vinbig/256"):
        loop.train(config, retina.get_fields(), dataset, fewer, sets[1], tmp_path)
    with pytest.raises(InputError, match="has other images or annotations than"):
        loop.train(
            config,
            retina.get_fields(),
            replace(dataset, checksums=dataset.checksums + 1),
            *sets,
            tmp_path,
        )
    renamed = replace(dataset, class_names=("Mass", *dataset.class_names[1:]))
    with pytest.raises(InputError, match="has other class names than"):
        loop.train(config, retina.get_fields(), renamed, *sets, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("field", ["train.batch_size", "evaluation.batch_size"])
def test_a_batch_that_the_devices_do_not_divide_is_known_before_the_first_step(
    config, dataset, sets, tmp_path, field
):
    section, name = field.split(".")
    config[section][name] = 6
    with pytest.raises(InputError, match=rf"config\.{field}: 6 does not divide over 4 devices"):
        loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_without_room_is_known_before_the_first_step(
    config, dataset, sets, tmp_path, monkeypatch
):
    full = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(train.shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="--workdir: checkpoints need .* MB, and .* for 0 MB"):
        loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_anchors_of_a_run_without_a_checkpoint_are_planned_anew(config, dataset, sets, tmp_path):
    """Stopped before its first checkpoint, and started again with larger pictures, say."""
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    config.model.anchor_scales = None
    (tmp_path / "config.json").write_text('{"model": {"anchor_scales": [7.0]}}')
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert len(record["model"]["anchor_scales"]) == 3
    assert record["run"]["planned"] == ["model.anchor_scales"]
    # With one, they are the run's.
    again = configs.as_run(config, tmp_path)
    assert list(again.model.anchor_scales) == record["model"]["anchor_scales"]


def test_weights_of_another_model_do_not_fit(config, dataset, sets, tmp_path):
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path)
    config.model.head_channels = 16
    with pytest.raises(InputError, match=r"does not fit.*head.* is \(.* there and \("):
        load_detector(config, tmp_path, "latest", 14)


@pytest.mark.slow
def test_boxes_that_no_anchor_learns_are_counted_and_shown(
    config, dataset, sets, tmp_path, monkeypatch
):
    """The only location is the middle of the picture, where no shape is."""
    config.data.image_size, config.model.levels = 32, (5,)
    config.train.update({"steps": 1, "evaluate_every": 1})
    shown = io.StringIO()
    tqdm = train.tqdm
    monkeypatch.setattr(train, "tqdm", lambda **k: tqdm(**k | {"disable": False, "file": shown}))
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["boxes_without_anchor"] >= config.train.batch_size / 2
    assert f"{line['boxes_without_anchor']} boxes without anchor" in shown.getvalue()
