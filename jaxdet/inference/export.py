"""A run's detector as one file that runs with jax alone, an example, and a model card."""

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxdet import InputError
from jaxdet.data import splits
from jaxdet.data.dataset import open_dataset, read_split
from jaxdet.inference.detector import Loaded, detector_function
from jaxdet.inference.model_card import model_card
from jaxdet.runs import workdir

PLATFORMS = ("cpu", "cuda", "tpu")

EXAMPLE = '''\
"""What is in a picture: python example.py PICTURE, with jax, flatbuffers, NumPy and Pillow."""

import sys
from pathlib import Path

import jax.export
import numpy as np
from PIL import Image

CLASSES = {classes!r}

detector = jax.export.deserialize(Path(__file__).with_name("detector.bin").read_bytes())
size = detector.in_avals[0].shape[1]  # pixels along a side
picture = Image.open(sys.argv[1])
assert picture.mode in ("L", "RGB"), "save it with 8 bits of gray, air black"
picture = picture.convert("L")
image = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
found = jax.tree.map(np.asarray, detector.call(image[None]))  # a batch of any number of images
boxes = found["boxes"][0] * np.tile(picture.size, 2) / size  # x1 y1 x2 y2, back in its pixels
print(f"No finding: {{found['normal'][0]:.6f}}")
for box, label, score in zip(boxes, found["labels"][0], found["scores"][0]):
    if score > 0:
        print(f"{{CLASSES[label]}}: {{score:.6f}} at " + " ".join(f"{{x:.3f}}" for x in box))
'''


def export_detector(loaded: Loaded, num_classes: int) -> jax.export.Exported:
    """The detector with its weights, normalisation and NMS, for `PLATFORMS` and any batch size.

    It takes uint8 (batch, size, size), grey levels at the model's size, and gives a dictionary of
    the fields of `nms.Detections`, boxes in pixels of that input. One look at each image: without
    test-time augmentation.
    """
    config = loaded.detector.config
    detect = detector_function(config, num_classes)
    weights = jax.device_get(loaded.weights)  # constants of one device, whatever they are on here

    def call(images):
        return detect(jax.tree.map(jnp.asarray, weights), images)._asdict()

    (batch,) = jax.export.symbolic_shape("batch")
    shape = (batch, config.data.image_size, config.data.image_size)
    # Plain `jax.jit`: the options of `jaxdet.kernels.compilation` are of this machine.
    export = jax.export.export(jax.jit(call), platforms=PLATFORMS)
    return export(jax.ShapeDtypeStruct(shape, jnp.uint8))


def export_run(loaded: Loaded, folder: Path, output: Path) -> None:
    """Write `detector.bin`, `example.py` and `MODEL_CARD.md` of the run in `folder` to `output`."""
    config, (_, run) = loaded.detector.config, workdir.read_config(folder)
    exported = export_detector(loaded, len(run.class_names))
    data = bytes(exported.serialize())
    version = exported.calling_convention_version
    card = model_card(loaded, run, folder, count_images(config), version)
    workdir.write_atomically(output / "detector.bin", data)
    workdir.write_atomically(output / "example.py", EXAMPLE.format(classes=run.class_names))
    workdir.write_atomically(output / "MODEL_CARD.md", card)
    print(
        f"checkpoint {loaded.step}: {output}/detector.bin, {len(data) / 1e6:.1f} MB, for "
        f"{', '.join(PLATFORMS)}; example.py runs it, MODEL_CARD.md says what it is"
    )


def count_images(config: ConfigDict) -> tuple[int, int] | None:
    """Images to train on and to evaluate on; None where the dataset is not on this machine."""
    try:
        builder = open_dataset(config.data.name, config.data.dir)
        sets = splits.train_and_eval(config.data, builder, read_split(builder, "train"))
    except InputError:
        return None
    return len(sets[0]), len(sets[1])
