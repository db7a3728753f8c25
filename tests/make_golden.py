"""What the networks of torchvision and timm say, for tests to compare with where they are not.

    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31
    python -m tests.make_golden     # writes tests/golden/

v1.npz and v2.npz are of RetinaNet, fcos.npz is of FCOS, for tests/models/test_parity.py. names.json
has the names and shapes of the weights of several networks, features.npz what some of them see, for
tests/models/test_weights.py. Weights come from a generator seeded by the name of each, so that they
need no file.
"""

import json
import math
import zlib
from pathlib import Path
from unittest import mock

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
NUM_CLASSES = 6
SIZES = ((128, 128), (256, 256), (128, 192))  # (height, width) in pixels
EVERY = 23  # anchors that are kept of the outputs
# What torchvision calls the outputs and the losses, in the order of ours.
OUTPUTS = {
    "cls_logits": "class_logits", "bbox_regression": "box_offsets", "bbox_ctrness": "centerness",
}  # fmt: skip
LOSSES = ("classification", "bbox_regression", "bbox_ctrness")


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a weight, by its name in torchvision; activations stay near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith(("gamma", "layer_scale")):
        return rng.uniform(0.1, 0.3, shape).astype(np.float32)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        if name.endswith("weight"):  # of a normalisation; small where a block joins its shortcut
            low = 0.1 if name.endswith("bn3.weight") else 0.5
            return rng.uniform(low, 2 * low, shape).astype(np.float32)
        offset = -4.0 if "cls_logits" in name else 0.0
        return (rng.normal(0, 0.1, shape) + offset).astype(np.float32)
    gain = math.sqrt(2)
    for part, smaller in (("inner_blocks", 0.3), ("cls_logits", 1.5), ("bbox_reg", 0.3)):
        gain = smaller if part in name else gain
    return rng.normal(0, gain / math.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


def images(size: tuple[int, int]) -> np.ndarray:
    """Two normalised pictures [2, height, width, 3]: smooth, so that they differ from place to
    place."""
    rng = np.random.default_rng(size[0] + 3 * size[1])
    coarse = rng.normal(0, 1.5, (2, size[0] // 16, size[1] // 16, 3))
    return (
        coarse.repeat(16, axis=1).repeat(16, axis=2) + rng.normal(0, 0.5, (2, *size, 3))
    ).astype(np.float32)


def boxes(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Five boxes and their classes, one so small that only a low-quality match reaches it."""
    rng = np.random.default_rng(size[0] + 5 * size[1])
    corner = rng.uniform(0, np.array([size[1], size[0]]) - 64, (5, 2))
    extent = np.concatenate([rng.uniform(16, 64, (4, 2)), [[5, 4]]])
    return np.concatenate([corner, corner + extent], 1).astype(np.float32), np.array(
        [0, 3, 5, 3, 1]
    )


def large_boxes(size: tuple[int, int]) -> np.ndarray:
    """Eight boxes, up to as large as the picture, that lie in one another."""
    rng = np.random.default_rng(size[0] + 7 * size[1])
    x, y = np.sort(rng.uniform(0, np.array([[[size[1]]], [[size[0]]]]), (2, 8, 2)), axis=-1)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


def head_outputs(size: tuple[int, int], num_anchors: int) -> tuple[np.ndarray, np.ndarray]:
    """Class logits and box offsets of one image, to choose detections from."""
    rng = np.random.default_rng(size[0] + 9 * size[1])
    logits = rng.normal(-3.5, 1.5, (num_anchors, NUM_CLASSES))
    return logits.astype(np.float32), rng.normal(0, 0.3, (num_anchors, 4)).astype(np.float32)


def location_outputs(size: tuple[int, int], num_locations: int) -> tuple[np.ndarray, ...]:
    """As `head_outputs`, of FCOS: distances of some strides, and a logit of the centre-ness."""
    logits, offsets = head_outputs(size, num_locations)
    rng = np.random.default_rng(size[0] + 11 * size[1])
    centerness = rng.normal(0, 1, (num_locations, 1))
    return logits + 2, 10 * np.abs(offsets), centerness.astype(np.float32)


def project(name: str, gradient: np.ndarray) -> np.ndarray:
    """A gradient's norm, and its parts along three random directions."""
    rng = np.random.default_rng(zlib.crc32(f"directions of {name}".encode()))
    directions = rng.normal(size=(3, gradient.size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    flat = gradient.ravel().astype(np.float64)
    return np.append(np.linalg.norm(flat), directions @ flat)


def filled(model):
    """A model of torch with `fill` for its weights."""
    import torch

    model.load_state_dict(
        {
            name: torch.tensor(fill(name, tuple(value.shape))) if value.ndim else value
            for name, value in model.state_dict().items()
        }
    )
    return model


def torchvision_model(version: str):
    """With ResNet-50: RetinaNet v1 as its COCO weights are loaded (frozen BatchNorm without
    epsilon), or v2; or FCOS as its are (frozen BatchNorm with it)."""
    from benchmarks.torchvision_cpu import torchvision

    detection, ops = torchvision.models.detection, torchvision.ops
    if version in ("v1", "fcos"):
        backbone = torchvision.models.resnet50(norm_layer=ops.FrozenBatchNorm2d)
        backbone = detection.backbone_utils._resnet_fpn_extractor(
            backbone,
            5,
            returned_layers=[2, 3, 4],
            extra_blocks=ops.feature_pyramid_network.LastLevelP6P7(256, 256),
        )
        kind = detection.FCOS if version == "fcos" else detection.RetinaNet
        model = kind(backbone, num_classes=NUM_CLASSES)
        for module in model.modules():
            if version == "v1" and isinstance(module, ops.FrozenBatchNorm2d):
                module.eps = 0.0
    else:
        model = detection.retinanet_resnet50_fpn_v2(weights_backbone=None, num_classes=NUM_CLASSES)
    return filled(model)


def torchvision_networks():
    """Networks of torchvision by name, and the stages C2 to C5 of those that are backbones."""
    from benchmarks.torchvision_cpu import torchvision

    models, detection = torchvision.models, torchvision.models.detection
    resnet, convnext = models.resnet18(), models.convnext_tiny()
    small = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4],
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
    )  # fmt: skip
    return {
        "torchvision/resnet18": (resnet, [getattr(resnet, f"layer{i}") for i in (1, 2, 3, 4)]),
        "torchvision/convnext_tiny": (convnext, [convnext.features[i] for i in (1, 3, 5, 7)]),
        "torchvision/retinanet_resnet18": (detection.RetinaNet(small, num_classes=91), None),
        "torchvision/v1": (torchvision_model("v1"), None),
        "torchvision/v2": (torchvision_model("v2"), None),
        "torchvision/fcos": (torchvision_model("fcos"), None),
    }


def timm_networks():
    """As `torchvision_networks`, of timm."""
    from timm.models import create_model

    from benchmarks.torchvision_cpu import torchvision  # noqa: F401  (timm imports it)

    resnet, convnext = (create_model(name) for name in ("resnet18", "convnext_tiny"))
    return {
        "timm/resnet18": (resnet, [getattr(resnet, f"layer{i}") for i in (1, 2, 3, 4)]),
        "timm/convnext_tiny": (convnext, list(convnext.stages)),
    }


def features_of(network, stages) -> list[np.ndarray]:
    """What its stages make of two pictures of 96 x 64 pixels, [2, height, width, channels] each."""
    import torch

    seen, x = [], torch.tensor(images((96, 64))).permute(0, 3, 1, 2)
    for stage in stages:
        stage.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        filled(network).eval()(x)
    return [x.permute(0, 2, 3, 1).numpy() for x in seen]


def torchvision_side(version: str) -> dict[str, np.ndarray]:
    """Anchors, outputs, matches, detections of each size; losses and gradients of two batches."""
    import torch

    from benchmarks.torchvision_cpu import torchvision

    image_list = torchvision.models.detection.image_list.ImageList
    model, result = torchvision_model(version), {}
    for size in SIZES:
        key = f"{size[0]}x{size[1]}"
        x = torch.tensor(images(size)).permute(0, 3, 1, 2)
        found, labels = map(torch.tensor, boxes(size))
        model.eval()
        with torch.no_grad():
            features = list(model.backbone(x).values())
            outputs = model.head(features)
            anchors = model.anchor_generator(image_list(x, [size] * 2), features)[0]
            result[f"{key}/anchors"] = anchors.numpy()[::EVERY]
            for name in outputs:
                result[f"{key}/{OUTPUTS[name]}"] = outputs[name].numpy()[:, ::EVERY]
            per_location = model.anchor_generator.num_anchors_per_location()[0]
            per_level = [f.shape[2] * f.shape[3] * per_location for f in features]
            if version == "fcos":
                matches = fcos_matches(model, found, anchors, per_level)
                large = torch.tensor(large_boxes(size))
                of_large = fcos_matches(model, large, anchors, per_level)
                result[f"{key}/matches_of_large"] = of_large.numpy().astype(np.int8)
                given = location_outputs(size, len(anchors))
            else:
                matches = model.proposal_matcher(torchvision.ops.box_iou(found, anchors))
                given = head_outputs(size, len(anchors))
            result[f"{key}/matches"] = matches.numpy().astype(np.int8)
            given = {k: torch.tensor(v)[None] for k, v in zip(OUTPUTS, given, strict=False)}
            for name, out in (("given", given), ("image", {k: v[:1] for k, v in outputs.items()})):
                split = {k: list(v.split(per_level, dim=1)) for k, v in out.items()}
                model.score_thresh = 0.05  # RetinaNet's own
                # Fifty leave room between scores, which the two round in their own ways.
                model.detections_per_img = 300 if name == "given" else 50
                (chosen,) = model.postprocess_detections(
                    split, [list(anchors.split(per_level))], [size]
                )
                for field in ("boxes", "labels", "scores"):
                    result[f"{key}/{name}/{field}"] = chosen[field].numpy()

    size, model = SIZES[0], model.double()
    x = torch.tensor(images(size)).permute(0, 3, 1, 2).double()
    found, labels = map(torch.tensor, boxes(size))
    found = found.double()
    nothing = {
        "boxes": torch.zeros(0, 4, dtype=torch.float64),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    model.train()
    for batch, targets in (
        ("mixed", [{"boxes": found, "labels": labels}, nothing]),
        ("normal", [nothing, nothing]),
    ):
        model.zero_grad()
        features = list(model.backbone(x).values())
        outputs = model.head(features)
        anchors = model.anchor_generator(image_list(x, [size] * 2), features)
        per_level = [f.shape[2] * f.shape[3] for f in features]
        lengths = [per_level] if version == "fcos" else []
        losses = model.compute_loss(targets, outputs, anchors, *lengths)
        result[f"{batch}/losses"] = np.array([losses[k].item() for k in LOSSES if k in losses])
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            result[f"{batch}/gradient/{name}"] = gradient.numpy().copy()
        if version == "fcos":
            given = [
                torch.tensor(np.stack([x, x[::-1]]), dtype=torch.float64).requires_grad_()
                for x in location_outputs(size, sum(per_level))
            ]
            losses = model.compute_loss(
                targets, dict(zip(OUTPUTS, given, strict=True)), anchors, per_level
            )
            result[f"{batch}/given/losses"] = np.array([losses[k].item() for k in LOSSES])
            sum(losses.values()).backward()
            for name, value in zip(OUTPUTS.values(), given, strict=True):
                result[f"{batch}/given/{name}"] = value.grad.numpy().astype(np.float32)
    return result


def fcos_matches(model, found, anchors, per_level):
    """The box of each location, which `compute_loss` hands to the head."""
    seen = []
    with mock.patch.object(model.head, "compute_loss", lambda *x: seen.extend(x[-1])):
        model.compute_loss([{"boxes": found}], {}, [anchors], per_level)
    return seen[0]


def main():
    GOLDEN.mkdir(exist_ok=True)
    names, features = {}, {}
    for name, (network, stages) in (torchvision_networks() | timm_networks()).items():
        names[name] = {key: list(value.shape) for key, value in network.state_dict().items()}
        for level, x in enumerate(features_of(network, stages) if stages else [], start=2):
            print(name, f"C{level}", x.shape, f"standard deviation {x.std():.2f}")
            features[f"{name}/C{level}"] = x.ravel()[::EVERY]
    lines = (f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in names.items())
    (GOLDEN / "names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(GOLDEN / "features.npz", **features)

    for version in ("v1", "v2", "fcos"):
        side = {
            name: project(name.split("/")[-1], value) if "/gradient/" in name else value
            for name, value in torchvision_side(version).items()
        }
        for name, scores in side.items():
            if name.endswith("scores"):
                gap = -np.diff(scores.astype(float)).max()
                print(
                    version,
                    name,
                    f"scores {scores[0]:.3f} to {scores[-1]:.3f}, gaps from {gap:.1e}",
                )
        np.savez_compressed(GOLDEN / f"{version}.npz", **side)


if __name__ == "__main__":
    main()
