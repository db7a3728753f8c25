import json

import pytest

from configs import phantom, retina
from jaxdet import InputError, models
from jaxdet.models import resnet
from jaxdet.runs import config as configs
from jaxdet.runs import workdir
from jaxdet.runs.fields import Field

RUN = workdir.Run(["Mass"], [0, 1], "d", "t", ["model.levels"], [])


@pytest.fixture
def folder(tmp_path):
    """A workdir of `configs/phantom.py` whose pyramid's levels were planned."""
    config = phantom.get_config()
    config.model.update({"levels": (4, 5), "anchor_scales": (1.0,), "aspect_ratios": (1.0,)})
    workdir.write_config(tmp_path, config, RUN)
    return tmp_path


def ours(**changes):
    config = phantom.get_config()
    config.model.update({"levels": None, "anchor_scales": (1.0,), "aspect_ratios": (1.0,)})
    for name, value in changes.items():
        section, field = name.split("__")
        with config.ignore_type():
            config[section][field] = value
    return config


def test_a_run_gives_back_its_config(folder):
    config = configs.of_run(folder, retina.get_fields())
    assert config.model.levels == (4, 5) and config.train.steps == phantom.get_config().train.steps
    assert config.evaluation.more_iou_thresholds == (0.5, 0.75)
    configs.check(config, retina.get_fields())
    assert configs.as_run(config, retina.get_fields(), folder).to_dict() == config.to_dict()


def test_what_was_planned_is_the_runs(folder):
    assert configs.as_run(ours(), retina.get_fields(), folder).model.levels == (4, 5)
    # But for what was given: None is then another config.
    with pytest.raises(InputError, match=r"config\.model\.anchor_scales: None, but the run"):
        configs.as_run(ours(model__anchor_scales=None), retina.get_fields(), folder)


@pytest.mark.parametrize(
    "name,value",
    [
        ("train__learning_rate", 1e-5), ("train__steps", 10), ("train__batch_size", 8),
        ("loss__box", "l1"), ("data__fusion", "raw"), ("data__image_size", 64),
        ("data__fold", 1), ("augment__flip", 0.5), ("model__fpn_channels", 8),
        ("model__levels", (3, 5)),
    ],
)  # fmt: skip
def test_a_field_that_differs_is_named_with_both_values_and_the_way_out(folder, name, value):
    field = name.replace("__", ".")
    with pytest.raises(InputError) as caught:
        configs.as_run(ours(**{name: value}), retina.get_fields(), folder)
    message = str(caught.value)
    assert message.startswith(f"config.{field}: {value!r}, but the run in {folder} has ")
    assert message.endswith("give that, or another --workdir")


@pytest.mark.parametrize(
    "name,value",
    [
        ("data__dir", "/elsewhere"), ("data__cache", False), ("data__num_workers", 9),
        ("data__eval_split", "train"), ("inference__nms_iou", 0.9), ("train__log_every", 7),
        ("evaluation__ground_truth", "raw"), ("train__steps", 99_999),
        ("train__evaluate_every", 7), ("train__checkpoint_every", 7),
    ],
)  # fmt: skip
def test_what_does_not_change_the_run_is_free(folder, name, value):
    section, field = name.split("__")
    assert (
        configs.as_run(ours(**{name: value}), retina.get_fields(), folder)[section][field] == value
    )


@pytest.mark.parametrize(
    "name,value,named",
    [
        ("data__image_size", None, "config.data.image_size: None has no meaning here"),
        ("model__levels", (3.5, 5), "config.model.levels"),
        ("model__anchor_scales", (), "config.model.anchor_scales: empty"),
        ("model__dtype", "float16", "config.model.dtype: 'float16' is not one of"),
        ("loss__box", "l2", "config.loss.box: 'l2' is not one of"),
        ("loss__matching", "max", "config.loss.matching: 'max' is not one of"),
        ("train__optimizer", "adam", "config.train.optimizer: 'adam' is not one of"),
        ("train__steps", 0, "config.train.steps: 0 is not above 0"),
        ("train__steps", True, "config.train.steps: True is not of type int"),
        ("augment__flip", 1.5, "config.augment.flip: 1.5 is not between 0 and 1"),
        ("data__fusion", "x", "config.data.fusion: fusion 'x'"),
        ("evaluation__ground_truth", "x", "config.evaluation.ground_truth: fusion 'x'"),
        ("seed__x", 1, "config.seed"),
    ],
)
def test_a_value_that_a_field_may_not_have_is_named(name, value, named):
    config = phantom.get_config()
    section, field = name.split("__")
    with config.ignore_type():
        if section == "seed":
            config.seed = -1
        else:
            config[section][field] = value
    with pytest.raises(InputError, match=named.replace("(", r"\(")):
        configs.check(config, retina.get_fields())


def test_none_is_a_value_where_it_has_a_meaning():
    config = phantom.get_config()
    with config.ignore_type():
        config.data.normal_share = None
    configs.check(config, retina.get_fields())


def test_a_field_that_there_is_not_is_named():
    config = phantom.get_config()
    with config.unlocked():
        config.train.learnig_rate = 1.0
    with pytest.raises(InputError, match=r"config\.train\.learnig_rate: no such field; there are"):
        configs.check(config, retina.get_fields())
    del config.train.learnig_rate, config.train.steps
    with pytest.raises(InputError, match=r"config\.train\.steps: missing"):
        configs.check(config, retina.get_fields())


def test_a_run_from_before_a_field_of_inference_has_its_default(folder):
    """It does not change what the run is; a field that does is missed."""
    record = json.loads((folder / "config.json").read_text())
    del record["inference"]["tta"]
    (folder / "config.json").write_text(json.dumps(record))
    config = configs.of_run(folder, retina.get_fields())
    assert config.inference.tta.to_dict() == retina.get_config().inference.tta.to_dict()
    del record["loss"]["gamma"]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"lacks loss\.gamma"):
        configs.of_run(folder, retina.get_fields())


def test_a_run_from_before_a_field_has_what_was_done_then(folder):
    """Not the default, which is what is done today."""
    fields = {**retina.get_fields(), "loss.toy": Field(2.0, "of a loss", before=1.0)}
    assert configs.of_run(folder, fields).loss.toy == 1.0
    mine = ours()
    with mine.unlocked():
        mine.loss.toy = 1.0
        assert configs.as_run(mine, fields, folder).loss.toy == 1.0
        mine.loss.toy = 2.0
    with pytest.raises(InputError, match=r"config\.loss\.toy: 2\.0, but the run .* has 1\.0"):
        configs.as_run(mine, fields, folder)
    configs.check(configs.of_run(folder, fields), fields)


def test_a_saved_field_that_nobody_knows_any_more_is_one_line_that_names_it(folder):
    fields = retina.get_fields()
    del fields["train.clip_norm"]
    with pytest.raises(InputError) as caught:
        configs.of_run(folder, fields)
    message = str(caught.value)
    assert message.startswith(
        f"{folder}/config.json: has train.clip_norm, which no field is called"
    )
    assert "\n" not in message


def test_all_fields_that_have_come_since_can_be_left_out(folder):
    """Of a run's config.json, together."""
    record = json.loads((folder / "config.json").read_text())
    younger = {n: f.before for n, f in retina.get_fields().items() if f.before is not ...}
    assert younger
    for name in younger:
        *sections, last = name.split(".")
        section = record
        for part in sections:
            section = section[part]
        del section[last]
    (folder / "config.json").write_text(json.dumps(record))
    found = dict(configs.flatten(configs.of_run(folder, retina.get_fields())))
    assert {name: found[name] for name in younger} == younger


@pytest.mark.parametrize(
    "field,value,named",
    [
        ("fusion", "votes@0.5", "'votes@0.5' is not wbf@IOU or nms@IOU"),
        ("fusion", "wbf@2", "config.inference.tta.fusion: fusion 'wbf@2'"),
        ("scales", (0.1,), "0.1 makes no image of 32 to 8192 pixels"),
        ("scales", (-1.0,), "is not above 0"),
    ],
)
def test_further_looks_that_cannot_be(field, value, named):
    config = ours()
    config.inference.tta[field] = value
    with pytest.raises(InputError) as caught:
        configs.check(config, retina.get_fields())
    assert named in str(caught.value)


def test_only_what_a_config_says_is_one_line(monkeypatch):
    """Whoever writes a layer sees where it fails."""
    config, fields = phantom.get_config(), retina.get_fields()

    def fails(*_, **__):
        raise ValueError("shapes (3,) and (4,) do not match")

    monkeypatch.setattr(resnet, "Stem", fails)
    monkeypatch.setattr(models, "_ABSTRACT", {})  # made anew
    with pytest.raises(ValueError, match="do not match"):
        configs.check(config, fields)


def test_a_run_that_is_older_than_a_field_has_what_was_done_before(folder):
    fields = {**retina.get_fields(), "loss.new": Field(2.0, "of a new loss", before=0.5)}
    config = configs.of_run(folder, fields)
    assert config.loss.new == 0.5
    assert configs.as_run(config, fields, folder).loss.new == 0.5
    config.loss.new = 2.0
    with pytest.raises(InputError, match=r"config\.loss\.new: 2\.0, but the run .* has 0\.5"):
        configs.as_run(config, fields, folder)


def test_a_saved_field_that_nobody_knows_is_named(folder):
    record = json.loads((folder / "config.json").read_text())
    record["loss"]["forgotten"] = 1
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"config\.json: has loss\.forgotten, which no field"):
        configs.of_run(folder, retina.get_fields())
