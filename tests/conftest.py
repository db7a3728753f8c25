"""Every annotated shape and type of jaxdet is checked while the tests run; and data for them."""

import contextlib
import ctypes
import gc
import io
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Tracing makes millions of objects, nearly none of them garbage: looked for less often.
gc.set_threshold(50_000)

# Compiling takes longer than running such small networks: not much of it. Without XLA's newer
# emitters of fusions, which go through MLIR, a training step compiles in a quarter of the time and
# takes a third of the memory.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=4 {QUICK}"
os.environ.pop("TFDS_DATA_DIR", None)  # of whoever runs the tests, who would be told of it
# What one test has compiled another need not, in this process or in one that it starts.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jaxdet-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from jaxtyping import install_import_hook

install_import_hook("jaxdet", "beartype.beartype").__enter__()

from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver
from PIL import Image

from tfds_vinbig.kaggle import CLASS_NAMES, NO_FINDING

# What the shapes stand for. A child could tell them apart, so a detector must.
DISC, SQUARE, BAR = 8, 4, 3
HEIGHT, WIDTH = 512, 384  # of the pretended original


def draw_shapes(rng):
    """A grey picture of 256 pixels with up to three shapes, and their (class, box in pixels)."""
    picture = rng.normal(60, 8, (256, 256))
    y, x = np.mgrid[:256, :256]
    found = []
    cells = rng.permutation(4)[: rng.integers(1, 4)]  # one a quadrant: they never overlap
    for cell in cells:
        label = rng.choice([DISC, SQUARE, BAR])
        half_w = rng.integers(28, 44)
        half_h = half_w // 3 if label == BAR else half_w
        cx, cy = 64 + 128 * (cell % 2), 64 + 128 * (cell // 2)
        cx, cy = cx + rng.integers(-12, 13), cy + rng.integers(-12, 13)
        inside = (abs(x + 0.5 - cx) < half_w) & (abs(y + 0.5 - cy) < half_h)
        if label == DISC:
            inside = (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 < half_w**2
        picture[inside] += {DISC: 90, SQUARE: 150, BAR: 120}[label]
        found.append((int(label), (cx - half_w, cy - half_h, cx + half_w, cy + half_h)))
    return np.clip(picture, 0, 255).astype(np.uint8), found


@pytest.fixture(scope="session")
def kaggle_folder(tmp_path_factory):
    """30 training images, every third normal, read alike by three readers; 6 test images."""
    folder = tmp_path_factory.mktemp("kaggle")
    rng = np.random.default_rng(0)
    rows, meta = [], {"train": [], "test": []}
    for split, count in (("train", 30), ("test", 6)):
        (folder / split).mkdir()
        for i in range(count):
            name = f"{split}{i:02}"
            picture, found = draw_shapes(rng)
            if i % 3 == 0:
                picture, found = rng.normal(60, 8, (256, 256)).astype(np.uint8), []
            Image.fromarray(picture).save(folder / split / f"{name}.png")
            meta[split].append((name, HEIGHT, WIDTH))
            for reader in ("R1", "R2", "R3") if split == "train" else ():
                for label, (x1, y1, x2, y2) in found:
                    box = (x1 * 1.5, y1 * 2.0, x2 * 1.5, y2 * 2.0)
                    rows.append((name, CLASS_NAMES[label], label, reader, *box))
                if not found:
                    rows.append((name, NO_FINDING, len(CLASS_NAMES), reader, *[None] * 4))
    columns = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "train.csv", index=False)
    for split, lines in meta.items():
        table = pd.DataFrame(lines, columns=["image_id", "dim0", "dim1"])
        table.to_csv(folder / f"{split}_meta.csv", index=False)
    sample = pd.DataFrame({"image_id": [f"test{i:02}" for i in (3, 1, 5, 0, 2, 4)]})
    sample.assign(PredictionString="14 1 0 0 1 1").to_csv(
        folder / "sample_submission.csv", index=False
    )
    return folder


@pytest.fixture(scope="session")
def data_dir(kaggle_folder, tmp_path_factory):
    """A folder with the TFDS dataset tfds_vinbig/256 built from `kaggle_folder`."""
    from tfds_vinbig.tfds_vinbig_dataset_builder import build

    directory = tmp_path_factory.mktemp("tfds")
    build("256", directory, manual_dir=kaggle_folder)
    return directory


@pytest.fixture
def config(data_dir):
    """A small network on the shapes."""
    from configs import retina

    config = retina.get_config()
    config.data.dir = str(data_dir)
    config.data.image_size = 64
    config.data.num_workers = 1
    config.model.backbone.update({"depth": 10, "width": 16})
    config.model.update({"fpn_channels": 32, "head_channels": 32, "head_depth": 1})
    config.model.update({"levels": (3, 4, 5), "dtype": "float32"})
    config.model.update({"anchor_scales": (2.0, 2.52, 3.17), "aspect_ratios": (0.4, 1.0, 2.0)})
    config.train.update({"batch_size": 8, "steps": 4, "warmup_steps": 0, "learning_rate": 3e-3})
    config.train.update({"log_every": 1, "checkpoint_every": 2, "evaluate_every": 2})
    config.evaluation.batch_size = 4
    return config


@pytest.fixture(scope="session")
def dataset(data_dir):
    """The split "train" of the shapes."""
    from jaxdet.data.dataset import open_dataset, read_split

    return read_split(open_dataset("tfds_vinbig/256", str(data_dir)), "train")


@pytest.fixture
def sets(config, dataset):
    """The images to train on and to evaluate on."""
    from jaxdet.data.dataset import open_dataset
    from jaxdet.data.splits import train_and_eval

    builder = open_dataset(config.data.name, config.data.dir)
    return train_and_eval(config.data, builder, dataset)


@pytest.fixture
def batches(config, sets):
    """Of the images to train on."""
    from jaxdet.data.batches import make_targets, training_batches

    targets = make_targets(sets[0], config.data.fusion, config.data.image_size)
    return training_batches(config, sets[0], targets, slice(None))


def command(*arguments) -> SimpleNamespace:
    """What `python run.py ARGUMENTS` does, in this process: its exit code and what it prints."""
    import jaxdet.training.loop  # noqa: F401  defines flags of its tools, which are not to be forgotten
    import run

    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        flagsaver.flagsaver(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.argv", [])
        code = run.run(["run.py", *map(str, arguments)])
    return SimpleNamespace(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


TINY = [
    "--config=configs/phantom.py", "--config.data.name=tfds_vinbig/256",
    "--config.data.fusion=skill@0.4",
    "--config.data.image_size=64", "--config.model.backbone.depth=10",
    "--config.model.backbone.width=8", "--config.model.fpn_channels=16",
    "--config.model.head_channels=16",
    "--config.model.levels=(4,5)", "--config.train.batch_size=4", "--config.train.steps=3",
    "--config.train.warmup_steps=1", "--config.train.evaluate_every=2",
    "--config.train.log_every=1", "--config.evaluation.batch_size=4",
    "--config.inference.score_threshold=0.0", "--config.evaluation.best_by=AUC",
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny(data_dir):
    """Flags of a run that takes seconds."""
    return [*TINY, f"--config.data.dir={data_dir}"]


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """A workdir after --mode=train, and what was printed. No test changes what is in it."""
    workdir = tmp_path_factory.mktemp("run")
    done = command(*tiny, f"--workdir={workdir}")
    assert done.code == 0, done.stderr
    return workdir, done


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """Compiled programs of one module are kept through the next while they take little memory."""
    yield
    if _resident_bytes() > 1.2e9:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another system's C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # gives back what is free


def _resident_bytes() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # another system
        return float("inf")
