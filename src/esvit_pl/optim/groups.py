"""Which parameters an optimizer moves, in which order, and what it has gathered for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def parameter_groups(module: nn.Module, *, lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Two groups named 'decay' and 'no_decay'; parameters without gradient are left out.

    Biases and one-dimensional parameters do not decay. Relative position tables and the prototypes' gains do, as
    released (docs/recipes.md). An empty group is left out.

    With an `lr_factor` other than 1, parameters below ``backbone.`` are two groups more, 'backbone_decay' and
    'backbone_no_decay', whose "lr_factor" multiplies the learning rate (`OptimizerRecipe.set_`).

    >>> [(group["name"], len(group["params"])) for group in parameter_groups(nn.Linear(2, 3))]
    [('decay', 1), ('no_decay', 1)]
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "backbone_decay": [], "backbone_no_decay": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            keeps = name.endswith(".bias") or parameter.ndim == 1
            part = "backbone_" if lr_factor != 1 and name.startswith("backbone.") else ""
            groups[part + ("no_decay" if keeps else "decay")].append(parameter)
    factor = {"lr_factor": lr_factor}
    return [
        {"name": name, "params": params, "weight_decay": 0.0, **(factor if name.startswith("backbone_") else {})}
        for name, params in groups.items()
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
