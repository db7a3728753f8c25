"""All 15,000 images' real labels through the builder and back: is every reader's row still there?

    pip download --no-deps torchxrayvision && unzip torchxrayvision-*.whl
    python benchmarks/real_labels.py --labels=torchxrayvision/data/vinbigdata-train.csv.gz --out=DIR

The labels are public, the pictures are not: cheap gray ones are drawn in their place, and each
original gets a common size that holds all its boxes.
"""

import argparse
import gzip
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow_datasets as tfds
from PIL import Image

from tfds_vinbig.kaggle import CLASS_NAMES
from tfds_vinbig.tfds_vinbig_dataset_builder import build

# The most common (height, width) of the originals, in that order; the largest is among them.
SIZES = (
    (2430, 1994), (3072, 3072), (2880, 2304), (2500, 2048), (2836, 2336), (3072, 2540),
    (3000, 3000), (3170, 2642), (3028, 2517), (2930, 2504), (3408, 3320), (2688, 2208),
)  # fmt: skip
BOX = ["x_min", "y_min", "x_max", "y_max"]
ROW = ["image_id", "class_id", "rad_id", *BOX]


def make_folder(labels: Path, folder: Path) -> pd.DataFrame:
    """A Kaggle folder of those labels; returns them as pandas reads them."""
    (folder / "train").mkdir(parents=True)
    data = labels.read_bytes()
    text = gzip.decompress(data) if labels.suffix == ".gz" else data
    (folder / "train.csv").write_bytes(text)
    rows = pd.read_csv(folder / "train.csv")
    extent = rows.groupby("image_id", sort=False)[["y_max", "x_max"]].max().fillna(0)
    sizes = [next(s for s in SIZES if s[0] >= y and s[1] >= x) for y, x in extent.to_numpy()]
    meta = pd.DataFrame(sizes, columns=["dim0", "dim1"], index=extent.index)
    meta.sample(frac=1, random_state=0).to_csv(folder / "train_meta.csv")

    def draw(i: int) -> None:
        rng = np.random.default_rng(i)
        picture = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).resize((256, 256))
        picture.save(folder / "train" / f"{extent.index[i]}.png", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(draw, range(len(extent))))
    return rows


def read_back(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows, images) of the train split, boxes in whole pixels of the original."""
    source = tfds.builder_from_directory(path).as_data_source("train")
    rows, images = [], []
    for record in source:
        name, height, width = record["image_id"].decode(), record["height"], record["width"]
        images.append((name, record["index"], height, width, record["image"].shape))
        objects = record["objects"]
        for box, label, reader in zip(
            objects["bbox"], objects["label"], objects["reader"], strict=True
        ):
            y_min, x_min, y_max, x_max = np.rint(box * np.float32([height, width, height, width]))
            rows.append((name, label, reader.decode(), x_min, y_min, x_max, y_max))
        for reader in record["normal_readers"]:
            rows.append((name, len(CLASS_NAMES), reader.decode(), *[np.nan] * 4))
    columns = ["image_id", "index", "dim0", "dim1", "shape"]
    return pd.DataFrame(rows, columns=ROW), pd.DataFrame(images, columns=columns)


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in an order that does not depend on where they come from."""
    rows = rows[ROW].astype({"class_id": np.int64, **dict.fromkeys(BOX, np.float64)})
    return rows.sort_values(ROW, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="FILE.csv or FILE.csv.gz")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    flags = parser.parse_args()

    start = time.perf_counter()
    rows = make_folder(flags.labels, flags.out / "kaggle")
    made = time.perf_counter()
    path = build("256", flags.out / "tfds", flags.out / "kaggle")
    built = time.perf_counter()
    back, images = read_back(path)
    read = time.perf_counter()

    meta = pd.read_csv(flags.out / "kaggle" / "train_meta.csv")
    meta["index"] = range(len(meta))
    assert set(images["shape"]) == {(256, 256, 1)}
    pd.testing.assert_frame_equal(
        images[meta.columns].sort_values("image_id", ignore_index=True),
        meta.sort_values("image_id", ignore_index=True),
        check_dtype=False,
    )
    pd.testing.assert_frame_equal(in_order(back), in_order(rows))
    found = (back.class_id != len(CLASS_NAMES)).sum()
    print(f"{len(images)} images; {len(back)} rows, every one equal: {found} boxes, ", end="")
    print(f"{len(back) - found} of no finding, {back.rad_id.nunique()} readers")
    print(f"pictures drawn in {made - start:.1f} s, checked and built in {built - made:.1f} s,")
    print(f"read back with decoded pictures in {read - built:.1f} s")


if __name__ == "__main__":
    main()
