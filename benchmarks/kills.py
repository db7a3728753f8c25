"""Kill a training run again and again, go on each time, and compare with one that ran through.

    nice -n 19 python benchmarks/kills.py --kills=100

writes the table of docs/reliability.md to standard output. A run is that of `FLAGS` on the phantom:
24 steps, saved every 4, scored every 8. Each kind of moment is seen from outside, by what appears
in the workdir; SIGKILL then follows after a random time, so that it hits before, in or after what
the kind is named for.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from jaxdet.runs import checkpoint

ROOT = Path(__file__).parent.parent
FLAGS = [
    "--config=configs/phantom.py", "--config.data.split=train[:4%]",
    "--config.data.eval_split=train[98%:]", "--config.data.image_size=64",
    "--config.model.backbone.depth=10", "--config.model.backbone.width=8",
    "--config.model.fpn_channels=16", "--config.model.head_channels=16",
    "--config.model.levels=(4,5)", "--config.train.batch_size=4", "--config.train.warmup_steps=1",
    "--config.evaluation.batch_size=4", "--config.evaluation.bootstrap_samples=10",
    "--config.inference.score_threshold=0.0",
]  # fmt: skip
LENGTH = [
    "--config.train.steps=24", "--config.train.log_every=2", "--config.train.checkpoint_every=4",
    "--config.train.evaluate_every=8",
]  # fmt: skip
# The last words of a run: killed after the first, it has the others still to write.
LAST = ("evaluation.json", "submission.csv", "detections.json")


def lines_of(workdir: Path) -> list[dict]:
    """Of `metrics.jsonl`, but for the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def checkpoints_of(workdir: Path) -> dict[int, dict]:
    """Every array of the two newest checkpoints and the best."""
    lines = lines_of(workdir)
    scores = {line["step"]: line["mAP@0.4"] for line in lines if "mAP@0.4" in line}
    with checkpoint.open_manager(workdir) as manager:
        steps = checkpoint.to_keep(manager.all_steps(), scores)
        return {step: dict(manager.restore(step).items()) for step in steps}


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two runs; nothing, it is hoped."""
    found = []
    if lines_of(one) != lines_of(other):
        found.append("metrics.jsonl")
    for name in ("config.json", *LAST):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    try:
        jax.tree.map(np.testing.assert_array_equal, checkpoints_of(one), checkpoints_of(other))
    except (AssertionError, ValueError) as error:
        found.append(f"checkpoints: {str(error).strip().splitlines()[0]}")
    left = {p.name for p in one.iterdir()} ^ {p.name for p in other.iterdir()}
    return found + sorted(left)


def names(folder: Path) -> set[str]:
    """What is in a folder now."""
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()


def num_lines(workdir: Path) -> int:
    """How many lines `metrics.jsonl` has now."""
    try:
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


class Moments:
    """Kinds of moments: each is a function that says whether it has come, and a longest delay."""

    def __init__(self, workdir: Path, rng: random.Random, starting_seconds: float):
        self.workdir, self.began = workdir, time.time()
        self.before = names(workdir / "checkpoints")
        self.kinds = {
            "starting": (lambda: True, starting_seconds),
            "config.json written": (self.config_is_written, 0.02),
            "metrics.jsonl cut": (lambda: self.changed("metrics.jsonl"), 0.01),
            "in a step": (self.a_line_is_new, 0.1),
            "while saving": (self.saves, 0.1),
            "just saved, old one deleted": (self.has_saved, 0.03),
            "in evaluation": (self.evaluates, 0.1),
            "last files written": (lambda: any(map(self.changed, LAST)), 0.2),
        }
        self.lines = num_lines(workdir) + rng.randrange(6)

    def changed(self, name: str) -> bool:
        """Whether the file was written since the process began."""
        try:
            return (self.workdir / name).stat().st_mtime > self.began
        except OSError:
            return False

    def config_is_written(self) -> bool:
        unfinished = any(name.startswith(".config.json") for name in names(self.workdir))
        return unfinished or self.changed("config.json")

    def a_line_is_new(self) -> bool:
        return self.changed("metrics.jsonl") and num_lines(self.workdir) > self.lines

    def saves(self) -> bool:
        return any("tmp" in name for name in names(self.workdir / "checkpoints") - self.before)

    def has_saved(self) -> bool:
        new = names(self.workdir / "checkpoints") - self.before
        return any(name.isdigit() for name in new)

    def evaluates(self) -> bool:
        if not self.changed("metrics.jsonl"):
            return False
        lines = [line for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        last = json.loads(lines[-1]) if lines and lines[-1].endswith("}") else {"step": 1}
        return last["step"] % 8 == 0 and "AP" not in last and self.has_saved()


def kill_once(
    command: list[str], workdir: Path, kind: str, rng: random.Random, starting_seconds: float
) -> bool:
    """Start the run, and kill it at a moment of that kind; False if it ended before."""
    moments = Moments(workdir, rng, starting_seconds)
    has_come, longest = moments.kinds[kind]
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            while process.poll() is None and not has_come():
                time.sleep(0.001)
            deadline = time.monotonic() + rng.random() * longest
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
        finally:
            process.kill()
            process.wait()
    if process.returncode > 0:
        raise RuntimeError(Path(log.name).read_text()[-3000:])
    return process.returncode < 0


def found_after(workdir: Path) -> Iterator[str]:
    """What a kill has left for the next start to mend."""
    steps = names(workdir / "checkpoints")
    if any("tmp" in name for name in steps):
        yield "unfinished checkpoint"
    if any(name.startswith(".") for name in names(workdir)):
        yield "unfinished file"
    newest = max((int(name) for name in steps if name.isdigit()), default=0)
    content = (workdir / "metrics.jsonl").read_text() if num_lines(workdir) else ""
    if content and not content.endswith("\n"):
        yield "unfinished line"
    whole = [json.loads(line) for line in content.splitlines() if line.endswith("}")]
    if any(line["step"] > newest for line in whole):
        yield "lines past the checkpoint"
    if newest and newest % 8 == 0 and not any(x["step"] == newest and "AP" in x for x in whole):
        yield "evaluation to make up for"


def trial(
    command: list[str], reference: Path, workdir: Path, kinds: list[str], rng: random.Random,
    starting_seconds: float,
) -> tuple[list[str], list[set[str]]]:  # fmt: skip
    """One run killed at those kinds of moments while it lasts, and compared with the reference.

    Returns:
        The kinds at which it was killed, and what each kill left.

    Raises:
        AssertionError: if it does not end as the reference did.
    """
    killed, left = [], []
    for kind in kinds:
        if not kill_once([*command, f"--workdir={workdir}"], workdir, kind, rng, starting_seconds):
            break
        killed.append(kind)
        left.append(set(found_after(workdir)))
    run_through(command, workdir)
    found = differences(workdir, reference)
    assert not found, f"{workdir}, killed at {killed}: {found}"
    return killed, left


def run_through(command: list[str], workdir: Path) -> float:
    """Run to the end; the seconds until its first line of metrics."""
    began, first = time.time(), None
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=log
        )
        while process.poll() is None:
            if first is None and num_lines(workdir):
                first = time.time() - began
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(Path(log.name).read_text()[-3000:])
    return first or time.time() - began


def main() -> None:
    """Kill, compare, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="begin no run after these")
    options, flags = parser.parse_known_args()
    rng, began = random.Random(options.seed), time.time()
    command = [sys.executable, "run.py", *FLAGS, *LENGTH, *flags]
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch) / "reference"
        run_through(command, reference)
        starting_seconds = run_through(command, Path(scratch) / "again")  # by compiled programs
        assert not differences(Path(scratch) / "again", reference)
        kinds, left, runs = [], [], 0
        while len(kinds) < options.kills and time.time() - began < 60 * options.minutes:
            workdir = Path(scratch) / f"run{runs}"
            known = list(Moments(workdir, rng, 0).kinds)
            most = min(rng.randrange(4, 16), options.kills - len(kinds))
            chosen = rng.choices(known, k=most)
            more = trial(command, reference, workdir, chosen, rng, starting_seconds)
            kinds, left, runs = kinds + more[0], left + more[1], runs + 1
            print(f"{len(kinds)} kills in {runs} runs: all alike", file=sys.stderr)
    columns = sorted(set().union(*left))
    print(f"{len(kinds)} kills in {runs} runs, {(time.time() - began) / 60:.0f} minutes\n")
    print("| killed | times | " + " | ".join(columns) + " |")
    print("|---" * (2 + len(columns)) + "|")
    for kind, times in Counter(kinds).most_common():
        mine = [what for k, what in zip(kinds, left, strict=True) if k == kind]
        counts = [str(sum(column in what for what in mine) or "") for column in columns]
        print(f"| {kind} | {times} | " + " | ".join(counts) + " |")


if __name__ == "__main__":
    main()
