"""Some hundreds to some thousands of real films, on a laptop's CPU: from a run of the first command.

    python run.py --config=configs/small.py --workdir=runs/NAME \
        --config.data.name=tfds_vinbig/NAME --config.model.init_from=runs/phantom

NAME is a dataset of 128 pixels or more, built as docs/own_data.md says;
`--config.data.groups=FILE.csv:patient` keeps the films of a patient in one fold.
docs/real_findings.md has what was tried, and what came of it.
"""

from ml_collections import ConfigDict

from configs import phantom


def get_config() -> ConfigDict:
    """`configs/phantom.py` with what differs."""
    config = phantom.get_config()
    config.data.name = "tfds_vinbig/small"
    config.augment.apply = ("affine", "crop_and_zoom", "grey_levels")
    config.augment.flip = 0.5
    config.inference.tta.flip = True
    config.train.steps = 1_800
    config.train.warmup_steps = 60
    config.train.checkpoint_every = 600
    config.train.evaluate_every = 600
    return config
