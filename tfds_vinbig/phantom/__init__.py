"""The phantom: a Kaggle folder of drawn chest X-rays, whole from a seed.

    draw_folder("phantom", seed=0)

It stands in for VinBigData where the real pictures are not at hand: the same files, the same
columns, the 14 findings drawn as what they are where they occur, and three readers who miss,
shift and misname them about as often as the real ones do. `truth.csv` tells what was drawn.

An image is planned first (`plan_image`: body, findings, readers' boxes; no pixels) and then drawn
(`draw_image`). Everything is a function of (seed, split, index). The rooms, each importing only
from those above it:

    body        the lungs' walls, the diaphragm; coordinates of the chest and of the picture
    findings    which findings an abnormal image has, and where
    readers     what three readers see of them, and draw
    plan        the three together: an image before it is drawn
    scene       the layers of a picture, and the shapes drawn into them
    anatomy     a healthy chest
    appearance  what each class of findings looks like
    picture     the layers developed as a film
    folder      pictures and tables, written whole or not at all
"""

from tfds_vinbig.phantom.folder import draw_folder
from tfds_vinbig.phantom.picture import draw_image
from tfds_vinbig.phantom.plan import plan_image

__all__ = ["draw_folder", "draw_image", "plan_image"]
