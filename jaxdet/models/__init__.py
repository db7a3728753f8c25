"""The detector that a config describes, and what there is to choose from."""

from flax import nnx

from jaxdet.models.convnext import ConvNeXt
from jaxdet.models.resnet import ResNet
from jaxdet.models.retinanet import RetinaNet
from jaxdet.ops.losses import BOX_LOSSES, CLASS_LOSSES

BACKBONES = {"resnet": ResNet, "convnext": ConvNeXt}

# The values that a field of the config may have.
CHOICES = {
    "model.backbone.name": tuple(BACKBONES),
    "model.backbone.norm": tuple({norm: 0 for b in BACKBONES.values() for norm in b.norms}),
    "model.p6_from": ("p5", "c5"),
    "model.head_norm": ("none", "group"),
    "model.dtype": ("float32", "bfloat16"),
    "loss.class_loss": tuple(CLASS_LOSSES),
    "loss.box": tuple(BOX_LOSSES),
    "loss.matching": ("atss", "iou"),
}
# Fields of `config.model` that say how a network comes about, not what it is.
NOT_OF_THE_NETWORK = ("backbone", "init_from", "num_scales", "num_ratios")


def create(
    model_config, loss_config, num_classes: int, image_size: int, rngs: nnx.Rngs
) -> RetinaNet:
    """The detector of `config.model` and `config.loss`, for square images of `image_size` pixels.

    Raises:
        ValueError: for a field that it cannot follow: names the field, its value, and the choices.
    """
    sections = {"model": model_config, "loss": loss_config}
    for field, choices in CHOICES.items():
        value = sections
        for name in field.split("."):
            value = value[name]
        if value not in choices:
            raise ValueError(f"{field}: {value!r} is not one of {', '.join(choices)}")

    of_backbone = dict(model_config["backbone"])
    frozen_stages = of_backbone["frozen_stages"]
    if not 0 <= frozen_stages <= 5:
        raise ValueError(f"model.backbone.frozen_stages: {frozen_stages} is not in 0..5")
    backbone = BACKBONES[of_backbone.pop("name")]
    return RetinaNet(
        backbone(**of_backbone, dtype=model_config["dtype"], rngs=rngs),
        **{k: v for k, v in model_config.items() if k not in NOT_OF_THE_NETWORK},
        num_classes=num_classes,
        image_size=image_size,
        loss=dict(loss_config),
        rngs=rngs,
    )


def split(model: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Its structure, its parameters, and its BatchNorm statistics (`batch_stats`)."""
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def abstract(
    model_config, loss_config, num_classes: int, image_size: int
) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """The structure, and shapes and types of {"params", "batch_stats"}: no parameter is made."""
    graphdef, params, batch_stats = split(
        nnx.eval_shape(
            lambda: create(model_config, loss_config, num_classes, image_size, nnx.Rngs(0))
        )
    )
    return graphdef, {"params": params, "batch_stats": batch_stats}


def frozen_parameters(frozen_stages: int) -> tuple[str, ...]:
    """How the names of the parameters begin that do not learn, such as "backbone/stages/0/".

    They have no gradient, but weight decay would still move them.
    """
    parts = ("stem", *(f"stages/{i}" for i in range(4)))
    return tuple(f"backbone/{part}/" for part in parts[:frozen_stages])
