"""A slim RetinaNet on the phantom, sized for a laptop's CPU. Draws the phantom where it is missing.

python run.py --config=configs/phantom.py --workdir=runs/phantom
"""

from ml_collections import ConfigDict

from configs import retina


def get_config() -> ConfigDict:
    """`configs/retina.py` with what differs."""
    config = retina.get_config()
    config.data.name = "tfds_vinbig/phantom"
    config.data.image_size = 128
    config.data.normal_share = 0.1  # half of the phantom's images are normal, and soon known
    config.augment.flip = 0.0  # a mirrored chest is a second anatomy to learn
    config.model.backbone.depth = 18
    config.model.backbone.width = 32
    config.model.fpn_channels = 48
    config.model.head_channels = 48
    config.model.head_depth = 1
    config.model.levels = (2, 3, 4, 5)  # anchors of a sixth would be larger than the film
    config.model.num_scales = config.model.num_ratios = 1  # with ATSS, more find no more
    config.model.dtype = "float32"  # bfloat16 does not help a CPU
    config.train.steps = 1_400
    config.train.learning_rate = 1.4e-3
    config.train.warmup_steps = 140
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 700
    config.train.evaluate_every = 700
    return config
