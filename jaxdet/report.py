"""What a person looks at: images with the readers' boxes and the model's."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

FONT = ImageFont.load_default(11)


def color_of(label: int) -> tuple[int, int, int]:
    """A colour for each class; near labels get colours far apart."""
    return tuple(int(255 * x) for x in colorsys.hsv_to_rgb(0.618 * label % 1, 0.65, 1.0))


def draw(
    image: UInt8[np.ndarray, "h w"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    class_names: Sequence[str],
    scores: Float[np.ndarray, "n"] | None = None,
    zoom: int = 2,
) -> Image.Image:
    """An image, `zoom` times its size, with boxes (in its own pixels), the names of their classes
    and scores."""
    height, width = image.shape
    picture = Image.fromarray(image).convert("RGB")
    picture = picture.resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for i, (box, label) in enumerate(zip(boxes * zoom, labels, strict=True)):
        color = color_of(int(label))
        pen.rectangle(tuple(box), outline=color, width=max(1, zoom // 2))
        text = class_names[label] if scores is None else f"{class_names[label]} {scores[i]:.2f}"
        _, _, right, bottom = pen.textbbox((0, 0), text, font=FONT)
        x = min(max(box[0], 0), width * zoom - right)
        y = box[1] - bottom - 1 if box[1] > bottom else box[1] + 1
        pen.text((x, y), text, fill=color, font=FONT, stroke_width=1, stroke_fill=(0, 0, 0))
    return picture


def grid(pictures: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Pictures of one size in rows, `gap` pixels apart."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def compare(
    images: UInt8[np.ndarray, "n h w"],
    targets,
    detections,
    class_names: Sequence[str],
    score_threshold: float = 0.3,
) -> Image.Image:
    """Two pairs in a row: the readers' fused boxes on the left, the model's on the right.

    `targets` is a `batches.Targets`, `detections` an `nms.Detections`, both of these images and
    in their pixels.
    """
    zoom = max(1, round(384 / images.shape[1]))
    pairs = []
    for i, image in enumerate(images):
        truth = targets.mask[i]
        shown = detections.mask[i] & (detections.scores[i] >= score_threshold)
        read = draw(
            image, targets.boxes[i][truth], targets.labels[i][truth], class_names, zoom=zoom
        )
        boxes, labels, scores = (column[i][shown] for column in detections[:3])
        found = draw(image, boxes, labels, class_names, scores, zoom=zoom)
        pairs.append(grid([read, found], columns=2, gap=2))
    return grid(pairs, columns=2, gap=16)
