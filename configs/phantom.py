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
    config.model.depth = 18
    config.model.width = 32
    config.model.fpn_channels = 48
    config.model.head_channels = 48
    config.model.head_depth = 1
    config.model.anchor_scales = (2.0, 2.83)
    config.model.dtype = "float32"  # bfloat16 does not help a CPU
    config.train.steps = 1_600
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.average_decay = 0.995
    config.train.evaluate_every = 400
    return config
