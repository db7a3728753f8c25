"""`run.py --mode=predict --images=`: films a second by kind of file, and the most memory it took.

    git worktree add ../before 500310a
    python benchmarks/films.py --workdir=RUN --before=../before

RUN is any run, such as that of the README's first command. Films of 2,500 pixels are drawn ones,
enlarged and with noise on them, each under many names: PNG and JPEG of 8 bits, DICOM of 12 bits in
JPEG 2000 without loss. All are read, looked at and drawn, by turns with an earlier checkout if one
is named. From the seconds of each command those of the same command on a single film are taken
away: starting and loading are not of the films. "processor s" are those of all cores, of use where
other programs run. Memory is of the whole process, at 50 and at 400
films of 512 pixels.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for tests

import numpy as np
from absl import app, flags
from PIL import Image
from pydicom import uid

from tests import dicoms
from tfds_vinbig.phantom import draw_folder

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "A run.", required=True)
flags.DEFINE_string("before", None, "A checkout of an earlier commit.")
flags.DEFINE_integer("films", 24, "Of 2,500 pixels, of each kind.")
flags.DEFINE_integer("rounds", 1, "Rounds, in each of which every checkout has its turn.")
flags.DEFINE_multi_integer("many", [50, 400], "Films of 512 pixels; none for no table.")
KINDS = ("png", "jpg", "dcm")
DRAWN = 4
ROOT = Path(__file__).parent.parent


def save(grey: np.ndarray, path: Path) -> None:
    """A film with a little noise, as its suffix says."""
    noise = np.random.default_rng(0).normal(0, 2, grey.shape)
    if path.suffix == ".dcm":
        levels = np.clip((grey + noise) * 16, 0, 4095).astype(np.uint16)
        dicoms.save(path, levels, uid.JPEG2000Lossless, BitsStored=12)
    else:
        Image.fromarray(np.clip(grey + noise, 0, 255).astype(np.uint8)).save(path)


def make(folder: Path, kind: str, size: int, count: int) -> Path:
    """A folder of `count` films, which are `DRAWN` ones under many names."""
    place = folder / f"{kind}{size}x{count}"
    place.mkdir()
    for i, film in enumerate(sorted((folder / "drawn/train").iterdir())):
        grey = Image.open(film).resize((size, size), Image.Resampling.BICUBIC)
        save(np.asarray(grey, np.float64), place / f"{i:05}.{kind}")
    for i in range(DRAWN, count):
        os.link(place / f"{i % DRAWN:05}.{kind}", place / f"{i:05}.{kind}")
    return place


def predict(checkout: Path, images: Path) -> np.ndarray:
    """Seconds of a command by the clock and of all cores, and the most memory of it in GB."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "run.py", f"--workdir={Path(FLAGS.workdir).absolute()}",
                   "--mode=predict", f"--images={images}", f"--output={output}"]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, command
        used = usage.ru_utime + usage.ru_stime  # of its own processes too
        return np.array([time.perf_counter() - start, used, usage.ru_maxrss / 1e6])


def main(_):
    checkouts = {"before": Path(FLAGS.before).absolute()} if FLAGS.before else {}
    checkouts["now"] = ROOT
    print(f"{len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_folder(folder / "drawn", num_train=DRAWN, num_test=1, size=512)
        print("| files of 2,500 pixels | by | films/s (range) | processor s a film |")
        print("|---|---|---|---|")
        for kind in KINDS:
            films = make(folder, kind, 2500, FLAGS.films)
            one = films / f"{0:05}.{kind}"
            rates = {by: [] for by in checkouts}
            for _ in range(FLAGS.rounds):
                for by, checkout in checkouts.items():
                    spent = predict(checkout, films) - predict(checkout, one)
                    rates[by].append(spent[:2] / (FLAGS.films - 1))
            for by, values in rates.items():
                seconds, used = np.array(values).T
                spread = f"{1 / np.median(seconds):.3g} ({1 / max(seconds):.3g} to "
                spread += f"{1 / min(seconds):.3g}) | {np.median(used):.3g}"
                print(f"| {kind} | {by} | {spread} |", flush=True)
        print("\n| PNGs of 512 pixels | by | s | processor s | GB at most |")
        print("|---|---|---|---|---|")
        for count in FLAGS.many:
            films = make(folder, "png", 512, count)
            for by, checkout in checkouts.items():
                seconds, used, memory = predict(checkout, films)
                row = f"{seconds:.0f} | {used:.0f} | {memory:.2f}"
                print(f"| {count} | {by} | {row} |", flush=True)


if __name__ == "__main__":
    app.run(main)
