"""FCOS with ResNet-50 on VinBigData: the detector of torchvision's `fcos_resnet50_fpn`.

    python run.py --config=configs/fcos.py --workdir=runs/fcos --config.model.init_from=FILE

As `configs/retina.py`, FILE and sizes (`configs/fcos.py:512`) included, with what differs.
"""

from ml_collections import ConfigDict

from configs import retina


def get_config(size: str = "256") -> ConfigDict:
    """`configs/retina.py` with what differs."""
    config = retina.get_config(size)
    config.model.name = "fcos"
    config.model.head_norm = "group"
    config.loss.box_weight = 1.0
    return config
