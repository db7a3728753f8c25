"""Images in, a submission out."""

from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from jaxdet import InputError, data, inference, parallel, submission
from jaxdet.config import with_anchors_of_run
from jaxdet.evaluate import load_weights
from jaxdet.models import detector
from tfds_vinbig import kaggle


def read_pictures(path: Path, meta: Path | None, image_size: int):
    """(ids, original sizes, images at the model's size) of a file or of a folder's files.

    With `meta`, original sizes are looked up there by image id; else they are the files' own.

    Raises:
        InputError: for a missing or unreadable file, two of one name, or an id that `meta` lacks.
    """
    if path.is_dir():
        # Hidden files are none of the user's: macOS leaves a ._NAME.png beside NAME.png.
        files = sorted(
            f
            for f in path.iterdir()
            if f.suffix.lower() in kaggle.SUFFIXES and not f.name.startswith(".")
        )
    else:
        files = [path]
    if not files:
        raise InputError(f"--images={path}: no PNG or JPEG file in it")
    (stem, times), *_ = Counter(file.stem for file in files).most_common(1)
    if times > 1:
        raise InputError(f"--images={path}: {times} files are named {stem}")
    known = kaggle.read_sizes(meta) if meta else None
    ids, sizes, images = [], [], []
    for file in tqdm(files, "read", unit="image", disable=None):
        image = kaggle.read_image(file)
        if known is not None and file.stem not in known:
            raise InputError(f"--meta={meta}: no line for image_id {file.stem}")
        ids.append(file.stem)
        sizes.append(image.shape if known is None else known[file.stem])
        picture = Image.fromarray(image)
        if image.shape != (image_size, image_size):
            picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
        images.append(np.asarray(picture))
    return ids, np.array(sizes), images


def predict(
    config: ConfigDict,
    workdir: Path,
    which: str = "latest",
    images: Path | None = None,
    meta: Path | None = None,
    output: Path | None = None,
) -> Path:
    """Write the detections of a checkpoint as a submission, and return its path.

    On the test split of the dataset, in the order of sample_submission.csv where there was one; or
    on `images`, see `read_pictures`.
    """
    config = with_anchors_of_run(config, workdir)
    size = config.data.image_size
    mesh = parallel.make_mesh()
    weights, step = load_weights(config, workdir, which, mesh)
    if images is None:
        test = data.read_split(config.data.name, "test", size, config.data.dir)
        test = test.take(np.argsort(test.index))
        ids, sizes, pictures = list(test.ids), test.sizes, data.decode_all(test, "test")
    else:
        ids, sizes, pictures = read_pictures(images, meta, size)
    detect = inference.make_detect(
        detector.graphdef(config), detector.pyramid(config), size, mesh, **config.inference
    )
    found = inference.detect_all(detect, weights, pictures, config.evaluation.batch_size, mesh)
    path = output or workdir / "submission.csv"
    submission.write(path, ids, submission.to_table(found, sizes, size))
    print(f"checkpoint {step}: {found.mask.sum()} boxes in {len(ids)} images, written to {path}")
    return path
