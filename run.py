"""Train, evaluate, predict, score or cross-validate.

python run.py --config=configs/phantom.py --workdir=runs/phantom
"""

import json
import os
import re
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from jaxdet import InputError
from jaxdet.config import check

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The config, such as configs/phantom.py.")
flags.DEFINE_string("workdir", None, "Where the run keeps what it writes.")
MODES = ["train", "evaluate", "predict", "score", "crossval"]
flags.DEFINE_enum("mode", "train", MODES, "What to do.")
flags.DEFINE_string("checkpoint", "latest", "evaluate, predict: a step, best, or latest.")
flags.DEFINE_string("images", None, "predict: a file or folder instead of the test split.")
flags.DEFINE_string("meta", None, "predict: CSV of the original sizes of --images.")
flags.DEFINE_string("output", None, "predict: where, instead of WORKDIR/submission.csv.")
flags.DEFINE_string("annotations", None, "score: the readers' boxes, as Kaggle's train.csv.")
flags.DEFINE_string("submission", None, "score: the file to score.")
flags.DEFINE_string("ground_truth", None, "evaluate, score: raw, wbf@IOU, nms@IOU, ...")
flags.DEFINE_integer(
    "bootstrap", 0, "score: samples of the images for 95 % intervals.", lower_bound=0
)
flags.DEFINE_boolean("distributed", False, "One of several processes (a TPU pod, a GPU cluster).")


def path(name: str, required: bool = False) -> Path | None:
    """The path that a flag names."""
    if FLAGS[name].value:
        return Path(FLAGS[name].value).expanduser()
    if required:
        raise InputError(f"--{name}: needed with --mode={FLAGS.mode}")
    return None


def parse(argv: list[str]) -> None:
    """Read the flags; what does not fit is one line and exit code 2."""
    if {"-h", "-help", "--help"} & set(argv):
        app.usage(writeto_stdout=True, exitcode=0)
    try:
        rest = FLAGS(argv)
        list(FLAGS.config or ())  # a file that cannot be loaded says so only now
    except AttributeError as error:  # ml_collections: an override of a field that is not there
        field = re.search(r"\w+", str(error))[0]
        unknown = [word for word in argv if word.startswith("--config.") and field in word]
        raise InputError(f"{' '.join(unknown) or field}: no such config field") from error
    except (flags.Error, OSError, ImportError, SyntaxError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # A config that raises comes as a whole traceback: its last line says why.
        one_line = f"{lines[0]} {lines[-1]}" if len(lines) > 1 else lines[0]
        raise InputError(one_line) from error
    if rest[1:]:
        raise InputError(f"{rest[1]}: not a flag")


def main() -> None:
    """One call into jaxdet a mode."""
    if FLAGS.mode == "score":
        from jaxdet.evaluate import score_files

        method = FLAGS.ground_truth or "raw"
        files = path("annotations", True), path("submission", True)
        scores = score_files(*files, method, FLAGS.bootstrap)
        print(json.dumps(scores, indent=2))
        return

    workdir, config = path("workdir", True), FLAGS.config
    if config is None:
        raise InputError(f"--config: needed with --mode={FLAGS.mode}, such as configs/phantom.py")
    from configs import retina

    check(config, retina.get_config())
    if FLAGS.ground_truth:
        config.evaluation.ground_truth = FLAGS.ground_truth
    if FLAGS.distributed:
        jax.distributed.initialize()
    # Compiling takes longer than a short run: keep what was compiled.
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxdet"))

    if FLAGS.mode == "train":
        from jaxdet.train import train_and_evaluate

        train_and_evaluate(config, workdir)
    elif FLAGS.mode == "evaluate":
        from jaxdet.evaluate import evaluate

        evaluate(config, workdir, FLAGS.checkpoint)
    elif FLAGS.mode == "crossval":
        from jaxdet.crossval import crossval

        crossval(config, workdir)
    elif FLAGS.mode == "predict":
        from jaxdet.predict import predict

        predict(config, workdir, FLAGS.checkpoint, path("images"), path("meta"), path("output"))


if __name__ == "__main__":
    try:
        parse(sys.argv)
        main()
    except InputError as error:
        sys.exit(print(f"run.py: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)
