import io
import json
import shutil

import pytest

from configs import retina
from jaxdet import InputError
from jaxdet.inference.detector import load_detector
from jaxdet.runs import config as configs
from jaxdet.training import loop


@pytest.mark.parametrize("field", ["train.batch_size", "evaluation.batch_size"])
def test_a_batch_that_the_devices_do_not_divide_is_known_before_the_first_step(
    config, dataset, sets, tmp_path, field
):
    section, name = field.split(".")
    config[section][name] = 6
    with pytest.raises(InputError, match=rf"config\.{field}: 6 does not divide over 4 devices"):
        loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_best_by_that_is_no_metric_is_known_before_the_first_step(
    config, dataset, sets, tmp_path
):
    config.evaluation.best_by = "mAP@0.6"
    with pytest.raises(InputError, match=r"config\.evaluation\.best_by: 'mAP@0\.6' is none of"):
        loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_without_room_is_known_before_the_first_step(
    config, dataset, sets, tmp_path, monkeypatch
):
    full = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match="--workdir: checkpoints need .* MB, and .* for 0 MB"):
        loop.train(config, retina.get_fields(), dataset, *sets, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_anchors_of_a_run_without_a_checkpoint_are_planned_anew(config, dataset, sets, tmp_path):
    """Stopped before its first checkpoint, and started again with larger pictures, say."""
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True)
    config.model.anchor_scales, config.train.steps = None, 1
    (tmp_path / "config.json").write_text('{"model": {"anchor_scales": [7.0]}}')
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert len(record["model"]["anchor_scales"]) == 3
    assert record["run"]["planned"] == ["model.anchor_scales"]
    # With one, they are the run's.
    again = configs.as_run(config, retina.get_fields(), tmp_path)
    assert list(again.model.anchor_scales) == record["model"]["anchor_scales"]


def test_weights_of_another_model_do_not_fit(trained):
    config = configs.of_run(trained[0], retina.get_fields())
    config.model.head_channels = 32
    with pytest.raises(InputError, match=r"does not fit.*head.* is .*16.* there and .*32.* here"):
        load_detector(config, trained[0], "latest", 14)


@pytest.mark.slow
def test_boxes_that_no_anchor_learns_are_counted_and_shown(
    config, dataset, sets, tmp_path, monkeypatch
):
    """The only location is the middle of the picture, where no shape is."""
    config.data.image_size, config.model.levels = 32, (5,)
    config.train.update({"steps": 1, "evaluate_every": 1})
    shown = io.StringIO()
    tqdm = loop.tqdm
    monkeypatch.setattr(loop, "tqdm", lambda **k: tqdm(**k | {"disable": False, "file": shown}))
    loop.train(config, retina.get_fields(), dataset, *sets, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["boxes_without_anchor"] >= config.train.batch_size / 2
    assert f"{line['boxes_without_anchor']} boxes without anchor" in shown.getvalue()
