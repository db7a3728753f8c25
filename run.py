"""Train, evaluate, predict, score or cross-validate.

python run.py --config=configs/phantom.py --workdir=runs/phantom
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from jaxdet import InputError, signals

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Such as configs/phantom.py; a run has its own.")
flags.DEFINE_string("workdir", None, "Where the run keeps what it writes.")
flags.DEFINE_string("checkpoint", "latest", "evaluate, predict: a step, best, or latest.")
flags.DEFINE_string("images", None, "predict: a file, folder or glob instead of the test split.")
flags.DEFINE_string("meta", None, "predict: CSV or COCO JSON of the original sizes of --images.")
flags.DEFINE_boolean("invert", False, "predict: invert the images that look inverted.")
flags.DEFINE_string("output", None, "predict: a CSV file or a folder, instead of the workdir.")
flags.DEFINE_string("annotations", None, "score: the readers' boxes, Kaggle CSV or COCO JSON.")
flags.DEFINE_string("submission", None, "score: what is scored, submission CSV or COCO results.")
flags.DEFINE_string("ground_truth", None, "evaluate, score: raw, wbf@IOU, nms@IOU, ...")
flags.DEFINE_integer("bootstrap", 0, "score: samples for 95 % intervals.", lower_bound=0)
flags.DEFINE_string("against", None, "evaluate: another workdir; score: another submission.")
flags.DEFINE_string("report", None, "score: an HTML file to write a report to.")
flags.DEFINE_string("replay", None, "train: a skipped_batch.npz whose step is made again.")
# Of several processes; SLURM, Open MPI, TPUs and Kubernetes need none of these.
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; each process is given the same.")
flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
flags.DEFINE_boolean("distributed", False, "Insist on several: an error where none are announced.")
# The flags that each mode uses.
PROCESSES = ("coordinator", "num_processes", "process_id", "distributed")
RUN = {"mode", "config", "workdir", *PROCESSES}
MODES = {
    "train": RUN | {"replay"},
    "evaluate": RUN | {"checkpoint", "ground_truth", "against"},
    "predict": RUN | {"checkpoint", "images", "meta", "invert", "output"},
    "score": {"mode", "annotations", "submission", "ground_truth", "bootstrap", "against",
              "report"},
    "crossval": RUN,
    "inspect": RUN,
}  # fmt: skip
OWN = set().union(*MODES.values())
flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")


def path(name: str, required: bool = False) -> Path | None:
    """The path that a flag names."""
    if FLAGS[name].value:
        return Path(os.path.expanduser(FLAGS[name].value))
    if required or FLAGS[name].present:
        raise InputError(f"--{name}: needs a path with --mode={FLAGS.mode}")
    return None


def parse(argv: list[str]) -> None:
    """Read the flags; what does not fit is one line and exit code 2."""
    if {"-h", "-help", "--help"} & set(argv):
        app.usage(writeto_stdout=True, exitcode=0)
    # A run has its config: it is read where none is given. None is no number to absl.
    given = re.search(r"(?:^|\0)--?workdir[=\0]([^\0]+)", "\0".join(argv))
    no_config = not any(re.match(r"--?config(=|$)", word) for word in argv)
    if given and no_config and (Path(os.path.expanduser(given[1])) / "config.json").exists():
        own = Path(__file__).with_name("configs") / "of_workdir.py"
        argv = [argv[0], f"--config={own}:{given[1]}", *argv[1:]]
    nulls = [m[1] for word in argv if (m := re.fullmatch(r"--?config\.([\w.]+)=None", word))]
    argv = [word for word in argv if not re.fullmatch(r"--?config\.[\w.]+=None", word)]
    sys.argv = argv  # where ml_collections looks for overrides
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
    for name in sorted(OWN - MODES[FLAGS.mode]):
        if FLAGS[name].present:
            raise InputError(f"--{name}: --mode={FLAGS.mode} does not use it")
    for name in nulls:
        set_null(FLAGS.config, name)


def set_null(config: ConfigDict | None, name: str) -> None:
    """Set the field "section.field" to None, which its type does not matter for."""
    *sections, field = name.split(".")
    for section in sections:
        config = config[section] if isinstance(config, ConfigDict) and section in config else None
    if config is None or field not in config:
        raise InputError(f"--config.{name}=None: no such config field")
    with config.ignore_type():
        config[field] = None


def score() -> None:
    """Print the scores of a file, and write a report where one is asked for."""
    from jaxdet import scores
    from tfds_vinbig import coco, kaggle, submission

    truth_path, submission_path = path("annotations", True), path("submission", True)
    truth = (coco if truth_path.suffix == ".json" else kaggle).read_annotations(truth_path)

    def read(file):
        if file.suffix == ".json":
            return coco.read_detections(file, truth)
        return submission.read(file, truth.class_ids)

    ids, detections = read(submission_path)
    truth = truth.of_splits_with(ids)
    if not set(ids) & set(truth.ids):
        raise InputError(f"{submission_path} and {truth_path} have no image in common")
    for note in truth.notes:
        print(f"note: {note}", file=sys.stderr)
    columns = truth.ids, truth.image, truth.labels, truth.readers, truth.boxes, truth.class_names
    case = scores.of_files(*columns, ids, detections, FLAGS.ground_truth or "raw")
    result, other = case.summarize(bootstrap_samples=FLAGS.bootstrap), None
    if against := path("against"):
        from jaxdet.compare import compare

        other_ids, other = read(against)
        if set(other_ids) != set(ids):
            raise InputError(f"--against: {against} is of other images than {submission_path}")
        other = scores.renumber(other, other_ids, case.ids)
        result["against"] = compare(
            case, other, str(against), bootstrap_samples=FLAGS.bootstrap or 1000
        )
    if report := path("report"):
        from jaxdet.report.evaluation import evaluation_page
        from jaxdet.workdir import write_atomically

        about = {"submission": submission_path.absolute(), "annotations": truth_path.absolute()}
        page = evaluation_page(
            case, result, title=submission_path.name, other=other, about=about,
            bootstrap_samples=FLAGS.bootstrap,
        )  # fmt: skip
        write_atomically(report, page)
    print(json.dumps(result, indent=2))


def checked_config() -> ConfigDict:
    """The config; that of the run in the workdir, where there is one."""
    from configs import retina
    from jaxdet import checkpoint
    from jaxdet import config as configs

    config, workdir = FLAGS.config, path("workdir", True)
    if config is None:
        raise InputError(
            f"--config: needed with --mode={FLAGS.mode}, such as configs/phantom.py; there is no "
            f"run in {workdir}"
        )
    if FLAGS.ground_truth:
        config.evaluation.ground_truth = FLAGS.ground_truth
    configs.check(config, retina.get_config())
    if FLAGS.mode in ("evaluate", "predict") or checkpoint.exists(workdir):
        config = configs.as_run(config, workdir)
    return config


def open_data(config: ConfigDict):
    """The TFDS builder of a dataset; the phantom is drawn where it is missing."""
    from jaxdet.dataset import open_dataset

    folder = Path(os.path.expanduser(config.data.dir)) / config.data.name
    if config.data.name == "tfds_vinbig/phantom" and not folder.exists():
        from tfds_vinbig.tfds_vinbig_dataset_builder import build

        print(f"drawing the phantom for {folder}")
        build("phantom", config.data.dir)
    return open_dataset(config.data.name, config.data.dir)


def train() -> None:
    """Train, evaluate, and predict the test split where there is one."""
    from jaxdet import replay, splits, workdir
    from jaxdet.dataset import read_split
    from jaxdet.predict import split_pictures
    from jaxdet.train import train

    config, folder = checked_config(), path("workdir", True)
    if kept := path("replay"):
        replay.replay(config, folder, kept)
        return
    builder = open_data(config)
    dataset = read_split(builder, "train")
    sets = splits.train_and_eval(config.data, builder, dataset)
    loaded, _ = train(config, dataset, *sets, folder)
    if "test" in builder.info.splits:
        test = read_split(builder, "test")
        batch_size = config.evaluation.batch_size
        pictures = split_pictures(test, config.data.image_size, batch_size)
        write_predictions(loaded, pictures, workdir.read_config(folder)[1], folder)


def evaluate() -> None:
    """Score a checkpoint, beside another run's where one is named."""
    from jaxdet import parallel, splits
    from jaxdet.dataset import read_split
    from jaxdet.evaluate import evaluate_run
    from jaxdet.train import check_run

    config, folder = checked_config(), path("workdir", True)
    parallel.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    builder = open_data(config)
    dataset = read_split(builder, "train")
    train_set, eval_set = splits.train_and_eval(config.data, builder, dataset)
    check_run(config, dataset, train_set, folder)
    other = None
    if against := path("against"):
        from configs import retina
        from jaxdet.against import detect_of_other

        own = config, eval_set, retina.get_config(), open_data
        other = detect_of_other(against, FLAGS.checkpoint, *own)
    evaluate_run(config, eval_set, folder, FLAGS.checkpoint, other)


def predict() -> None:
    """Write the detections in the test split, or in anyone's pictures."""
    from jaxdet import inference, parallel, workdir
    from jaxdet.dataset import read_split
    from jaxdet.predict import find_files, read_pictures, split_pictures
    from tfds_vinbig import coco, kaggle

    config, folder = checked_config(), path("workdir", True)
    _, run = workdir.read_config(folder)
    size, batch_size = config.data.image_size, config.evaluation.batch_size
    parallel.check_batch_size("evaluation.batch_size", batch_size)
    meta, image_ids = path("meta"), None
    if FLAGS.images:
        files = find_files(FLAGS.images)
        sizes = meta and (coco if meta.suffix == ".json" else kaggle).read_sizes(meta)
        if meta and meta.suffix == ".json":
            image_ids = coco.read_image_ids(meta)
        pictures = read_pictures(files, sizes, size)
    elif meta or FLAGS["images"].present:
        raise InputError("--meta: goes with --images, which is not given")
    else:
        builder = open_data(config)
        if "test" not in builder.info.splits:
            raise InputError(f"{config.data.name} has no test split: name --images")
        test = read_split(builder, "test")
        if list(test.class_names) != run.class_names:
            raise InputError(f"config.data: {config.data.name} has other classes than the run")
        pictures = split_pictures(test, size, batch_size)
    if len(pictures.ids):
        loaded = inference.load(config, folder, FLAGS.checkpoint, len(run.class_names))
        write_predictions(loaded, pictures, run, path("output") or folder, image_ids)
    for problem in pictures.problems[:20]:
        print(f"run.py: {problem}", file=sys.stderr)
    if pictures.problems:
        raise InputError(f"{len(pictures.problems)} of {len(files)} pictures could not be read")


def write_predictions(loaded, pictures, run, output: Path, image_ids=None) -> None:
    """Predict, and write the submission and `detections.json`, into or beside `output`.

    `image_ids` is what COCO calls each image, if not by its name.
    """
    from jaxdet.predict import inverted, predict
    from jaxdet.workdir import write_atomically
    from tfds_vinbig import coco, submission

    for note in pictures.notes:
        print(f"note: {note}", file=sys.stderr)
    suspects = inverted(pictures, run.grey_levels)
    if suspects:
        names = ", ".join(pictures.ids[i] for i in suspects[:5])
        more = f" and {len(suspects) - 5} more" if len(suspects) > 5 else ""
        done = "inverted, as --invert asks" if FLAGS.invert else "give --invert if they are"
        print(
            f"warning: {names}{more} look inverted beside the training images: {done}",
            file=sys.stderr,
        )
        for i in suspects if FLAGS.invert else ():
            pictures.images[i] = 255 - pictures.images[i]
    table = predict(loaded, pictures, len(run.class_names))
    csv = output if output.suffix == ".csv" else output / "submission.csv"
    results = output.with_suffix(".json") if output.suffix == ".csv" else output / "detections.json"
    write_atomically(csv, submission.to_csv(pictures.ids, table, run.class_ids))
    write_atomically(results, coco.to_json(pictures.ids, table, run.class_ids, image_ids))
    found = int((table.labels < len(run.class_names)).sum())
    print(
        f"checkpoint {loaded.step}: {found} boxes in {len(pictures.ids)} images, written to {csv} "
        f"and {results.name}"
    )


def crossval() -> None:
    """Train and evaluate every fold, and score all together."""
    from jaxdet import scores, splits
    from jaxdet import workdir as files
    from jaxdet.boxes import concatenate
    from jaxdet.dataset import read_split
    from jaxdet.report.evaluation import evaluation_page
    from jaxdet.train import train
    from tfds_vinbig import submission

    config, workdir = checked_config(), path("workdir", True)
    if config.data.split != "folds" or config.data.eval_split != "rest":
        raise InputError(
            "--mode=crossval: needs config.data.split=folds and config.data.eval_split=rest"
        )
    builder = open_data(config)
    dataset = read_split(builder, "train")
    folds = []
    for fold in range(config.data.num_folds):  # all are tried before the first is trained
        fold_config = config.copy_and_resolve_references()
        fold_config.data.fold = fold
        folds.append((fold_config, splits.train_and_eval(fold_config.data, builder, dataset)))
    ids, tables, truths, sizes = [], [], [], []
    for fold, (fold_config, sets) in enumerate(folds):
        print(f"fold {fold} of {config.data.num_folds}")
        _, evaluator = train(fold_config, dataset, *sets, workdir / f"fold{fold}")
        tables.append(evaluator.table)
        truths.append(evaluator.truth)
        ids += list(evaluator.dataset.ids)
        sizes.append(len(evaluator.dataset))
    detections, truth = concatenate(tables, sizes), concatenate(truths, sizes)
    evaluation = config.evaluation
    case = scores.Case(ids, dataset.class_names, truth, evaluation.ground_truth, detections)
    result = case.summarize(evaluation.more_iou_thresholds, evaluation.bootstrap_samples)
    result |= {"checkpoint": config.train.steps, "split": f"all {config.data.num_folds} folds"}
    print(result["split"])
    print(scores.format_table(result, truth))
    csv = submission.to_csv(ids, detections, dataset.class_ids)
    files.write_atomically(workdir / "out_of_fold.csv", csv)
    files.write_atomically(workdir / "evaluation.json", json.dumps(result, indent=2) + "\n")
    page = evaluation_page(
        case, result, title=str(workdir), dataset=dataset.of_ids(ids), config=config.to_dict(),
        about={"workdir": workdir.absolute(), "dataset": config.data.name},
        bootstrap_samples=evaluation.bootstrap_samples,
    )  # fmt: skip
    files.write_atomically(workdir / "report.html", page)


def inspect() -> None:
    """Write the page about the data, and about what the model is fed."""
    from jaxdet import splits
    from jaxdet.dataset import read_split
    from jaxdet.report.data import inspect

    config, folder = checked_config(), path("workdir", True)
    builder = open_data(config)
    dataset = read_split(builder, "train")
    inspect(config, dataset, *splits.train_and_eval(config.data, builder, dataset), folder)


def main() -> None:
    """What --mode asks for."""
    if FLAGS.mode != "score":
        import jax

        from jaxdet import parallel

        parallel.join_processes(*(FLAGS[name].value for name in PROCESSES))
        # Compiling takes longer than a short run: keep what was compiled.
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxdet"))
    globals()[FLAGS.mode]()  # each mode is the function of its name


def run(argv: list[str]) -> int:
    """The exit code of a command line."""
    try:
        with signals.caught():
            parse(argv)
            main()
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # not a place that is closed
            raise
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except signals.Stopped as stop:
        if not FLAGS.is_parsed() or FLAGS.mode not in ("train", "crossval"):
            return 128 + stop.number
        where = "what was saved last" if stop.step is None else f"step {stop.step}, which is saved"
        print(f"run.py: {stop.name}: the same command goes on from {where}", file=sys.stderr)
        return 0 if stop.number == signal.SIGTERM else 130
    return 0


if __name__ == "__main__":
    code = run(sys.argv)
    if code and (parallel := sys.modules.get("jaxdet.parallel")):
        parallel.leave(code)
    sys.exit(code)
