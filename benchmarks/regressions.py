"""Has anything become a fifth slower? A small version of each benchmark beside a committed table.

    pip install torch torchvision pycocotools ensemble-boxes "psutil>=7.2"
    python benchmarks/regressions.py            # exit code 1, and names, where something has
    python benchmarks/regressions.py --update   # writes the table anew

Compared are ratios, not seconds: how many times as fast jaxdet is as what it is measured beside,
both by turns on this machine. `regressions.json` has them by the widest vectors of the processor,
as AVX-512 is worth more to some than to others: the median and the range of the rounds. Slower is
what has less than 1 / 1.2 of the table's ratio, and less than the lowest of its rounds.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for benchmarks

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_boolean("update", False, "Write the table instead of comparing with it.")
flags.DEFINE_multi_string("only", [], "Benchmarks, such as files.py or kernels; all by default.")
ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).with_suffix(".json")
SLOWER = 1.2

Rows = list[dict[str, str]]
Ratios = dict[str, tuple[float, float, float]]  # the median, the lowest and the highest


def tables(text: str) -> Rows:
    """The rows of the Markdown tables in what a benchmark prints, by the names of their columns."""
    rows, names = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| \n").split("|")]
        if not line.startswith("|"):
            names = None
        elif names is None:
            names = cells
        elif set(line) - set("|-"):
            rows.append(dict(zip(names, cells, strict=False)))
    return rows


def numbers(cell: str) -> list[float]:
    return [float(x) for x in re.findall(r"\d[\d.]*(?:e[+-]?\d+)?", cell)]


def peers_ratio(rows: Rows, kind: str, **where: str) -> Ratios:
    """Each peer's seconds beside jaxdet's, of a table with ranges, in the rows that have this."""
    rows = [row for row in rows if all(row.get(name) == value for name, value in where.items())]
    own = next(row for row in rows if "jaxdet" in row.values())
    spread = next(name for name, cell in own.items() if re.search(r"\(.* to .*\)", cell))
    found = {}
    for row in rows:
        peer = next((row[name] for name in ("step", "system", "by") if name in row), "")
        if row is own or peer.startswith("jaxdet") or "product" in peer:
            continue
        _, fast, slow = numbers(row[spread])
        _, own_fast, own_slow = numbers(own[spread])
        # The range of ratios: at best and at worst, of what was seen of both.
        found[f"{kind}, beside {peer}"] = float(row["ratio"]), fast / own_slow, slow / own_fast
    return found


def of_files(rows: Rows) -> Ratios:
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        found |= peers_ratio(rows, task, task=task)
    return found


def of_compiling(rows: Rows) -> Ratios:
    fast, plain = (next(row for row in rows if row["way"] == way) for way in ("fast", "plain"))
    least, most = (1 / numbers(fast["step, s (range)"])[i] for i in (2, 1))
    _, low, high = numbers(plain["step, s (range)"])
    columns = next(name for name in fast if name.startswith("trace")), "lower", "XLA"
    of_all_cores = [sum(numbers(row[name])[1] for name in columns) for row in (plain, fast)]
    compiling = of_all_cores[0] / of_all_cores[1]
    return {
        "training step, beside the plain way": (float(plain["ratio"]), low * least, high * most),
        "compiling it, processor seconds": (compiling,) * 3,
    }


def of_fusion(rows: Rows) -> Ratios:
    ratio = [float(row["ensemble-boxes, s"]) / float(row["jaxdet, s"]) for row in rows]
    return {"fusing labels, beside ensemble-boxes": (np.median(ratio), min(ratio), max(ratio))}


def of_data(rows: Rows) -> Ratios:
    rows = [row for row in rows if "a step fed with" in row]
    found = {}
    for row in rows[1:]:
        middle, low, high = (1 / x for x in numbers(row["beside one batch (range)"]))
        found[f"a step with images {row['a step fed with']}"] = middle, high, low
    return found


COMMANDS = {
    "train_step.py": (
        ["--network=r18", "--size=128", "--batch_size=4", "--rounds=5"],
        lambda rows: peers_ratio(
            [row for row in rows if "ratio" in row], "R18's training step", network="r18"
        ),
    ),
    "inference.py": (
        ["--network=r18", "--size=128", "--batch_size=4", "--rounds=5"],
        lambda rows: peers_ratio(rows, "R18's detection", network="r18"),
    ),
    "compiling.py": (["--way=fast", "--way=plain", "--rounds=10"], of_compiling),
    "files.py": (["--scored=300", "--built=1000", "--rounds=3"], of_files),
    "fusion.py": (["--labels={folder}/train.csv"], of_fusion),
    "data.py": (["--size=256", "--workers=2", "--images=400", "--steps=10"], of_data),
}


def run(script: str, folder: str) -> Ratios:
    """What a benchmark says when it runs by itself, as a user would run it."""
    words, read = COMMANDS[script]
    words = [word.format(folder=folder) for word in words]
    command = [sys.executable, f"benchmarks/{script}", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found = read(tables(done.stdout))
    if not found:
        raise ValueError(f"{script} prints no table with ratios:\n{done.stdout}")
    return found


def kernels() -> Ratios:
    """NMS beside the same in torch; matching beside torchvision's matcher."""
    import jax
    import jax.numpy as jnp
    import torch

    from benchmarks import peers
    from benchmarks.torchvision_cpu import greedy_nms, torchvision
    from jaxdet.kernels.compilation import jit
    from jaxdet.ops.matching import match_anchors
    from jaxdet.ops.nms import nms_mask

    rng = np.random.default_rng(0)

    def random_boxes(*shape):
        corner, extent = rng.uniform(0, 400, (*shape, 2)), rng.uniform(20, 150, (*shape, 2))
        return np.concatenate([corner, corner + extent], axis=-1).astype(np.float32)

    boxes, scores = random_boxes(8, 1000), np.sort(rng.uniform(size=(8, 1000)))[:, ::-1].copy()
    nms = jit(jax.vmap(lambda x: nms_mask(x, jnp.zeros(len(x), jnp.int32), 0.5)))
    pairs = list(zip(torch.from_numpy(boxes), torch.from_numpy(scores), strict=True))
    kept = [len(greedy_nms(*pair, 0.5)) for pair in pairs]
    assert np.asarray(nms(boxes)).sum(axis=1).tolist() == kept
    anchors, truth = random_boxes(20_000), random_boxes(8, 16)
    match = jit(jax.vmap(lambda x: match_anchors(anchors, x, jnp.ones(len(x), bool))))
    theirs = torchvision.models.detection._utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    box_iou, given = torchvision.ops.boxes.box_iou, torch.from_numpy(anchors)

    def match_in_torch():
        return [theirs(box_iou(torch.from_numpy(x), given)) for x in truth]

    assert (np.asarray(match(truth)) == torch.stack(match_in_torch()).numpy()).all()
    found = {}
    for name, ours, other in (
        ("NMS, beside torch", lambda: nms(boxes), lambda: [greedy_nms(*p, 0.5) for p in pairs]),
        ("matching, beside torchvision", lambda: match(truth), match_in_torch),
    ):
        calls = {"ours": lambda f=ours: jax.block_until_ready(f()), "other": other}
        seconds = peers.in_turns(calls, 15)
        ratio = seconds["other"] / seconds["ours"]
        found[name] = np.median(ratio), ratio.min(), ratio.max()
    return found


def vectors() -> str:
    """Of the processor, by the widest that the code is compiled to."""
    about = Path("/proc/cpuinfo").read_text()
    return next((kind for kind in ("avx512f", "avx2") if kind in about), "others")


def measure(scripts: list[str]) -> Iterator[Ratios]:
    """The ratios of each, as they come."""
    from tfds_vinbig.phantom import draw_folder

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for script in scripts:
            if script == "fusion.py":  # its labels are those of a phantom
                draw_folder(folder, num_train=1000, num_test=1, size=32)
            now = kernels() if script == "kernels" else run(script, folder)
            print(f"{script}: {time.perf_counter() - start:.0f} s", flush=True)
            yield {name: [float(f"{x:.3g}") for x in ratio] for name, ratio in now.items()}


def main(_):
    known = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table = known.get(vectors(), {})
    if not table and not FLAGS.update:
        sys.exit(f"{TABLE.name} has no ratios of a processor with {vectors()}: make it by --update")
    found, slower = {}, []
    for more in measure(FLAGS.only or [*COMMANDS, "kernels"]):
        found |= more
        if FLAGS.update:
            known[vectors()] = {**table, **found}
            TABLE.write_text(json.dumps(known, indent=1) + "\n")
    print("\n| jaxdet is so many times as fast | now (range) | in the table (range) | |")
    print("|---|---|---|---|")
    for name, now in found.items():
        before = table.get(name)
        worse = before and now[0] < before[0] / SLOWER and now[0] < before[1]
        slower += [name] if worse else []
        cells = [
            "{:.3g} ({:.3g} to {:.3g})".format(*x) if x else "not there" for x in (now, before)
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {'SLOWER' if worse else ''} |")
    if slower and not FLAGS.update:
        sys.exit(f"a fifth slower than in {TABLE.name}: {'; '.join(slower)}")


if __name__ == "__main__":
    app.run(main)
