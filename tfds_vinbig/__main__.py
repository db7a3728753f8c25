"""Build the dataset from a Kaggle folder, or the phantom from nothing.

python -m tfds_vinbig --config=256 --manual_dir=KAGGLE_FOLDER
python -m tfds_vinbig --config=phantom
"""

import argparse
import sys

from absl import logging

from jaxdet import InputError


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
        "test split also test/<image_id>.png, test_meta.csv and sample_submission.csv. PNG or "
        "JPEG, 8 or 16 bits; tables are read by column name.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        choices=("256", "512", "1024", "phantom"),
        help="pixels of the stored pictures (others are resized), or the phantom, which is drawn",
    )
    parser.add_argument(
        "--manual_dir",
        metavar="FOLDER",
        help="the Kaggle folder; for the phantom where it is, or is drawn (default DIR/phantom)",
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        default="~/tensorflow_datasets",
        help="where datasets go (default %(default)s)",
    )
    parser.add_argument("--train_csv", metavar="CSV", help="instead of FOLDER/train.csv")
    parser.add_argument("--train_meta", metavar="CSV", help="instead of FOLDER/train_meta.csv")
    parser.add_argument("--test_meta", metavar="CSV", help="instead of FOLDER/test_meta.csv")
    flags = parser.parse_args(arguments)
    for name in ("manual_dir", "data_dir", "train_csv", "train_meta", "test_meta"):
        if getattr(flags, name) == "":
            parser.error(f"argument --{name}: expected a path")
    if flags.manual_dir is None and flags.config != "phantom":
        parser.error(f"argument --manual_dir: needed with --config={flags.config}")
    return flags


def main(arguments: list[str]) -> None:
    """Build, and print what there is then and what comes next."""
    flags = parse(arguments)
    logging.set_verbosity(logging.ERROR)
    # Late, as TFDS takes a second that --help and a mistyped flag need not wait for.
    from tfds_vinbig.tfds_vinbig_dataset_builder import Builder, build

    path = build(**vars(flags))
    builder = Builder(config=flags.config, data_dir=path.parents[2])
    print(f"dataset: {path}")
    for split, counts in builder.info.metadata.items():
        print(
            f"{split}: {counts['images']} images, {counts['boxes']} boxes, "
            f"{counts['no_finding_rows']} rows of no finding"
        )
    config = {"phantom": "phantom.py", "256": "retina.py"}.get(
        flags.config, f"retina.py:{flags.config}"
    )
    print(
        f"next: python run.py --config=configs/{config} --config.data.dir={path.parents[2]} "
        f"--workdir=runs/{flags.config}"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(print(f"tfds_vinbig: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)
