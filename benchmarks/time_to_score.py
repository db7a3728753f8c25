"""Which score a config reaches after which time, on the device that is there.

On a GPU, in 10 minutes (NIH: films with boxes in COCO's form, see docs/real_findings.md):

    python -m tfds_vinbig --config=nih --size=512 --coco=NIH/instances_partial.json \
        --images=NIH/images
    python benchmarks/time_to_score.py --steps=3000 --workdir=runs/timed \
        --config=configs/retina.py:512 --config.data.name=tfds_vinbig/nih \
        --config.data.groups=NIH/patients.csv:patient
    python benchmarks/kills.py --kills=2 --config.train.deterministic=True

The run is scored five times on its held-out fold; other flags go to run.py. Prints a Markdown
table: seconds since the run was started, imports and compiling included, and the scores. The last
command stops a small run twice, and looks for a bit that differs from one that ran through.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lines_as_they_come(command: list[str], file: Path) -> Iterator[tuple[float, dict]]:
    """The seconds that a command has taken, and the line of JSON that it has just written.

    Raises:
        SystemExit: with its exit code, where the command fails.
    """
    began, seen, ended = time.perf_counter(), 0, False
    with subprocess.Popen(command, cwd=ROOT) as process:
        while not ended:
            ended = process.poll() is not None  # asked first: then all of the file is there
            lines = file.read_text().splitlines(keepends=True) if file.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            for line in whole[seen:]:
                yield time.perf_counter() - began, json.loads(line)
            seen = len(whole)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(process.returncode)


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True, help="of the run; 10 or more")
    parser.add_argument("--workdir", type=Path, required=True, help="of the run; a new folder")
    options, flags = parser.parse_known_args()
    if options.workdir.exists():
        sys.exit(f"{options.workdir}: is there already; name a new folder")
    workdir, every = options.workdir.absolute(), options.steps // 5
    command = [
        sys.executable, "run.py", f"--workdir={workdir}", *flags,
        f"--config.train.steps={options.steps}", f"--config.train.warmup_steps={every // 2}",
        f"--config.train.evaluate_every={every}", f"--config.train.checkpoint_every={every}",
        "--config.evaluation.bootstrap_samples=0",
    ]  # fmt: skip
    lines = lines_as_they_come(command, workdir / "metrics.jsonl")
    rows = [(at, line) for at, line in lines if "AP" in line]
    names = [name for name, value in rows[-1][1].items() if isinstance(value, float)]
    print(f"\n| seconds | step | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}")
    for at, line in rows:
        cells = [f"{line[name]:.3f}" for name in names]
        print(f"| {at:.0f} | {line['step']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
