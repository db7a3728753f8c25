"""The TFDS dataset `tfds_vinbig`: checked pictures and boxes as ArrayRecord, without TensorFlow.

    python -m tfds_vinbig --config=256 --manual_dir=KAGGLE_FOLDER

Every reader's box is kept as given: fusing the readers is up to whoever trains.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import hashing
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from jaxdet import InputError
from jaxdet.data import images as pictures
from tfds_vinbig import kaggle, scratch
from tfds_vinbig.drawn import drawing_of, drawn_phantom, tell_older_dataset
from tfds_vinbig.encoding import Shard, write_shards
from tfds_vinbig.records import Allowed, Folder, Record, Row
from tfds_vinbig.sets import read_sets


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """`size`: height and width of the stored pictures in pixels."""

    size: int = 256


class Builder(tfds.core.dataset_builder.FileReaderBuilder):
    """VinBigData chest X-rays, the phantom, or a dataset of one's own.

    `found` are the checked pictures to package, and `source` the paths they came from by flag, for
    the record. Without it, as `tfds build` calls it, the classes are VinBigData's and the Kaggle
    folder is the manual_dir of the download config; the phantom is drawn where it is missing.
    """

    VERSION = tfds.core.Version("1.3.0")
    RELEASE_NOTES = {  # noqa: RUF012
        "1.0.0": "Every reader's boxes.",
        "1.1.0": "The dataset knows its classes and what it was built from.",
        "1.2.0": "All annotations in a table, train.npz, beside the records.",
        "1.3.0": "Classes of which not all is boxed in an image.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        Config("256", size=256, description="Pictures of 256 x 256 pixels."),
        Config("512", size=512, description="Pictures of 512 x 512 pixels."),
        Config("1024", size=1024, description="Pictures of 1024 x 1024 pixels."),
        Config("phantom", size=256, description="Drawn, not X-rayed; drawn where it is missing."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A folder with train/<image_id>.png (square, as resized sets on Kaggle have them), "
        "train.csv and train_meta.csv; and, for a test split, test/<image_id>.png, test_meta.csv "
        "and sample_submission.csv."
    )

    def __init__(self, *, found: Folder | None = None, source: dict | None = None, **kwargs):
        self._found, self._source = found, source
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        features = tfds.features
        class_names = self._found.class_names if self._found else kaggle.CLASS_NAMES
        vinbigdata = self.builder_config.name in self.builder_configs
        return self.dataset_info_from_configs(
            description=(
                "Chest X-rays with the boxes of every reader, from the Kaggle competition "
                "VinBigData Chest X-ray Abnormalities Detection (2021)."
                if vinbigdata
                else "Images with the boxes of every reader."
            ),
            homepage=(
                "https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection"
                if vinbigdata
                else ""
            ),
            features=features.FeaturesDict(
                {
                    "image_id": features.Text(),
                    # Row of train_meta.csv, or of sample_submission.csv for the test split.
                    "index": np.int32,
                    "image": features.Image(shape=(size, size, 1), encoding_format="png"),
                    # Of the original in pixels: boxes are relative to it.
                    "height": np.int32,
                    "width": np.int32,
                    "objects": features.Sequence(
                        {
                            "bbox": features.BBoxFeature(),
                            "label": features.ClassLabel(names=class_names),
                            "reader": features.Text(),
                        }
                    ),
                    "normal_readers": features.Sequence(features.Text()),  # who saw nothing
                    # Classes of which there may be more than is boxed.
                    "not_exhaustive": features.Sequence(features.ClassLabel(names=class_names)),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager, download_config=None):
        options = download_config or tfds.download.DownloadConfig()
        if options.max_examples_per_split == 0:  # of `tfds build`, as for its other builders
            return
        if self._found is None:
            folder = self._folder(dl_manager)
            self._found = kaggle.read_folder(folder)
            self._source = {"manual_dir": full_path(folder)}
        for note in self._found.notes:
            print(f"note: {note}", file=sys.stderr)
        splits = {"train": self._found.train}
        if self._found.test:
            splits["test"] = self._found.test
        for name, records in splits.items():
            labels = [row.label for record in records for row in record.rows]
            normal = labels.count(self._normal)
            self.info.metadata[name] = {
                "images": len(records),
                "boxes": len(labels) - normal,
                "no_finding_rows": normal,
            }
        # By which number files name each class and, last, "No finding".
        self.info.metadata["class_ids"] = list(self._found.class_ids)
        self.info.metadata["source"] = self._source
        if self.builder_config.name == "phantom":
            self.info.metadata["drawing"] = drawing_of(Path(self._source["manual_dir"]))
        written = [
            self._write(name, records[: options.max_examples_per_split], options.num_shards)
            for name, records in splits.items()
        ]
        self.info.set_splits(tfds.core.splits.SplitDict(written))

    def _write(self, split: str, records: list[Record], number: int | None) -> tfds.core.SplitInfo:
        """Write the files of a split, in the order in which TFDS shuffles records by their ids.

        TFDS's own writer does all in one process, and of more than 1 GB makes a copy on disk.
        """
        key = hashing.Hasher(split).hash_key
        records = sorted(records, key=lambda record: key(record.image_id))
        count, size = len(records), self.builder_config.size
        if number is None:
            number = shard_utils.ShardConfig.calculate_number_shards(count * size**2, count)
            # A process writes a file at a time: enough of them for as many cores.
            number = max(number, min(64, math.ceil(count / 32)))
        ends = shard_utils.get_shard_boundaries(count, number)
        slices = [slice(start, end) for start, end in itertools.pairwise([0, *ends])]
        template = self._get_filename_template(split)
        files = [template.sharded_filepath(shard_index=i, num_shards=number) for i in range(number)]
        paths = [record.path for record in records]
        shards = (
            Shard(file, [self._serialize(record) for record in records[mine]], paths[mine])
            for file, mine in zip(files, slices, strict=True)
        )
        bar = tqdm(total=count, desc=f"write {split}", unit="image", disable=None)
        seen = []
        written = write_shards(shards, paths, size, self.info.file_format, seen)
        checksums = np.zeros(count, np.int64)
        with bar, contextlib.closing(written):
            for shard, found in written:
                checksums[slices[shard]] = found
                bar.update(len(found))
        ids = {record.path: record.image_id for record in records}
        for line in pictures.summarize((ids[path], note) for path, note in seen):
            print(f"note: {split}: {line}", file=sys.stderr)
        # What is said of the images again, so that no one need read the pictures for it.
        said = [(i, row) for i, record in enumerate(records) for row in self._rows(record)]
        boxes = [relative(row, records[i]) for i, row in said]
        exhaustive = np.ones((count, self._normal), bool)
        for i, record in enumerate(records):
            exhaustive[i, list(record.not_exhaustive)] = False
        np.savez(
            self.data_path / f"{split}.npz",
            ids=[record.image_id for record in records],
            index=[record.index for record in records],
            sizes=[(record.height, record.width) for record in records],
            checksums=checksums,
            image=np.array([i for i, _ in said], np.int64),
            labels=np.array([row.label for _, row in said], np.int64),
            readers=np.array([row.rad_id for _, row in said], np.str_),
            relative_boxes=np.array(boxes, np.float32).reshape(-1, 4),  # in TFDS's order
            exhaustive=exhaustive,
        )
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[mine.stop - mine.start for mine in slices],
            num_bytes=sum(map(os.path.getsize, files)),
            filename_template=template,
        )

    def _serialize(self, record: Record) -> bytes:
        """All but the picture, which is left empty."""
        rows = self._rows(record)
        found = [row for row in rows if row.label != self._normal]
        normal = rows[len(found) :]
        return self.info.features.serialize_example(
            {
                "image_id": record.image_id,
                "index": record.index,
                "image": b"",
                "height": record.height,
                "width": record.width,
                "objects": [
                    {"bbox": relative(row, record), "label": row.label, "reader": row.rad_id}
                    for row in found
                ],
                "normal_readers": [row.rad_id for row in normal],
                "not_exhaustive": list(record.not_exhaustive),
            }
        )

    def _rows(self, record: Record) -> list[Row]:
        """Those of findings first."""
        return sorted(record.rows, key=lambda row: row.label == self._normal)

    @property
    def _normal(self) -> int:
        """The label of "No finding"."""
        return len(self._found.class_names)

    def _folder(self, dl_manager) -> Path:
        """The Kaggle folder of `tfds build`; the phantom's is drawn where it is missing."""
        if self.builder_config.name != "phantom":
            return Path(dl_manager.manual_dir)
        folder = None
        # Without --manual_dir: AssertionError, or any folder by that name.
        with contextlib.suppress(AssertionError):
            folder = dl_manager.manual_dir
        if folder is None or not (Path(folder) / "train.csv").exists():
            folder = self.data_dir_root / "phantom"
        return drawn_phantom(Path(folder))


def full_path(path: str | Path) -> str:
    """A path that means the same from everywhere."""
    return str(Path(os.path.expanduser(path)).resolve())


def _listed(paths: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths or ())


def _full_paths(paths: str | Path | Sequence[str | Path]) -> str | list[str]:
    found = [full_path(path) for path in _listed(paths)]
    return found[0] if len(found) == 1 else found


def relative(row: Row, record: Record) -> tfds.features.BBox:
    """The box of a row as shares of its image; TFDS's float32 keeps it to 1e-7 of the image."""
    return tfds.features.BBox(
        ymin=row.y_min / record.height,
        xmin=row.x_min / record.width,
        ymax=row.y_max / record.height,
        xmax=row.x_max / record.width,
    )


def build(
    config: str,
    data_dir: str | Path,
    manual_dir: str | Path | Sequence[str | Path] | None = None,
    train_csv: str | Path | None = None,
    train_meta: str | Path | None = None,
    test_meta: str | Path | None = None,
    size: int | None = None,
    coco: str | Path | Sequence[str | Path] | None = None,
    images: str | Path | Sequence[str | Path] | None = None,
    test_images: str | Path | None = None,
    boxes: str = "strict",
    follow_links: bool = False,
) -> Path:
    """Build the dataset `DATA_DIR/tfds_vinbig/CONFIG/VERSION` and return that directory.

    A `config` of Builder's is VinBigData in the Kaggle folder `manual_dir`, with the tables as in
    `kaggle.read_folder`; the phantom is drawn into `DATA_DIR/phantom` unless `manual_dir` says
    where it is or is to be. Any other is the name of a dataset of one's own, with pictures of
    `size` pixels: a folder of Kaggle's form, the VinDr-CXR release, or `coco`, an annotation file,
    with the pictures in `images` and, without annotations, in `test_images`; or several of these,
    joined as `sets.join` says. With `boxes` "cut",
    those that leave their image are cut; with `follow_links`, pictures may be links.

    What is built already is left as it is; that it is from other paths is said. When this fails or
    is interrupted, `data_dir` is left as it was, but for a phantom that is wholly drawn.

    Raises:
        InputError: for a config without size, a folder that is not as it should be, a dataset that
            is built with another size, or a `data_dir` that cannot be written to.
    """
    own = config not in Builder.builder_configs
    if own and size is None:
        known = ", ".join(Builder.builder_configs)
        raise InputError(
            f"--config={config}: not one of {known}; a dataset of your own needs --size"
        )
    folders, *of_coco = map(_listed, (manual_dir, coco, images))
    if not of_coco[0] and not folders and config != "phantom":
        raise InputError(f"--manual_dir: needed with --config={config}, the Kaggle folder")
    allowed = Allowed(follow_links, cut_boxes=boxes == "cut")
    data_dir = Path(os.path.expanduser(data_dir))
    target = data_dir / Builder.name / config / str(Builder.VERSION)
    source = {
        "manual_dir": manual_dir,
        "train_csv": train_csv,
        "train_meta": train_meta,
        "test_meta": test_meta,
        "coco": coco,
        "images": images,
        "test_images": test_images,
    }
    source = {flag: _full_paths(path) for flag, path in source.items() if path}
    if allowed.cut_boxes:
        source["boxes"] = boxes
    scratch.remove_abandoned(target)
    if os.path.exists(target / "dataset_info.json"):
        _check_built(target, source, size)
        print(f"already built: {target}; remove it to build it anew")
        return target
    if os.path.exists(target):
        raise InputError(f"{target}: not a whole dataset: remove it, or choose another --data_dir")
    try:
        # Built beside its final place, so that nothing half written is ever found there.
        with scratch.beside(target) as beside:
            if config == "phantom":
                manual_dir = drawn_phantom(
                    Path(os.path.expanduser(folders[0] if folders else data_dir / "phantom"))
                )
                source["manual_dir"] = full_path(manual_dir)
                folders = [manual_dir]
            tables = train_csv, train_meta, test_meta
            found = read_sets(config, own, folders, tables, *of_coco, test_images, allowed)
            with _silence():
                builder = Builder(
                    found=found,
                    source=source,
                    config=Config(config, size=size) if own else config,
                    data_dir=beside,
                    file_format="array_record",
                )
                builder.download_and_prepare()
            scratch.put(Path(builder.data_dir), target)
    except OSError as error:
        raise InputError(
            f"--data_dir={data_dir}: cannot write there ({error.strerror or error})"
        ) from error
    except RuntimeError as error:  # ArrayRecord's: "... write() failed: REASON; writing ..."
        _, failed, reason = str(error).partition("() failed: ")
        if not failed:
            raise
        reason = reason.partition(";")[0]
        raise InputError(f"--data_dir={data_dir}: cannot write there ({reason})") from error
    return target


def _check_built(target: Path, source: dict[str, str], size: int | None) -> None:
    """Say which of the paths were not read, as the dataset is from others.

    Raises:
        InputError: for another size of the pictures: a run with it would not fit.
    """
    info = tfds.builder_from_directory(target).info
    stored = info.features["image"].shape[0]
    way_out = f"choose another --data_dir or --config, or remove {target} to build anew"
    if size not in (None, stored):
        raise InputError(
            f"--size={size}: already built with pictures of {stored} pixels: {way_out}"
        )
    tell_older_dataset(target, info.metadata)
    recorded = info.metadata.get("source", {})
    if source and source != recorded:
        before, now = (
            " ".join(f"--{flag}={path}" for flag in paths for path in _listed(paths[flag]))
            for paths in (recorded, source)
        )
        print(f"note: already built from {before}; {now} was not read: {way_out}", file=sys.stderr)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """TFDS announces the scratch folder on standard output, warns of a config that is not its own,
    and shows bars without an end."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
