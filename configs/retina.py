"""RetinaNet with ResNet-50 on VinBigData, as built by `python -m tfds_vinbig --config=256`.

    python run.py --config=configs/retina.py --workdir=runs/r50 --config.model.init_from=FILE

Recommended: FILE with weights of ImageNet or COCO, see docs/pretrained.md; without it, the network
starts from random numbers.

`configs/retina.py:512` and `configs/retina.py:1024` are for the larger pictures. Start from weights
that know pictures already: `--config.model.init_from=FILE`, see docs/pretrained.md. This file names
every field there is; other configs change some of them.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(size: str = "256") -> ConfigDict:
    """The config for pictures of `size` pixels: "256", "512" or "1024"."""
    if size not in ("256", "512", "1024"):
        raise ValueError(f"size {size!r} is not one of 256, 512, 1024")
    config = ConfigDict()
    config.seed = 0

    data = config.data = ConfigDict()
    data.name = f"tfds_vinbig/{size}"
    data.dir = ""  # where datasets are; "": TFDS's place, TFDS_DATA_DIR or ~/tensorflow_datasets
    data.image_size = int(size)  # pixels; pictures are resized where they differ
    data.split = "folds"  # or "seed111", or a TFDS slice such as "train[:80%]"
    data.fold = 0  # the fold that is held out
    data.num_folds = 5
    data.groups = ""  # FILE.csv:COLUMN of a patient for each image_id: never in two folds
    data.eval_split = "rest"  # what `split` leaves, or a TFDS slice
    # Of the readers' boxes, see ops.fusion; "votes@IOU": soft targets; "agree@IOU:2": only what
    # two readers or more have drawn.
    data.fusion = "wbf@0.4"
    data.normal_share = 0.25  # of the images drawn; None: as in the data
    data.balance_classes = False  # images with findings come from each class in turn
    # Decoded images in memory, where they fit: 1 GB at 256 pixels, 4 at 512, 16 at 1024.
    data.cache = True
    data.num_workers = 4  # threads that read ahead

    augment = config.augment = ConfigDict()
    augment.flip = 0.5  # probability
    augment.scale = 0.15  # factor within 1 / 1.15 .. 1.15
    augment.shift = 0.05  # share of the image
    augment.rotate = 5.0  # degrees
    augment.min_visible = 0.3  # share of a box that must stay inside
    augment.brightness = 0.1  # share of the grey range
    augment.contrast = 0.2  # factor within 1 / 1.2 .. 1.2
    augment.gamma = 0.2  # exponent within 1 / 1.2 .. 1.2

    model = config.model = ConfigDict()
    backbone = model.backbone = ConfigDict()
    backbone.name = "resnet"  # or "convnext"
    backbone.depth = 50  # 10, 18, 34, 50, 101; of convnext 18 (Tiny), 36 (Small)
    backbone.width = 64  # channels of the first stage; of convnext 96
    backbone.norm = "batch"  # or "group", "frozen_batch"; of convnext "layer"
    backbone.frozen_stages = 0  # what does not learn: 1 is the stem, 5 is all
    backbone.remat = False  # computed again for the gradient: less memory, more time
    model.init_from = ""  # weights of torchvision or timm: .safetensors, .npz or .pth
    # Levels of the pyramid, anchor sizes (square root of the area, in strides) and ratios (height /
    # width). None: planned from the training boxes, and kept in the run's config.json.
    model.levels = placeholder(tuple)
    model.anchor_scales = placeholder(tuple)
    model.aspect_ratios = placeholder(tuple)
    model.num_scales = 3  # to plan
    model.num_ratios = 3
    model.p6_from = "p5"  # or "c5"
    model.fpn_channels = 256
    model.head_channels = 256
    model.head_depth = 4
    model.head_norm = "none"  # or "group"
    model.image_head = False  # also learns which findings are in the image; scores "No finding"
    model.dtype = "bfloat16"  # of the computation; parameters and losses are float32

    loss = config.loss = ConfigDict()
    loss.matching = "atss"  # of anchors to boxes, or "iou"
    loss.foreground_iou = 0.5  # of "iou"
    loss.background_iou = 0.4
    loss.atss_candidates = 9  # locations per level
    loss.class_loss = "focal"  # or "varifocal": a score learns how well the box fits, too
    loss.alpha = 0.25  # of focal loss; of varifocal 0.75
    loss.gamma = 2.0
    loss.box = "giou"  # or "l1"
    loss.box_weight = 2.0
    loss.image_weight = 1.0  # of the image head's cross-entropy

    train = config.train = ConfigDict()
    train.batch_size = 8 if size == "1024" else 16  # over all devices
    train.steps = 240_000 // train.batch_size  # 20 times as many as four folds have images
    train.optimizer = "adamw"  # or "sgd"
    train.learning_rate = 2e-4
    train.backbone_lr_multiplier = 1.0  # of the learning rate, for the backbone
    train.momentum = 0.9  # of sgd
    train.weight_decay = 0.05  # decoupled for adamw, added to the gradient for sgd
    train.warmup_steps = 500
    train.clip_norm = 5.0  # of the gradient
    train.max_skipped_steps = 20  # in a row, as the loss or gradient is not finite: it then stops
    train.deterministic = False  # on a GPU, at some cost: the same bits each time; a CPU does so
    train.ema_decay = 0.999  # of the exponential moving average of the parameters, per step
    train.log_every = 50  # steps
    train.checkpoint_every = 1_000  # steps; and before each evaluation
    train.evaluate_every = train.steps // 10

    inference = config.inference = ConfigDict()
    inference.score_threshold = 0.01  # mAP never punishes a tail
    inference.pre_nms_top_k = 300  # a level
    inference.nms_iou = 0.4
    inference.max_detections = 100  # an image
    tta = inference.tta = ConfigDict()  # test-time augmentation: further looks at each image
    tta.flip = False  # mirrored too, at each scale; for a network trained with augment.flip
    tta.scales = ()  # factors of data.image_size besides 1, such as (0.8, 1.25)
    tta.fusion = "wbf@0.5"  # of what the looks found, or "nms@IOU"

    evaluation = config.evaluation = ConfigDict()
    evaluation.ground_truth = "wbf@0.4"  # or "raw", or another of jaxdet.ops.fusion
    evaluation.more_iou_thresholds = (0.5, 0.75)  # besides 0.4
    evaluation.bootstrap_samples = 1000  # of the images, for 95 % intervals
    evaluation.batch_size = 16
    return config
