"""Many trainings that differ in one thing each: what the studies share.

A study is a file with a line for each variant and seed. Called again, it goes on where it was
stopped; after a change of code or config, name another file.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def run_all(
    path: Path,
    variants: Iterable[str],
    seeds: int,
    steps: int,
    only: Collection[str],
    run: Callable[[str, int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The lines of a study of so many steps, once every variant has run with every seed.

    Args:
        only: variants to run; all where it is empty.
        run: function (variant, seed) -> what the line is to say of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    *whole, rest = text.split("\n")
    if rest:  # a line that was not finished, as by one that was killed, is none
        path.write_text(text.removesuffix(rest))
    lines = [line for line in map(json.loads, whole) if line["steps"] == steps]
    done = {(line["variant"], line["seed"]) for line in lines}
    for seed in range(seeds):
        for variant in variants:
            if (variant, seed) in done or (only and variant not in only):
                continue
            start = time.perf_counter()
            result = run(variant, seed)
            seconds = round(time.perf_counter() - start)
            about = {"variant": variant, "seed": seed, "steps": steps, "seconds": seconds}
            lines.append({**about, **result})
            with path.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1]), flush=True)
    return lines


def mean_and_spread(values: Iterable) -> list[tuple[float, float]]:
    """Mean and standard deviation over the seeds, of each column."""
    values = np.array(list(values), float)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    return list(zip(values.mean(axis=0), spread, strict=True))
