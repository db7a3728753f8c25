"""A set as large as VinBigData, from files to a submission: seconds and memory of each stage.

    python benchmarks/large_set.py --folder=DIR

15,000 films to learn from and 3,000 to find things on are drawn and packaged at 256 pixels.
`configs/phantom.py` takes a few steps on four fifths of the first, is scored on the others and
predicts the 3,000; `--mode=evaluate` and `--mode=predict` then do the last two again. Stages are
processes. Memory is that of a process and all that it starts, pages that they share counted once
(PSS, so Linux only), once a second. What was drawn and built in DIR stays and is used again.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
FILMS = 15_000, 3_000
SIZE = 256


def memory(process: psutil.Process) -> float:
    """GB of a process and those it started."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.NoSuchProcess:  # it has ended meanwhile
            continue
    return total / 1e9


def stage(name: str, *command: object) -> str:
    """A row of the table; what the command prints is printed."""
    start, most = time.perf_counter(), 0.0
    process = psutil.Popen([sys.executable, *map(str, command)], cwd=ROOT)
    while process.poll() is None:
        try:
            most = max(most, memory(process))
        except psutil.NoSuchProcess:
            break
        time.sleep(1)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return f"| {name} | {time.perf_counter() - start:.0f} | {most:.2f} |"


def main(folder: Path, steps: int) -> None:
    kaggle, data, workdir = folder / "kaggle", folder / "datasets", folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    rows = []
    if not kaggle.exists():
        drawn = f"draw_folder({str(kaggle)!r}, 0, {FILMS[0]}, {FILMS[1]}, {SIZE})"
        code = f"from tfds_vinbig.phantom import draw_folder; {drawn}"
        rows.append(stage("drawing", "-c", code))
    if not (data / "tfds_vinbig" / str(SIZE)).exists():
        built = f"--config={SIZE}", f"--manual_dir={kaggle}", f"--data_dir={data}"
        rows.append(stage("building", "-m", "tfds_vinbig", *built))
    run = ["run.py", f"--workdir={workdir}"]
    every = f"--config.train.evaluate_every={steps}", f"--config.train.checkpoint_every={steps}"
    rows.append(
        stage(
            f"training for {steps} steps, scoring {FILMS[0] // 5:,} films, predicting {FILMS[1]:,}",
            *run, "--config=configs/phantom.py", f"--config.data.dir={data}",
            f"--config.data.name=tfds_vinbig/{SIZE}", f"--config.data.image_size={SIZE}",
            f"--config.train.steps={steps}", f"--config.train.warmup_steps={steps // 10}", *every,
        )
    )  # fmt: skip
    for mode in ("evaluate", "predict"):
        rows.append(stage(f"`--mode={mode}`", *run, f"--mode={mode}"))
    print("\n| stage | s | GB at most |\n|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="empty, or of an earlier call")
    parser.add_argument("--steps", type=int, default=100)
    flags = parser.parse_args()
    main(flags.folder.absolute(), flags.steps)
