"""The TFDS dataset `tfds_vinbig`: a checked Kaggle folder as ArrayRecord, without TensorFlow.

    python -m tfds_vinbig --config=256 --manual_dir=KAGGLE_FOLDER

Every reader's box is kept as given: fusing the readers is up to whoever trains.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle, writer
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from jaxdet import InputError
from tfds_vinbig import kaggle

if importlib.util.find_spec("tensorflow") is None:
    # From 1 GB on, which is any set above 256 pixels, TFDS sorts the records in files that it opens
    # with TensorFlow. Plain files do; fewer of them, as systems allow 256 to 1024 open ones.
    shuffle.tf = SimpleNamespace(
        io=SimpleNamespace(
            gfile=SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
        ),
        errors=SimpleNamespace(ResourceExhaustedError=()),
    )
    shuffle.BUCKETS_NUMBER = 128


class StableWriter(writer.ExampleWriter):
    """Writes the fields of a record in one order; protobuf's differs from process to process."""

    def write(self, path, examples):
        parse = tf_example_pb2.Example.FromString
        return super().write(
            path,
            ((key, parse(data).SerializeToString(deterministic=True)) for key, data in examples),
        )


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
    """`size`: height and width of the stored pictures in pixels."""

    size: int = 256


class Builder(tfds.core.GeneratorBasedBuilder):
    """VinBigData chest X-rays, or the phantom.

    The arguments other than those of TFDS name what is not at its place: `manual_dir` the Kaggle
    folder (default: the manual_dir of the download config), and the tables in it as in
    `kaggle.read_folder`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Every reader's boxes."}  # noqa: RUF012
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

    def __init__(
        self, *, manual_dir=None, train_csv=None, train_meta=None, test_meta=None, **kwargs
    ):
        super().__init__(**kwargs)
        self._manual_dir = manual_dir
        self._tables = (train_csv, train_meta, test_meta)

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        features = tfds.features
        return self.dataset_info_from_configs(
            description=(
                "Chest X-rays with the boxes of every reader, from the Kaggle competition "
                "VinBigData Chest X-ray Abnormalities Detection (2021)."
            ),
            homepage="https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
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
                            "label": features.ClassLabel(names=kaggle.CLASS_NAMES),
                            "reader": features.Text(),
                        }
                    ),
                    "normal_readers": features.Sequence(features.Text()),  # who saw nothing
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        found = kaggle.read_folder(self._folder(dl_manager), *self._tables)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        splits = {"train": found.train} | ({"test": found.test} if found.test else {})
        for name, records in splits.items():
            classes = [row.class_id for record in records for row in record.rows]
            normal = classes.count(kaggle.NO_FINDING)
            self.info.metadata[name] = {
                "images": len(records),
                "boxes": len(classes) - normal,
                "no_finding_rows": normal,
            }
        return {name: self._generate_examples(name, records) for name, records in splits.items()}

    def _example_writer(self) -> writer.ExampleWriter:
        return StableWriter(self.info.file_format)

    def _folder(self, dl_manager) -> Path:
        """The Kaggle folder; the phantom's is drawn where it is missing."""
        if self.builder_config.name != "phantom":
            return Path(self._manual_dir or dl_manager.manual_dir).expanduser()
        folder = self._manual_dir
        if folder is None:
            # `tfds build` without --manual_dir: AssertionError, or any folder by that name.
            with contextlib.suppress(AssertionError):
                folder = dl_manager.manual_dir
            if folder is None or not (Path(folder) / "train.csv").exists():
                folder = self.data_dir_root / "phantom"
        folder = Path(folder).expanduser()
        if not os.path.exists(folder) or (folder.is_dir() and not os.listdir(folder)):
            draw_phantom(folder)
        return folder

    def _generate_examples(
        self, split: str, records: list[kaggle.Record]
    ) -> Iterator[tuple[str, dict]]:
        size = self.builder_config.size

        def example(record: kaggle.Record) -> dict:
            found = [row for row in record.rows if row.class_id != kaggle.NO_FINDING]
            normal = [row for row in record.rows if row.class_id == kaggle.NO_FINDING]
            return {
                "image_id": record.image_id,
                "index": record.index,
                "image": encode(record.path, size),
                "height": record.height,
                "width": record.width,
                "objects": [
                    {"bbox": relative(row, record), "label": row.class_id, "reader": row.rad_id}
                    for row in found
                ],
                "normal_readers": [row.rad_id for row in normal],
            }

        bar = tqdm(total=len(records), desc=f"write {split}", unit="image", disable=None)
        with bar, ThreadPoolExecutor() as pool:
            # In portions, so that threads that resize do not run gigabytes ahead of the writer.
            for start in range(0, len(records), 256):
                portion = records[start : start + 256]
                for record, features in zip(portion, pool.map(example, portion), strict=True):
                    yield record.image_id, features
                    bar.update()


def relative(row: kaggle.Row, record: kaggle.Record) -> tfds.features.BBox:
    """The box of a row as shares of its image; TFDS's float32 keeps it to 1e-7 of the image."""
    return tfds.features.BBox(
        ymin=row.y_min / record.height,
        xmin=row.x_min / record.width,
        ymax=row.y_max / record.height,
        xmax=row.x_max / record.width,
    )


def encode(path: Path, size: int) -> bytes:
    """A picture as an 8-bit gray PNG of size x size pixels; one that is so already is not touched.

    Raises:
        InputError: for a file that is no readable PNG or JPEG.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read this image ({error.strerror})") from error
    # PNG's first chunk: width, height, bits a sample, and 0 for gray.
    if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBB", size, size, 8, 0)):
        return data
    picture = Image.fromarray(kaggle.read_image(path))
    if picture.size != (size, size):
        # Pillow averages over what a pixel covers, so that small findings do not alias.
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def draw_phantom(folder: Path) -> None:
    """Draw the phantom's Kaggle folder, whole or not at all.

    Raises:
        InputError: where it cannot be written.
    """
    from tfds_vinbig import phantom

    try:
        with _made(folder.parent), _scratch(folder.parent) as scratch:
            phantom.draw_folder(scratch / folder.name)
            _put(scratch / folder.name, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot draw the phantom there ({error.strerror or error})"
        ) from error


def build(
    config: str,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    train_csv: str | Path | None = None,
    train_meta: str | Path | None = None,
    test_meta: str | Path | None = None,
) -> Path:
    """Build the dataset `DATA_DIR/tfds_vinbig/CONFIG/VERSION` and return that directory.

    What is built already is left as it is. The other arguments are those of `Builder`; the phantom
    is drawn into `DATA_DIR/phantom` unless `manual_dir` says where it is or is to be. When this
    fails or is interrupted, `data_dir` is left as it was, but for a phantom that is wholly drawn.

    Raises:
        InputError: for an unknown config, a Kaggle folder that is not as it should be, or a
            `data_dir` that cannot be written to.
    """
    if config not in Builder.builder_configs:
        known = ", ".join(Builder.builder_configs)
        raise InputError(f"--config={config}: no such dataset; there are {known}")
    if manual_dir is None and config != "phantom":
        raise InputError(f"--manual_dir: needed with --config={config}, the Kaggle folder")
    data_dir = Path(data_dir).expanduser()
    target = data_dir / Builder.name / config / str(Builder.VERSION)
    if os.path.exists(target / "dataset_info.json"):
        print(f"already built: {target}")
        return target
    if os.path.exists(target):
        raise InputError(f"{target}: not a whole dataset: remove it, or choose another --data_dir")
    try:
        # Built beside its final place, so that nothing half written is ever found there.
        with _made(data_dir), _scratch(data_dir) as scratch:
            builder = Builder(
                config=config,
                data_dir=scratch,
                file_format="array_record",
                manual_dir=manual_dir or data_dir / "phantom",
                train_csv=train_csv,
                train_meta=train_meta,
                test_meta=test_meta,
            )
            # TFDS announces the scratch folder on standard output, and shows bars without an end.
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
            with _made(target.parent):
                _put(Path(builder.data_dir), target)
    except OSError as error:
        raise InputError(
            f"--data_dir={data_dir}: cannot write there ({error.strerror or error})"
        ) from error
    except (
        RuntimeError
    ) as error:  # ArrayRecord's OSError: "... write() failed: REASON; writing ..."
        _, failed, reason = str(error).partition("() failed: ")
        if not failed:
            raise
        reason = reason.partition(";")[0]
        raise InputError(f"--data_dir={data_dir}: cannot write there ({reason})") from error
    finally:
        tfds.enable_progress_bar()
    return target


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder and its parents; what was new of them goes again if the block fails."""
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty: someone else's
                path.rmdir()
        raise


def _put(folder: Path, target: Path) -> None:
    """Give a finished folder its final name, unless another process has put the same there."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder inside another for the time of the block."""
    with tempfile.TemporaryDirectory(prefix=".tfds_vinbig-", dir=folder) as scratch:
        yield Path(scratch)
