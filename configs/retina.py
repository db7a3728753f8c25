"""RetinaNet with ResNet-50 on VinBigData, as built by `python -m tfds_vinbig --config=256`.

    python run.py --config=configs/retina.py --workdir=runs/r50 --config.model.init_from=FILE

Recommended: FILE with weights of ImageNet or COCO, see docs/pretrained.md; without it, the network
starts from random numbers.

`configs/retina.py:512` and `configs/retina.py:1024` are for the larger pictures. This file names
every field there is, each with what it means and may be; other configs change some of them.
"""

from ml_collections import ConfigDict

from jaxdet.data.augment import AUGMENTATIONS, check_each_once
from jaxdet.evaluation.metrics import BEST_BY, METRICS, check_metrics
from jaxdet.models import BACKBONES, DETECTORS
from jaxdet.ops import fusion
from jaxdet.ops.box_coder import BOX_CODERS
from jaxdet.ops.losses import BOX_LOSSES, CLASS_LOSSES
from jaxdet.ops.matching import MATCHERS
from jaxdet.runs.fields import Field, Fields, to_config
from jaxdet.training.optimizer import OPTIMIZERS, parse_multipliers

INT32 = 2**31 - 1


def get_config(size: str = "256") -> ConfigDict:
    """The config for pictures of `size` pixels: "256", "512" or "1024"."""
    return to_config(get_fields(size))


def get_fields(size: str = "256") -> Fields:
    """Every field there is; `free` ones may differ in a run that there is."""
    if size not in ("256", "512", "1024"):
        raise ValueError(f"size {size!r} is not one of 256, 512, 1024")
    batch_size = 8 if size == "1024" else 16
    steps = 240_000 // batch_size  # 20 times as many images as four folds have
    free = {"changes": "freely"}
    return {
        "seed": Field(0, "of all that is random", least=0, most=INT32),
        #
        "data.name": Field(f"tfds_vinbig/{size}", "of the dataset, as it was built"),
        "data.dir": Field(
            "",
            "folder that it was built in; empty: TFDS_DATA_DIR of the environment, or "
            "~/tensorflow_datasets",
            **free,
        ),
        "data.image_size": Field(
            int(size), "pixels; pictures are resized where they differ", above=0, most=8192
        ),
        "data.split": Field("folds", 'or "seed111", or a TFDS slice such as "train[:80%]"'),
        "data.fold": Field(0, "the fold that is held out"),
        "data.num_folds": Field(5, "of the training images", above=0),
        "data.groups": Field(
            "", "FILE.csv:COLUMN of a patient for each image_id: never in two folds"
        ),
        "data.eval_split": Field("rest", "what `split` leaves, or a TFDS slice", **free),
        "data.fusion": Field(
            "wbf@0.4",
            f"of the readers' boxes: {', '.join(map(fusion.describe, fusion.FUSIONS))}; see "
            "docs/readers.md",
            check=fusion.parse,
        ),
        "data.fusion_every": Field(
            500, "of bdc: steps after which labels are made again, with what the detector finds",
            above=0, most=INT32, before=500,
        ),
        "data.normal_share": Field(
            0.25, "of the images drawn; None: as in the data", least=0, most=1, nullable=True
        ),
        "data.balance_classes": Field(
            False, "images with findings come from each class in turn"
        ),
        "data.cache": Field(
            True,
            "decoded images in memory, where they fit: 1 GB at 256 pixels, 4 at 512, 16 at 1024",
            **free,
        ),
        "data.num_workers": Field(4, "threads that read ahead", above=0, most=256, **free),
        #
        "augment.apply": Field(
            ("affine", "grey_levels"), "in this order; () for nothing",
            kind=tuple[str, ...], choices=AUGMENTATIONS, check=check_each_once,
            before=("affine", "grey_levels"),
        ),
        "augment.flip": Field(0.5, "of affine: probability of mirroring", least=0, most=1),
        "augment.scale": Field(0.15, "of affine: factor within 1 / 1.15 .. 1.15", least=0),
        "augment.shift": Field(0.05, "of affine: share of the image", least=0),
        "augment.rotate": Field(5.0, "of affine: degrees", least=0),
        "augment.min_visible": Field(
            0.3, "of affine and crop_and_zoom: share of a box that must stay inside",
            least=0, most=1,
        ),
        "augment.brightness": Field(0.1, "of grey_levels: share of the grey range", least=0),
        "augment.contrast": Field(0.2, "of grey_levels: factor within 1 / 1.2 .. 1.2", least=0),
        "augment.gamma": Field(0.2, "of grey_levels: exponent within 1 / 1.2 .. 1.2", least=0),
        # Older runs apply none of the others: `before` is only there to be equal to the default.
        "augment.zoom_probability": Field(
            0.5, "of crop_and_zoom: that it happens to a film", least=0, most=1, before=0.5
        ),
        "augment.zoom_in": Field(
            0.5, "of crop_and_zoom: factor up to 1.5; the rest is cut off", least=0, before=0.5
        ),
        "augment.zoom_out": Field(
            0.25, "of crop_and_zoom: factor down to 1 / 1.25, on black", least=0, before=0.25
        ),
        "augment.paste_probability": Field(
            0.5, "of paste_findings: that a film, normal or not, receives one of another film",
            least=0, most=1, before=0.5,
        ),
        "augment.paste_shift": Field(
            0.1, "of paste_findings: how far from its place, share of the image",
            least=0, most=1, before=0.1,
        ),
        "augment.paste_overlap": Field(
            0.1, "of paste_findings: share of another finding's box that may be pasted over",
            least=0, most=1, before=0.1,
        ),
        "augment.mix_probability": Field(
            0.5, "of mix_with_normal: that a normal film shines through a film",
            least=0, most=1, before=0.5,
        ),
        "augment.mix_share": Field(
            0.5, "of mix_with_normal: the normal film's largest share",
            least=0, most=0.9, before=0.5,
        ),
        #
        "model.name": Field(
            "retinanet", "the detector", choices=DETECTORS, before="retinanet"
        ),
        "model.init_from": Field(
            "", "weights of torchvision or timm (.safetensors, .npz or .pth), or of a run: "
            "WORKDIR, WORKDIR@best or WORKDIR@STEP"
        ),
        # None: planned from the training boxes, and kept in the run's config.json.
        "model.levels": Field(
            None, "of the pyramid; None: planned from the training boxes",
            kind=tuple[int, ...], most=10, nullable=True,
        ),
        "model.anchor_scales": Field(
            None, "anchor sizes (square root of the area) in strides; None: planned",
            kind=tuple[float, ...], above=0, nullable=True,
        ),
        "model.aspect_ratios": Field(
            None, "of anchors, height / width; None: planned",
            kind=tuple[float, ...], above=0, nullable=True,
        ),
        "model.num_scales": Field(3, "to plan", least=1, most=6),
        "model.num_ratios": Field(3, "to plan", least=1, most=6),
        "model.p6_from": Field(
            "p5", "what level 6 is made of", choices=("p5", "c5")
        ),
        "model.fpn_channels": Field(256, "of the pyramid", above=0, most=4096),
        "model.head_channels": Field(256, "of the heads", above=0, most=4096),
        "model.head_depth": Field(4, "convolutions of each head", least=0, most=64),
        "model.head_norm": Field("none", "normalisation of the heads", choices=("none", "group")),
        "model.image_head": Field(
            False, 'also learns which findings are in the image; scores "No finding"'
        ),
        "model.dtype": Field(
            "bfloat16", "of the computation; parameters and losses are float32",
            choices=("float32", "bfloat16"),
        ),
        "model.backbone.name": Field("resnet", "the backbone", choices=BACKBONES),
        "model.backbone.depth": Field(
            50, "10, 18, 34, 50, 101; of convnext 18 (Tiny), 36 (Small)"
        ),
        "model.backbone.width": Field(
            64, "channels of the first stage; of convnext 96", above=0, most=1024
        ),
        "model.backbone.norm": Field(
            "batch", "normalisation; convnext has its own",
            choices=("batch", "group", "frozen_batch", "layer"),
        ),
        "model.backbone.frozen_stages": Field(
            0, "what does not learn: 1 is the stem, 5 is all", least=0, most=5
        ),
        "model.backbone.drop_path": Field(
            0.0, "of convnext: stochastic depth, how often an image skips the last block, and "
            "earlier ones less often; in the paper 0.1 for Tiny, 0.4 for Small",
            least=0, most=1, before=0.0,
        ),
        "model.backbone.remat": Field(
            False, "computed again for the gradient: less memory, more time", **free
        ),
        #
        "loss.matching": Field(
            "atss", "of retinanet's anchors to boxes; for fcos see center_radius", choices=MATCHERS
        ),
        "loss.foreground_iou": Field(0.5, 'of "iou"', least=0, most=1),
        "loss.background_iou": Field(0.4, 'of "iou"', least=0, most=1),
        "loss.atss_candidates": Field(9, 'of "atss": locations per level', above=0, most=1000),
        "loss.center_radius": Field(
            1.5, "of fcos: strides from a box's middle in which locations answer for it",
            above=0, before=1.5,
        ),
        "loss.class_loss": Field(
            "focal", '"varifocal": a score learns how well the box fits, too', choices=CLASS_LOSSES
        ),
        "loss.alpha": Field(0.25, "of focal loss; of varifocal 0.75", least=0, most=1),
        "loss.gamma": Field(2.0, "of focal and varifocal loss", least=0),
        "loss.box": Field("giou", "loss of the boxes", choices=BOX_LOSSES),
        "loss.box_weight": Field(2.0, "of the box loss", least=0),
        "loss.box_coder": Field(
            "deltas", "what retinanet's box head says of a box; fcos has distances",
            choices=BOX_CODERS, before="deltas",
        ),
        "loss.image_weight": Field(1.0, "of the image head's cross-entropy", least=0),
        #
        "train.batch_size": Field(batch_size, "over all devices", above=0, most=65_536),
        "train.accumulate": Field(
            1, "parts of a batch that are worked on one by one: less memory, the same gradient "
            "(but BatchNorm sees a part)", above=0, most=65_536, before=1,
        ),
        "train.steps": Field(steps, "of `batch_size` images", above=0, most=INT32, changes="grows"),
        "train.optimizer": Field("adamw", "the optimiser", choices=OPTIMIZERS),
        "train.learning_rate": Field(2e-4, "the highest", above=0),
        "train.backbone_lr_multiplier": Field(
            1.0, "of the learning rate, for the backbone", least=0
        ),
        "train.lr_multipliers": Field(
            (), "PATTERN=FACTOR of the learning rate for parameters whose names have the pattern "
            "in them, such as ('backbone/stem=0.1','final/bias=2')",
            kind=tuple[str, ...], check=parse_multipliers, before=(),
        ),
        "train.momentum": Field(0.9, "of sgd", least=0, most=1),
        "train.weight_decay": Field(
            0.05, "of kernels; for sgd added to the gradient, else decoupled", least=0
        ),
        "train.warmup_steps": Field(500, "in which the learning rate rises", least=0, most=INT32),
        "train.clip_norm": Field(5.0, "of the gradient", above=0),
        "train.max_skipped_steps": Field(
            20, "in a row, as the loss or gradient is not finite: it then stops", above=0, **free
        ),
        "train.deterministic": Field(
            False, "on a GPU, at some cost: the same bits each time; a CPU does so"
        ),
        "train.ema_decay": Field(
            0.999, "of the exponential moving average of the parameters, per step", least=0, most=1
        ),
        "train.log_every": Field(50, "steps", above=0, **free),
        "train.checkpoint_every": Field(
            1_000, "steps; and before each evaluation", above=0, **free
        ),
        "train.evaluate_every": Field(steps // 10, "steps", above=0, **free),
        #
        "inference.score_threshold": Field(
            0.01, "mAP never punishes a tail", least=0, most=1, **free
        ),
        "inference.pre_nms_top_k": Field(300, "a level", above=0, most=65_536, **free),
        "inference.nms_iou": Field(
            0.4, "boxes of a class that overlap by more are one", least=0, most=1, **free
        ),
        "inference.max_detections": Field(100, "an image", above=0, most=65_536, **free),
        "inference.tta.flip": Field(
            False, "mirrored too, at each scale; for a network trained with augment.flip", **free
        ),
        "inference.tta.scales": Field(
            (), "factors of data.image_size besides 1, such as (0.8, 1.25)", above=0, **free
        ),
        "inference.tta.fusion": Field(
            "wbf@0.5", 'of what the looks found, or "nms@IOU"',
            check=fusion.parse_detections, **free,
        ),
        #
        "evaluation.ground_truth": Field(
            "wbf@0.4", 'or "raw", or another of ops.fusion', check=fusion.parse_readers, **free
        ),
        "evaluation.metrics": Field(
            tuple(METRICS), "computed in each evaluation; average_precision always",
            kind=tuple[str, ...], choices=METRICS, check=check_metrics, **free,
        ),
        "evaluation.best_by": Field(
            BEST_BY, "the metric of which the highest value makes a checkpoint the best",
            before="mAP@0.4", **free,
        ),
        "evaluation.more_iou_thresholds": Field(
            (0.5, 0.75), "besides 0.4", least=0, most=1, **free
        ),
        "evaluation.bootstrap_samples": Field(
            1000, "of the images, for 95 % intervals", least=0, most=1_000_000, **free
        ),
        "evaluation.batch_size": Field(16, "over all devices", above=0, most=65_536, **free),
    }  # fmt: skip
