"""The optimiser that `config.train` describes."""

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to 0 at the last step; `config` is `config.train`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, max(config.steps, config.warmup_steps + 1)
    )


def make_optimizer(config: ConfigDict, frozen: tuple[str, ...]) -> optax.GradientTransformation:
    """SGD with momentum or AdamW, of clipped gradients. Kernels decay; the rest does not.

    The backbone learns at `backbone_lr_multiplier` times the learning rate.

    Args:
        config: `config.train`.
        frozen: how the names of the parameters begin that do not learn, see
            `models.frozen_parameters`.
    """

    def by_name(function):
        def of_tree(params):
            return jax.tree.map_with_path(
                lambda path, _: function(jax.tree_util.keystr(path, simple=True, separator="/")),
                params,
            )

        return of_tree

    def group(name):
        if name.startswith(frozen):
            return "frozen"
        return "backbone" if name.startswith("backbone/") else "rest"

    decays = by_name(lambda name: name.removesuffix("/value").endswith("kernel"))

    schedule = make_schedule(config)
    if config.optimizer == "sgd":
        update = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=decays),
            optax.sgd(schedule, momentum=config.momentum),
        )
    else:
        update = optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)
    scales = {"frozen": 0.0, "backbone": config.backbone_lr_multiplier, "rest": 1.0}
    return optax.chain(
        optax.identity(),  # the place of clipping, now in the step: checkpoints number the parts
        update,
        optax.partition(
            {name: optax.scale(scale) for name, scale in scales.items()},
            by_name(group),
        ),
    )
