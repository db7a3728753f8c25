"""Where the time of a compiled training step goes, by parts, from JAX's profiler.

On a CPU, convolutions run on threads that the profiler does not see: what the clock has beyond all
other operations is counted as theirs, and as waiting.
"""

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

PARTS = (
    "convolutions and matrix products", "Winograd's transforms", "layout",
    "activations and normalisation", "sums over locations", "matching and losses", "optimiser",
    "augmentation",
)  # fmt: skip


def of_step(run: Callable[[], None], hlo: str, steps: int) -> dict[str, float]:
    """Seconds of each part of `PARTS` in a step; `run()` makes `steps` of them.

    `hlo` is the text of the compiled step.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with jax.profiler.trace(folder):
            run()
            elapsed = time.perf_counter() - start
        file = next(Path(folder).rglob("*.xplane.pb"))
        times = operation_times(jax.profiler.ProfileData.from_file(str(file)))
    part_of = parts_of_operations(hlo)
    seconds = dict.fromkeys(PARTS, 0.0)
    for name, value in times.items():
        seconds[part_of.get(name, "activations and normalisation")] += value / steps
    if jax.default_backend() == "cpu":
        seconds[PARTS[0]] += max(0.0, elapsed / steps - sum(seconds.values()))
    return seconds


def operation_times(profile: jax.profiler.ProfileData) -> dict[str, float]:
    """Seconds of each HLO operation, without the operations inside it."""
    times = {}
    for plane in profile.planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    start = event.start_ns
                    events.append((start, -(start + event.duration_ns), stats["hlo_op"]))
            open_until = []  # (end, name) of the operations that the next one may be inside of
            for start, end, name in sorted(events):
                end = -end
                while open_until and open_until[-1][0] <= start:
                    open_until.pop()
                if open_until:  # inside, or over its end: a GPU starts the next kernel early
                    times[open_until[-1][1]] -= (min(end, open_until[-1][0]) - start) / 1e9
                times[name] = times.get(name, 0.0) + (end - start) / 1e9
                open_until.append((end, name))
    return times


def parts_of_operations(hlo: str) -> dict[str, str]:
    """The part that each instruction belongs to, by what it is and by where in the code it is."""
    bodies, lines, computation = {}, {}, ""
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            computation = header[1]
            bodies[computation] = ""
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line):
            lines[instruction[1]] = instruction[2]
            bodies[computation] += line + "\n"
    return {name: _part(name, line, bodies) for name, line in lines.items()}


def _part(name: str, line: str, bodies: dict[str, str]) -> str:
    called = re.search(r"(?:calls|to_apply)=%?([\w.-]+)", line)
    body = line + (bodies.get(called[1], "") if called else "")
    where = re.search(r'op_name="([^"]*)"', line)
    where = where[1] if where else ""
    convolutions, transforms, layout, activations, sums, losses, optimiser, augmentation = PARTS
    if re.search(r"\sdot\(", body) and re.match(r"f32\[(1,)?\d+\]", line):
        return sums  # of each channel, as a product with ones
    if re.search(r"\s(convolution|dot)\(|custom_call_target=\"[^\"]*(conv|gemm|dot)", body):
        return convolutions
    if "winograd" in where:
        return transforms
    if name.startswith(("transpose", "copy")):
        return layout
    if re.search(r"\sreduce\(", body) and "vmap" not in where:
        return sums
    if "vmap" in where:  # matching and losses are of one image each, and so is augmentation
        return losses if "jvp" in where or "transpose" in where else augmentation
    if where and "jvp" not in where:
        return optimiser
    return activations
