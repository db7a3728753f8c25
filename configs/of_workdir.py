"""The config of a run that there is: `run.py` takes this one where a workdir is given alone."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from configs import retina
from jaxdet.runs.config import of_run


def get_config(workdir: str) -> ConfigDict:
    """What `workdir`/config.json says."""
    return of_run(Path(os.path.expanduser(workdir)), retina.get_fields())
