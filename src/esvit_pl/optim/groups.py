"""Which parameters an optimizer moves, in which order, and what it has gathered for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.optim import Optimizer

Decaying = Literal["matrices", "layers", "all"]
_TABLES = re.compile(r"(relative_position_bias_table|pos_embed|cls_token|reg_token|positions|\.gain)$")
"""Names of parameters with two and more dimensions that are no layer's weights."""


def parameter_groups(
    module: nn.Module, *, decaying: Decaying = "matrices", lr_factor: float = 1.0, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Two groups named 'decay' and 'no_decay'; parameters without gradient are left out.

    Biases and one-dimensional parameters do not decay. Relative position tables and the prototypes' gains do, as
    EsViT released it (docs/recipes.md); authors of other methods do otherwise. An empty group is left out.

    A backbone that learns more slowly than its heads has groups of its own for every learning rate, such as
    'decay*0.5', and all groups have an "lr_scale", by which `OptimizerRecipe.set_` multiplies the learning rate.

    >>> [(group["name"], len(group["params"])) for group in parameter_groups(nn.Linear(2, 3))]
    [('decay', 1), ('no_decay', 1)]

    Args:
        module: with `lr_factor` or `layer_decay`, one that has a ``backbone``.
        decaying: "matrices" as said above; "layers" without tables of positions, tokens and gains (MoBY, SimMIM); "all"
            with every bias and norm (MoCo v3).
        lr_factor: of the backbone's learning rate.
        layer_decay: learning rate of a layer of the backbone, divided by that of the layer above (`Backbone.depths`);
            the heads lie above the last.

    Raises:
        ValueError: a factor below 0, or a decay that is not above 0 and at most 1.
        NotImplementedError: `layer_decay` for a backbone that does not say how deep its parameters lie.
    """
    if lr_factor < 0:
        raise ValueError(f"lr_factor (init.lr_factor) must be 0 or more, got {lr_factor}")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay (init.layer_decay) must be above 0 and at most 1, got {layer_decay}")
    depths = {} if layer_decay == 1 else cast(Any, module.backbone).depths()
    heads = max(depths.values(), default=0) + 1
    groups: dict[tuple[float, str], list[nn.Parameter]] = {(1.0, "decay"): [], (1.0, "no_decay"): []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            elsewhere, _, of_backbone = name.partition("backbone.")
            scale = 1.0 if elsewhere else lr_factor * layer_decay ** (heads - depths.get(of_backbone, heads))
            keeps = decaying != "all" and (name.endswith(".bias") or parameter.ndim == 1)
            keeps |= decaying == "layers" and _TABLES.search(name) is not None
            groups.setdefault((scale, "no_decay" if keeps else "decay"), []).append(parameter)
    return [
        {"name": kind if scale == 1 else f"{kind}*{scale:g}", "params": params, "weight_decay": 0.0, "lr_scale": scale}
        for (scale, kind), params in groups.items()
        if params
    ]


def parameter_names(optimizer: Optimizer, module: nn.Module) -> list[str]:
    """Names of the optimizer's parameters in its order, as ``module.named_parameters()`` gives them."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def restore_(optimizer: Optimizer, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give `optimizer` what another one had gathered, by names of parameters.

    Args:
        optimizer: fresh; its groups and their settings stay.
        parameters: name -> parameter. Shared ones may have several names.
        state: name -> tensors, as torch's optimizers call them; parameters that are not named start afresh.
    """
    held = optimizer.state_dict()
    places = {id(p): place for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    held["state"] = {places[id(parameters[name])]: dict(tensors) for name, tensors in state.items()}
    optimizer.load_state_dict(held)
