"""torchvision beside a torch without CUDA, where PyPI's torchvision cannot load its operators.

`from benchmarks.torchvision_cpu import torchvision`. Training and RetinaNet's head use no operator
but NMS, which is put in its place here, written in torch; where the operators load, nothing is
changed.
"""

import sys

import torch


def greedy_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Indices of the boxes that greedy NMS keeps, best score first."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    top_left = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlap = intersection / (area[:, None] + area - intersection)
    suppresses = (overlap > iou_threshold).triu(1)  # each box those after it
    keep = torch.ones(len(boxes), dtype=torch.bool)
    while True:  # until no decision changes, which is when all are as one by one
        kept = ~(suppresses & keep[:, None]).any(dim=0)
        if torch.equal(kept, keep):
            return order[keep]
        keep = kept


try:
    import torchvision
except RuntimeError:  # operator torchvision::nms does not exist
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    import torchvision

    torchvision.ops.boxes.nms = greedy_nms

__all__ = ["torchvision"]
