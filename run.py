"""Train, evaluate, predict, score or cross-validate.

python run.py --config=configs/phantom.py --workdir=runs/phantom
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxdet import InputError
from jaxdet.data import machine
from jaxdet.runs import signals
from jaxdet.runs.command_line import check_environment, parse
from jaxdet.runs.timers import stage, summary

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Such as configs/phantom.py; a run has its own.")
flags.DEFINE_string("workdir", None, "Where the run keeps what it writes.")
flags.DEFINE_string("checkpoint", "latest", "evaluate, predict, export: a step, best, or latest.")
flags.DEFINE_string("images", None, "predict: a file, folder or glob instead of the test split.")
flags.DEFINE_string("meta", None, "predict: CSV or JSON, fuse: CSV, of the originals' sizes.")
flags.DEFINE_boolean("invert", False, "predict: invert the images that look inverted.")
flags.DEFINE_integer("overlays", None, "predict: how many of --images are drawn.", lower_bound=0)
flags.DEFINE_string(
    "output", None, "predict: a CSV file or a folder; ensemble, fuse: a file; export: a folder."
)
flags.DEFINE_string("annotations", None, "score, fuse: readers' boxes, Kaggle CSV or COCO JSON.")
flags.DEFINE_string("submission", None, "score: what is scored, submission CSV or COCO results.")
flags.DEFINE_string("ground_truth", None, "evaluate, score: raw, wbf@IOU, nms@IOU, ...")
flags.DEFINE_string("fusion", "skill@0.4", "fuse: as config.data.fusion.")
flags.DEFINE_integer("bootstrap", 0, "score: samples for 95 % intervals.", lower_bound=0)
flags.DEFINE_string("against", None, "evaluate: another workdir; score: another submission.")
flags.DEFINE_string("report", None, "score: an HTML file to write a report to.")
flags.DEFINE_list("submissions", None, "ensemble: files, or workdirs that have predicted.")
flags.DEFINE_list("weights", None, "ensemble: a number for each of --submissions.")
flags.DEFINE_float("iou", 0.5, "ensemble: boxes that overlap by more are one.", 0.0, 1.0)
flags.DEFINE_string("replay", None, "train: a skipped_batch.npz whose step is made again.")
# Of several processes; SLURM, Open MPI, TPUs and Kubernetes need none of these.
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; each process is given the same.")
flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
flags.DEFINE_boolean("distributed", False, "Insist on several: an error where none are announced.")
# The flags that each mode uses.
PROCESSES = ("coordinator", "num_processes", "process_id", "distributed")
ALONE = {"mode", "config", "workdir"}
RUN = {*ALONE, *PROCESSES}
MODES = {
    "train": RUN | {"replay"},
    "evaluate": RUN | {"checkpoint", "ground_truth", "against"},
    "predict": RUN | {"checkpoint", "images", "meta", "invert", "overlays", "output"},
    "score": {"mode", "annotations", "submission", "ground_truth", "bootstrap", "against",
              "report"},
    "crossval": RUN,
    "inspect": ALONE,
    "ensemble": {"mode", "submissions", "weights", "iou", "output"},
    "export": ALONE | {"checkpoint", "output"},
    "fuse": {"mode", "annotations", "meta", "fusion", "output"},
}  # fmt: skip
flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")


def path(name: str, required: bool = False) -> Path | None:
    """The path that a flag names."""
    if FLAGS[name].value:
        return machine.with_home(FLAGS[name].value, f"--{name}")
    if required or FLAGS[name].present:
        raise InputError(f"--{name}: needs a path with --mode={FLAGS.mode}")
    return None


def score() -> None:
    """Print the scores of a file, and write a report where one is asked for."""
    from jaxdet.evaluation import compare, scores
    from jaxdet.report.write import write_page
    from tfds_vinbig import results

    annotations, submission = path("annotations", True), path("submission", True)
    against, report = path("against"), path("report")
    truth, ids, detections, other = results.read_scored(annotations, submission, against)
    for note in truth.notes:
        print(f"note: {note}", file=sys.stderr)
    columns = truth.ids, truth.image, truth.labels, truth.readers, truth.boxes, truth.class_names
    method = FLAGS.ground_truth or "raw"
    case = scores.of_files(*columns, ids, detections, method, truth.crowds, truth.exhaustive)
    result = case.summarize(bootstrap_samples=FLAGS.bootstrap)
    if other:
        other = scores.renumber(other.table, other.ids, case.ids)
        samples = FLAGS.bootstrap or 1000
        result["against"] = compare.compare(case, other, str(against), bootstrap_samples=samples)
    print(json.dumps(result, indent=2))
    if report:
        about = {"submission": submission.absolute(), "annotations": annotations.absolute()}
        write_page(report, case, result, title=submission.name, other=other, about=about)


def checked_config() -> ConfigDict:
    """The config; that of the run in the workdir, where there is one."""
    from configs import retina
    from jaxdet.runs import config as configs
    from jaxdet.runs.workdir import has_checkpoint

    config, workdir = FLAGS.config, path("workdir", True)
    if config is None:
        raise InputError(
            f"--config: needed with --mode={FLAGS.mode}, such as configs/phantom.py; there is no "
            f"run in {workdir}"
        )
    config.data.dir = machine.datasets_folder(config.data.dir)
    if FLAGS.ground_truth:
        config.evaluation.ground_truth = FLAGS.ground_truth
    configs.check(config, retina.get_fields())
    if FLAGS.mode in ("evaluate", "predict", "export") or has_checkpoint(workdir):
        config = configs.as_run(config, retina.get_fields(), workdir)
    return config


def open_data(config: ConfigDict):
    """The TFDS builder of a dataset; the phantom is drawn where it is missing."""
    from tfds_vinbig.drawn import drawn_phantom, noted

    data_dir = machine.with_home(machine.datasets_folder(config.data.dir), "config.data.dir")
    folder = data_dir / config.data.name
    draws = FLAGS.mode in ("train", "crossval", "inspect")
    if draws and config.data.name == "tfds_vinbig/phantom" and not folder.exists():
        print(f"drawing the phantom for {folder}", flush=True)
        with stage("drawing"):
            drawn_phantom(data_dir / "phantom")
        with stage("building"):
            from tfds_vinbig.tfds_vinbig_dataset_builder import build

            build("phantom", data_dir)
    from jaxdet.data.dataset import open_dataset

    return noted(open_dataset(config.data.name, config.data.dir))


def train() -> None:
    """Train, evaluate, and predict the test split where there is one."""
    config, folder = checked_config(), path("workdir", True)
    if kept := path("replay"):
        from jaxdet.training.replay import replay

        return replay(config, folder, kept)
    builder = open_data(config)  # says what it does before the slow imports
    from configs import retina
    from jaxdet.data import splits
    from jaxdet.data.dataset import read_split
    from jaxdet.inference.predict import split_pictures
    from jaxdet.report.write import write_evaluation
    from jaxdet.runs import workdir
    from jaxdet.training.loop import train

    with stage("reading"):
        dataset = read_split(builder, "train")
        sets = splits.train_and_eval(config.data, builder, dataset)
    loaded, evaluator = train(config, retina.get_fields(), dataset, *sets, folder)
    with stage("evaluating"):
        write_evaluation(evaluator, folder, loaded.step)
    if "test" in builder.info.splits:
        with stage("predicting"):
            test = read_split(builder, "test")
            pictures = split_pictures(test, config.data.image_size)
            write_predictions(loaded, pictures, workdir.read_config(folder)[1], folder)
    print(f"time: {summary()}")


def evaluate() -> None:
    """Score a checkpoint, beside another run's where one is named."""
    from configs import retina
    from jaxdet.data import splits
    from jaxdet.data.dataset import read_split
    from jaxdet.evaluation.evaluate import Evaluator
    from jaxdet.inference.detector import load_detector
    from jaxdet.report.write import write_evaluation
    from jaxdet.runs import parallel
    from jaxdet.runs.identity import check_run

    config, folder = checked_config(), path("workdir", True)
    parallel.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    builder = open_data(config)
    dataset = read_split(builder, "train")
    train_set, eval_set = splits.train_and_eval(config.data, builder, dataset)
    check_run(config, retina.get_fields(), dataset, train_set, folder)
    other = None
    if against := path("against"):
        from jaxdet.evaluation.compare import detect_of_other

        own = config, eval_set, retina.get_fields(), open_data
        other = detect_of_other(against, FLAGS.checkpoint, *own)
    loaded = load_detector(config, folder, FLAGS.checkpoint, dataset.num_classes)
    evaluator = Evaluator(loaded.detector, eval_set)
    evaluator.score(loaded.weights)
    write_evaluation(evaluator, folder, loaded.step, other)


def predict() -> None:
    """Write the detections in the test split, or in anyone's pictures."""
    from jaxdet.data.dataset import read_split
    from jaxdet.inference.detector import load_detector
    from jaxdet.inference.predict import find_files, folder_of, read_pictures, split_pictures
    from jaxdet.runs import parallel, workdir
    from tfds_vinbig import coco, kaggle
    from tfds_vinbig.records import class_name_of

    config, folder = checked_config(), path("workdir", True)
    _, run = workdir.read_config(folder)
    parallel.check_batch_size("evaluation.batch_size", config.evaluation.batch_size)
    loaded = load_detector(config, folder, FLAGS.checkpoint, len(run.class_names))
    meta, image_ids = path("meta"), None
    if path("images"):
        files = find_files(FLAGS.images)
        sizes = meta and (coco if meta.suffix.lower() == ".json" else kaggle).read_sizes(meta)
        if meta and meta.suffix.lower() == ".json":
            image_ids, names = coco.read_image_ids(meta), run.class_names
            run = run._replace(class_ids=coco.class_ids_by_name(meta, names) or run.class_ids)
        pictures = read_pictures(files, sizes, folder_of(FLAGS.images))
    elif meta or FLAGS.overlays is not None:
        raise InputError("--meta, --overlays: go with --images, which is not given")
    else:
        builder = open_data(config)
        if "test" not in builder.info.splits:
            raise InputError(f"{config.data.name} has no test split: name --images")
        test = read_split(builder, "test")
        if [*map(class_name_of, test.class_names)] != [*map(class_name_of, run.class_names)]:
            raise InputError(f"config.data: {config.data.name} has other classes than the run")
        pictures = split_pictures(test, config.data.image_size)
    for problem in pictures.problems:
        print(f"run.py: {problem}", file=sys.stderr)
    problems = len(pictures.problems)
    if pictures.ids:
        problems += write_predictions(loaded, pictures, run, path("output") or folder, image_ids)
    if problems:
        raise InputError(f"{problems} of {len(files)} pictures could not be read")


def write_predictions(loaded, pictures, run, output: Path, image_ids=None) -> int:
    """Predict, and write the submission, `detections.json` and overlays, in or beside `output`.

    `image_ids` is what COCO calls each image, if not by its name. Returns how many were broken.
    """
    from jaxdet.report import overlays
    from jaxdet.runs.workdir import write_together
    from tfds_vinbig import coco, submission

    csv = output if output.suffix.lower() == ".csv" else output / "submission.csv"
    results = csv.with_suffix(".json") if csv == output else output / "detections.json"
    how = loaded, pictures, run, csv.parent, FLAGS.invert, FLAGS.overlays
    with overlays.predicted(*how) as (found, put_overlays):
        for problem in found.problems:
            print(f"run.py: {problem}", file=sys.stderr)
        names = found.ids, found.table, run.class_ids
        texts = submission.to_csv(*names), coco.to_json(*names, image_ids, run.class_names)
        if found.ids:
            with signals.held():  # all of it is written, or nothing
                write_together({csv: texts[0], results: texts[1]})
                put_overlays()
            boxes = (found.table.labels < len(run.class_names)).sum()
            where = f"{len(found.ids)} images, written to {csv} and {results.name}"
            print(f"checkpoint {loaded.step}: {boxes} boxes in {where}")
    return len(found.problems)


def crossval() -> None:
    """Train and evaluate every fold, and score all together."""
    from configs import retina
    from jaxdet.data.dataset import read_split
    from jaxdet.report.write import write_crossval, write_evaluation
    from jaxdet.runs.workdir import write_atomically
    from jaxdet.training import crossval as folds
    from tfds_vinbig import submission

    config, folder = checked_config(), path("workdir", True)
    dataset = read_split(builder := open_data(config), "train")
    case = folds.train_folds(
        config, retina.get_fields(), builder, dataset, folder, write_evaluation
    )
    csv = submission.to_csv(case.ids, case.detections, dataset.class_ids)
    write_atomically(folder / "out_of_fold.csv", csv)
    write_crossval(case, config, dataset, folder)


def inspect() -> None:
    """Write the page about the data, and about what the model is fed."""
    from jaxdet.data import splits
    from jaxdet.data.dataset import read_split
    from jaxdet.report.data import inspect

    config, folder = checked_config(), path("workdir", True)
    dataset = read_split(builder := open_data(config), "train")
    inspect(config, dataset, *splits.train_and_eval(config.data, builder, dataset), folder)


def export() -> None:
    """Write the detector as a file that runs with jax alone."""
    from jaxdet.inference import export
    from jaxdet.inference.detector import load_detector
    from jaxdet.runs import workdir

    config, folder = checked_config(), path("workdir", True)
    num_classes = len(workdir.read_config(folder)[1].class_names)
    loaded = load_detector(config, folder, FLAGS.checkpoint, num_classes)
    export.export_run(loaded, folder, path("output") or folder / "export")


def ensemble() -> None:
    """Write one submission made of several."""
    from jaxdet.inference import ensemble
    from jaxdet.runs.workdir import write_atomically
    from tfds_vinbig import results

    output = path("output", True)
    named = [machine.with_home(word, "--submissions") for word in FLAGS.submissions or () if word]
    files = ensemble.find_files(named, output)
    weights = ensemble.parse_weights(FLAGS.weights, len(files))
    # A submission beside a run is that run's, whose classes have names.
    runs, names = ensemble.runs_beside(files)
    read = results.read_all(files, list(names) or None)
    for note in read.notes:
        print(f"note: {note}", file=sys.stderr)
    classes = read.class_ids, read.class_names
    known = ensemble.known_labels(files, runs, names, read.tables, *classes)
    table = ensemble.fuse_tables(read.tables, weights, f"wbf@{FLAGS.iou}", known)
    fused = read.ids, table, read.class_ids, read.image_ids, read.class_names
    write_atomically(output, results.to_text(output.suffix, *fused))
    boxes = f"{len(table.image)} boxes in {len(read.ids)} images"
    print(f"{len(files)} submissions fused: {boxes}, {output}")


def fuse() -> None:
    """Write readers' boxes, fused, as COCO's JSON; beside it, what is inferred of the readers."""
    from jaxdet.ops import fusion
    from jaxdet.runs.workdir import write_together
    from tfds_vinbig import coco_fused

    output, method = path("output", True), FLAGS.fusion
    fusion.parse_readers(method)
    files = path("annotations", True), path("meta")
    skills_file = coco_fused.skills_file(output, files)
    rows, images = coco_fused.read(*files)
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)
    columns = rows.image, rows.labels, rows.readers, rows.boxes, len(rows.class_names)
    found = fusion.fuse_rows(method, *columns)
    skills = {skills_file: found.skills.to_csv(rows.class_names)} if found.skills else {}
    text = coco_fused.to_json(rows, images, found.table, found.weights, method)
    write_together({output: text, **skills})
    print(f"{len(found.table.image)} findings by {method}, written to {output}")


def main() -> None:
    """What --mode asks for."""
    from jaxdet.runs import environment, lock, parallel

    gc.set_threshold(50_000)  # tracing makes many objects, hardly any of them garbage
    if "workdir" in MODES[FLAGS.mode]:
        # One's own pictures need no others, unless they are asked for.
        asked = any(FLAGS[name].present for name in PROCESSES)
        joins = "distributed" in MODES[FLAGS.mode] and (asked or not FLAGS.images)
        parallel.start(joins, *(FLAGS[name].value for name in PROCESSES))
    else:
        environment.stay_on_cpu()
    trains = FLAGS.mode == "crossval" or (FLAGS.mode == "train" and not FLAGS.replay)
    with lock.held(path("workdir", True) if trains else None):
        globals()[FLAGS.mode]()  # each mode is the function of its name


def run(argv: list[str]) -> int:
    """The exit code of a command line."""
    try:
        with signals.caught():
            check_environment()
            parse(argv, Path(__file__).with_name("configs") / "of_workdir.py", MODES)
            main()
    except BrokenPipeError:  # whoever read has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # not a place that is closed
            raise
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except signals.Stopped as stop:
        if not FLAGS.is_parsed() or FLAGS.replay or FLAGS.mode not in ("train", "crossval"):
            return 128 + stop.number
        print(f"run.py: {stop.name}: {stop.goes_on(path('workdir'))}", file=sys.stderr)
        return 0 if stop.number == signal.SIGTERM else 130
    return 0


if __name__ == "__main__":
    code = run(sys.argv)
    if code and (parallel := sys.modules.get("jaxdet.runs.parallel")):
        parallel.leave(code)
    sys.exit(code)
