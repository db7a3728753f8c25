"""A toy through each door: an entry in a table, found by its name in the config, that trains."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image

from jaxdet import ConfigError, InputError, models
from jaxdet.data import augment
from jaxdet.data.dataset import read_split
from jaxdet.evaluation import metrics
from jaxdet.ops import box_coder, boxes, fusion, losses, matching
from jaxdet.ops.nms import Detections
from jaxdet.training import optimizer
from tests.conftest import command
from tfds_vinbig import records, sets, tfds_vinbig_dataset_builder


class Squares(nnx.Module):
    """A backbone: patches of 4 pixels, then of 2 locations, three times."""

    names: dict = {}  # noqa: RUF012
    epsilon = 1e-5

    def __init__(self, *, width, dtype, rngs):
        self.out_channels = (width,) * 4

        def layer(channels, size):
            return nnx.Conv(
                channels, width, (size, size), strides=size, padding="SAME", dtype=dtype, rngs=rngs
            )

        self.stem = layer(1, 4)
        self.stages = nnx.List([layer(width, 2) for _ in range(3)])

    def __call__(self, x, train):
        features = [nnx.relu(self.stem(x))]
        for stage in self.stages:
            features.append(nnx.relu(stage(features[-1])))
        return features


class OneBox(nnx.Module):
    """A detector without anchors: one box an image, in the middle of what it looks at."""

    planned: dict = {}  # noqa: RUF012
    names: dict = {}  # noqa: RUF012

    def __init__(self, backbone, *, num_classes, image_size, rngs):
        self.backbone, self.image_size = backbone, image_size
        self.head = nnx.Linear(backbone.out_channels[-1], num_classes + 4, rngs=rngs)

    @classmethod
    def plan(cls, model, boxes, labels, image_size):
        return {}

    def describe(self):
        return "one box an image"

    def __call__(self, images, train=False):
        return self.head(self.backbone(images, train)[-1].mean(axis=(1, 2)))

    def losses(self, outputs, targets):
        first = targets.boxes[:, 0] / self.image_size
        found = targets.mask[:, 0]
        logits, corners = outputs[:, :-4], jax.nn.sigmoid(outputs[:, -4:])
        wanted = jax.nn.one_hot(targets.labels[:, 0], logits.shape[-1]) * found[:, None]
        parts = {
            "class_loss": optax.sigmoid_binary_cross_entropy(logits, wanted).mean(),
            "corner_loss": (jnp.abs(corners - first).sum(axis=1) * found).mean(),
        }
        return {"loss": sum(parts.values()), **parts, "normal_films": (~found).sum()}

    def detections(self, outputs, *, score_threshold, max_detections, **_):
        scores = jax.nn.sigmoid(outputs[:, :-4])
        corners = jnp.sort(jax.nn.sigmoid(outputs[:, -4:]).reshape(-1, 2, 2), axis=1)
        best = scores.max(axis=1)

        def padded(x):
            widths = [(0, 0), (0, max_detections - 1)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x[:, None], widths)

        return Detections(
            padded(corners.reshape(-1, 4) * self.image_size),
            padded(scores.argmax(axis=1)),
            padded(best),
            padded(best > score_threshold),
            1 - best,
        )


def darker(key, batch, *, brightness):
    return {**batch, "images": batch["images"] * (1 - brightness)}


def share_of_normal(matched, weights):
    normal = matched.truth.labels == matched.num_classes
    count = weights @ np.bincount(matched.truth.image[normal], minlength=matched.num_images)
    return {"normal share": count / weights.sum(axis=1)}


def largest(readings, iou_threshold):
    """Of each cluster the largest box; half a finding where one reader drew it."""
    clusters = fusion.cluster(readings, iou_threshold)
    order = np.argsort(boxes.area(clusters.rows.boxes), kind="stable")
    corners = np.zeros((len(clusters.first), 4))
    corners[clusters.member[order]] = clusters.rows.boxes[order]
    soft_targets = np.where(clusters.num_readers() > 1, 1.0, 0.5)
    return fusion.Findings(clusters.table(soft_targets, corners), soft_targets)


def slow_sgd(schedule, decays, momentum):
    return optax.sgd(lambda step: 0.1 * schedule(step), momentum=momentum)


@pytest.fixture
def shop(monkeypatch):
    """The tables with a toy in each."""
    for table, name, toy in (
        (models.BACKBONES, "squares", Squares),
        (models.DETECTORS, "one_box", OneBox),
        (augment.AUGMENTATIONS, "darker", darker),
        (metrics.METRICS, "normal_share", share_of_normal),
        (optimizer.OPTIMIZERS, "slow_sgd", slow_sgd),
        (fusion.FUSIONS, "largest", largest),
    ):
        monkeypatch.setitem(table, name, toy)


def test_a_detector_without_anchors_goes_all_the_way(shop, tiny, tmp_path):
    """With a toy backbone, augmentation, optimizer, metric and fusion: trained, scored, predicted,
    looked at, exported."""
    run = [
        *tiny, f"--workdir={tmp_path}", "--config.model.name=one_box",
        "--config.model.backbone.name=squares", "--config.augment.apply=('darker','affine')",
        "--config.train.optimizer=slow_sgd", "--config.train.steps=2",
        "--config.data.fusion=largest@0.4",
        "--config.evaluation.metrics=('average_precision','normal_share')",
        "--config.evaluation.best_by=mAP@0.4",
    ]  # fmt: skip
    done = command(*run)
    assert done.code == 0, done.stderr
    assert "one box an image" in done.stdout and "anchors reach" not in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "corner_loss" in line)
    assert logged["loss"] > 0 and logged["normal_films"] in range(5)
    scores = json.loads((tmp_path / "evaluation.json").read_text())
    assert 0 < scores["normal share"] < 1 and scores["95% interval"]["normal share"]
    assert "normal share" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "submission.csv").exists()

    assert command(f"--workdir={tmp_path}", "--mode=inspect").code == 0
    page = (tmp_path / "data.html").read_text()
    assert "one box an image" in page and 'id="anchors"' not in page
    done = command(f"--workdir={tmp_path}", "--mode=export")
    assert done.code == 0, done.stderr
    assert "one box an image" in (tmp_path / "export/MODEL_CARD.md").read_text()


def test_a_toy_of_each_part_of_retinanet_is_found_by_its_name(monkeypatch):
    """Class loss, box loss, matcher and box coder, with fields of `loss` by name."""
    asked = {}

    def squared(logits, targets, iou, gamma):
        asked["class_loss"] = gamma
        return (jax.nn.sigmoid(logits) - targets) ** 2

    def corners(offsets, anchors, boxes, coder):
        return jnp.abs(coder.decode(offsets, anchors) - boxes).sum(axis=-1)

    def first_box(priors, boxes, mask, foreground_iou):
        asked["matcher"] = foreground_iou
        anchors = jnp.asarray(np.concatenate(priors.pyramid))
        close = boxes_iou(anchors, boxes[0]) > foreground_iou
        return jnp.where(close & mask[0], 0, matching.BACKGROUND)

    def boxes_iou(anchors, box):
        return boxes.iou(anchors, box[None])

    shifts = box_coder.BoxCoder(lambda boxes, anchors: boxes - anchors, lambda x, a: x + a)
    monkeypatch.setitem(losses.CLASS_LOSSES, "squared", squared)
    monkeypatch.setitem(losses.BOX_LOSSES, "corners", corners)
    monkeypatch.setitem(matching.MATCHERS, "first", first_box)
    monkeypatch.setitem(box_coder.BOX_CODERS, "shifts", shifts)

    from jaxdet.runs import config as configs
    from tests import networks

    loss = {
        **networks.LOSS, "class_loss": "squared", "box": "corners", "matching": "first",
        "box_coder": "shifts", "gamma": 3.0, "foreground_iou": 0.25,
    }  # fmt: skip
    model = nnx.eval_shape(
        lambda: models.create(networks.model_config(image_head=False), loss, 3, 64, nnx.Rngs(0))
    )
    anchors = np.concatenate(model.priors().pyramid)
    box = jnp.array([[8.0, 8, 24, 24]])
    targets = boxes.Targets(box, jnp.array([1]), jnp.ones(1), jnp.ones(1, bool))
    match = np.asarray(model.match(targets))
    close = boxes.iou(anchors, np.asarray(box)) > 0.25
    assert (match == np.where(close, 0, matching.BACKGROUND)).all() and close.any()

    batch = jax.tree.map(lambda x: x[None], targets)
    outputs = models.retinanet.Outputs(
        jnp.zeros((1, len(anchors), 3)), jnp.zeros((1, len(anchors), 4)), None
    )
    got = model.losses(outputs, batch)
    assert asked == {"class_loss": 3.0, "matcher": 0.25}
    np.testing.assert_allclose(got["class_loss"], 0.25 * 3 * len(anchors) / close.sum(), rtol=1e-5)
    expected = np.abs(anchors[close] - np.asarray(box)).sum(axis=1).mean()
    np.testing.assert_allclose(got["box_loss"], expected, rtol=1e-5)
    # A name that no table has is one line.
    config = configs.to_config(networks.retina.get_fields())
    config.loss.matching = "last"
    with pytest.raises(ConfigError, match="'last' is not one of 'atss', 'iou', 'first'"):
        configs.check(config, networks.retina.get_fields())


def test_a_toy_form_of_a_data_set_is_known_by_its_folder(tmp_path, monkeypatch):
    """Films of a folder a class, as `sets.read_set` reads it beside the forms that there are."""

    def read(source):
        names = sorted(path.name for path in Path(source.place).iterdir())
        found = []
        for label, name in enumerate(names):
            for path in sorted((Path(source.place) / name).iterdir()):
                row = records.Row(path.stem, label, "folder", 0, 0, 32, 48)
                found.append(records.Record(path.stem, path, 48, 32, len(found), [row]))
        return records.Folder(tuple(names), tuple(range(len(names) + 1)), found, [], [])

    toy = sets.Form(lambda source: Path(source.place).name == "by class", read)
    monkeypatch.setitem(sets.FORMS, "by_class", toy)
    for name in ("Mass/a", "Mass/b", "Nodule/c"):
        path = tmp_path / "by class" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((48, 32), np.uint8)).save(path)
    path = tfds_vinbig_dataset_builder.build("toy", tmp_path, tmp_path / "by class", size=16)
    (tmp_path / "kaggle").mkdir()
    with pytest.raises(InputError, match=r"train\.csv: no such file"):
        sets.read_set(sets.Source(tmp_path / "kaggle"))
    built = read_split(tfds.builder_from_directory(path), "train")
    assert sorted(built.ids) == ["a", "b", "c"] and built.class_names == ("Mass", "Nodule")
    assert built.annotations.labels[built.annotations.image == list(built.ids).index("c")] == [1]
