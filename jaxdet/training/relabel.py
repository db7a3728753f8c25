"""Labels that are made again while training, for a fusion that asks the detector: see `ops.bdc`.

They are made after every `data.fusion_every` steps of the weights that are evaluated, and kept in
the workdir, in labels/STEP.npz: a run that goes on between two such steps has those of the last.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data.batches import Images, fuse_readers, pad
from jaxdet.data.dataset import Dataset
from jaxdet.inference.detector import Detector, to_table
from jaxdet.models.weights.init_from import read_npz
from jaxdet.ops import fusion
from jaxdet.ops.boxes import Targets
from jaxdet.runs import workdir


def made_at(config: ConfigDict, step: int) -> int:
    """After which step the labels were made that are learned after `step`; 0: by readers alone."""
    every = config.data.fusion_every
    return step - step % every if fusion.asks_detector(config.data.fusion) else 0


def relabels(config: ConfigDict, step: int) -> bool:
    """Whether labels are made again after a step; not after the last."""
    return 0 < step == made_at(config, step) and step < config.train.steps


def relabel(
    detector: Detector,
    weights: dict[str, nnx.State],
    train_set: Dataset,
    images: Images,
    folder: Path,
    step: int,
    between: Callable[[], None],
) -> Targets:
    """The labels with what the detector finds after a step; written into the workdir, as is what
    was inferred of readers and detector.

    Args:
        images: of `train_set`.
        between: see `Detector.detect_all`.
    """
    config = detector.config
    rows = train_set.annotations
    drawn = np.unique(rows.image[rows.labels != train_set.num_classes])  # on others it is not asked
    found = detector.detect_all(weights, lambda i: images[int(drawn[i])], len(drawn), between)
    table = to_table(found, train_set.sizes[drawn], config.data.image_size, train_set.num_classes)
    table = table._replace(image=drawn[table.image])
    findings = fuse_readers(train_set, config.data.fusion, table)
    targets = pad(train_set, findings, config.data.image_size)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **targets.columns())
    workdir.write_atomically(_file(folder, step), buffer.getvalue())
    workdir.write_skills(folder, findings.skills, train_set.class_names)
    return targets


def read(folder: Path, step: int, num_images: int) -> Targets:
    """The labels that `relabel` has made after a step.

    Raises:
        InputError: if they are not there, or cannot be read.
    """
    file = _file(folder, step)
    try:
        targets = Targets.of_batch(read_npz(file))
        if len(targets.mask) != num_images:
            raise ValueError(f"of {len(targets.mask)} images")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: not the labels of this run, which cannot go on without them ({error}): put "
            "that file back, or name another --workdir"
        ) from error
    return targets


def _file(folder: Path, step: int) -> Path:
    return folder / "labels" / f"{step}.npz"
