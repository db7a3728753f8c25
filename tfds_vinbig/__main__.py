"""Build a dataset from a Kaggle folder, the VinDr-CXR release or COCO's JSON, or the phantom.

python -m tfds_vinbig --config=256 --manual_dir=KAGGLE_FOLDER
python -m tfds_vinbig --config=phantom
python -m tfds_vinbig --config=NAME --size=N --manual_dir=FOLDER
python -m tfds_vinbig --config=NAME --size=N --coco=INSTANCES.json --images=FOLDER

Of one's own, --manual_dir, and --coco with --images, may be given several times: joined to one.
"""

import argparse
import re
import shlex
import sys
from pathlib import Path

from absl import logging

from jaxdet import InputError
from jaxdet.data import machine

# Other names are datasets of one's own.
FIXED = ("256", "512", "1024", "phantom")
SIZES = range(16, 8193)
PATHS = {
    "manual_dir": "FOLDER",
    "data_dir": "DIR",
    "train_csv": "CSV",
    "train_meta": "CSV",
    "test_meta": "CSV",
    "coco": "JSON",
    "images": "FOLDER",
    "test_images": "FOLDER",
}
REPEATED = ("manual_dir", "coco", "images")  # where several sets of one's own are joined


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake instead of the whole usage."""

    def error(self, message: str):
        raise InputError(message)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        InputError: naming the flag that does not fit.
    """
    parser = Parser(
        prog="python -m tfds_vinbig",
        description="Build the TFDS dataset tfds_vinbig (ArrayRecord; no TensorFlow needed).",
        epilog="The Kaggle folder holds train/<image_id>.png, train.csv and train_meta.csv; for a "
        "test split also test/<image_id>.png, test_meta.csv and sample_submission.csv. PNG, JPEG "
        "or TIFF, 8 or 16 bits, or DICOM, whose sizes need no table; tables are read by column "
        "name. The VinDr-CXR release is known by its annotations/annotations_train.csv.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        help="256, 512 or 1024: VinBigData with stored pictures of so many pixels (others are "
        "resized); phantom, which is drawn; or a name for a dataset of your own",
    )
    parser.add_argument("--size", metavar="N", help="pixels of the stored pictures of your own")
    helps = {
        "manual_dir": "the Kaggle folder; of your own, its train.csv names the classes, or it is "
        "the VinDr-CXR release; for the phantom where it is, or is drawn (default DIR/phantom)",
        "data_dir": "where datasets go (default TFDS_DATA_DIR, or ~/tensorflow_datasets)",
        "train_csv": "instead of FOLDER/train.csv",
        "train_meta": "instead of FOLDER/train_meta.csv",
        "test_meta": "instead of FOLDER/test_meta.csv",
        "coco": "annotations of your own; images without are normal; where several are given, and "
        "--manual_dir beside them, they are joined, and what a set does not name is unknown there",
        "images": "the pictures of --coco, one for each",
        "test_images": "pictures for a test split beside --coco",
    }
    for name, metavar in PATHS.items():
        action = "append" if name in REPEATED else "store"
        parser.add_argument(f"--{name}", metavar=metavar, help=helps[name], action=action)
    parser.add_argument(
        "--boxes",
        choices=["strict", "cut"],
        default="strict",
        help="boxes that leave their image by more than a pixel: refused, or cut and, where "
        "nothing of them is inside, left out, with a count (default %(default)s)",
    )
    parser.add_argument(
        "--follow_links",
        action="store_true",
        help="read pictures that are links to files outside their folder",
    )
    flags = parser.parse_args(arguments)
    for name in PATHS:
        given = getattr(flags, name)
        for value in given if isinstance(given, list) else [given] if given is not None else []:
            try:
                wrong = not value or "\0" in value
                Path(value).expanduser()
            except RuntimeError:  # ~NAME of nobody
                wrong = True
            if wrong:
                parser.error(f"argument --{name}: expected a path, not {value!r}")
    flags.data_dir = machine.datasets_folder(flags.data_dir or "")
    machine.with_home(flags.data_dir, "argument --data_dir")
    check(flags)
    return flags


def check(flags: argparse.Namespace) -> None:
    """Which flags go together; `size` becomes a number.

    Raises:
        InputError: naming the flag that is missing or too many.
    """

    def refuse(names: tuple[str, ...], why: str) -> None:
        for name in names:
            if getattr(flags, name) is not None:
                raise InputError(f"argument --{name}: not with {why}")

    config = flags.config
    if config in FIXED:
        refuse(("size", "coco", "images", "test_images"), f"--config={config}, which is VinBigData")
        if flags.manual_dir is None and config != "phantom":
            raise InputError(f"argument --manual_dir: needed with --config={config}")
        if len(flags.manual_dir or ()) > 1:
            raise InputError(f"argument --manual_dir: given twice, but --config={config} is one")
        return
    if not re.fullmatch(r"\w[\w.-]{0,99}", config, re.ASCII):
        raise InputError(
            f"argument --config: {config!r} is neither {', '.join(FIXED)}, nor a name of letters, "
            "digits, '_', '-' and '.' for a dataset of your own"
        )
    if flags.size is None:
        raise InputError(
            f"argument --size: needed with --config={config}, a dataset of your own (VinBigData is "
            f"{', '.join(FIXED[:-1])})"
        )
    if not (re.fullmatch("[0-9]{1,9}", flags.size) and int(flags.size) in SIZES):
        raise InputError(
            f"argument --size: {flags.size!r} is not a number of pixels from {SIZES[0]} to "
            f"{SIZES[-1]}"
        )
    flags.size = int(flags.size)
    if flags.coco is None:
        refuse(("images", "test_images"), "a Kaggle folder, only with --coco")
        if flags.manual_dir is None:
            raise InputError(
                f"argument --manual_dir: needed with --config={config}, or --coco and --images"
            )
    else:
        if flags.images is None:
            raise InputError("argument --images: needed with --coco, the folder of its pictures")
        if len(flags.images) != len(flags.coco):
            raise InputError(
                f"argument --images: {len(flags.images)} with {len(flags.coco)} of --coco; each "
                "--coco needs the folder of its pictures, in the same order"
            )
        if len(flags.coco) > 1:
            refuse(("test_images",), "several --coco")
    if len(flags.manual_dir or ()) != 1:
        refuse(("train_csv", "train_meta", "test_meta"), "none or several of --manual_dir")


def main(arguments: list[str]) -> None:
    """Build, and print what there is then and what comes next."""
    flags = parse(arguments)
    logging.set_verbosity(logging.ERROR)
    # Late, as TFDS takes a second that --help and a mistyped flag need not wait for.
    import tensorflow_datasets as tfds

    from tfds_vinbig.tfds_vinbig_dataset_builder import build

    path = build(**vars(flags))
    info = tfds.builder_from_directory(path).info
    print(f"dataset: {path}")
    if flags.config not in FIXED:
        print(f"classes: {', '.join(info.features['objects']['label'].names)}")
    for split in info.splits:
        counts = info.metadata[split]
        print(
            f"{split}: {counts['images']} images, {counts['boxes']} boxes, "
            f"{counts['no_finding_rows']} rows of no finding"
        )
    print(f"next: {shlex.join(next_command(flags, str(path.parents[2])))}")


def next_command(flags: argparse.Namespace, data_dir: str) -> list[str]:
    """The words of the command that trains on what was built."""
    names = {"phantom": "phantom.py", "512": "retina.py:512", "1024": "retina.py:1024"}
    words = ["python", "run.py", f"--config=configs/{names.get(flags.config, 'retina.py')}"]
    if flags.config not in FIXED:
        words.append(f"--config.data.name=tfds_vinbig/{flags.config}")
        words.append(f"--config.data.image_size={flags.size}")
    return [*words, f"--config.data.dir={data_dir}", f"--workdir=runs/{flags.config}"]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(print(f"tfds_vinbig: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)
