"""Heads: what turns features into projections, and projections into distributions."""

# b rows | d channels | p projection width | k prototypes

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """k directions with one gain each: the last layer of the head, with weight norm and without bias.

    Args:
        dim: width p of a projection.
        num_prototypes: k.
        fixed_gain: hold the gains at 1 (the release's ``norm_last_layer``; false for Swin, CvT and ViL).

    >>> prototypes = Prototypes(dim=4, num_prototypes=6)
    >>> prototypes().shape, prototypes().norm(dim=1).allclose(torch.ones(6))
    (torch.Size([6, 4]), True)
    """

    def __init__(self, dim: int = 256, num_prototypes: int = 65536, *, fixed_gain: bool = False) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(num_prototypes, dim))
        self.gain = nn.Parameter(torch.ones(num_prototypes, 1), requires_grad=not fixed_gain)
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)  # torch's default for a Linear, as released

    def forward(self) -> Tensor:
        """The prototypes W (k p); logits are ``z @ W.T``."""
        # The function behind torch's weight norm. With norms and quotients backward would take five times as long.
        return torch._weight_norm(self.direction, self.gain, 0)


class ProjectionHead(nn.Module):
    """MLP with GELU, then unit length: features (... d) -> projections z (... p). As in DINO
    (docs/recipes.md, "Heads").

    Args:
        in_dim: channels d of the features it reads.
        reads: which features: "pooled" (one row per view), "regions" (one per region), or the name of an earlier head.
        hidden_dim: width of the hidden layers.
        out_dim: width p of the projection.
        num_layers: Linear layers.
        batch_norm: batch norm after every hidden Linear (off as released).
        prototypes: the last layer, if the objective scores projections against prototypes.

    >>> head = ProjectionHead(8, hidden_dim=16, out_dim=4, prototypes=Prototypes(4, 6))
    >>> head(torch.zeros(2, 8)).shape, head.reads
    (torch.Size([2, 4]), 'pooled')
    """

    def __init__(
        self,
        in_dim: int,
        *,
        reads: str = "pooled",
        hidden_dim: int = 2048,
        out_dim: int = 256,
        num_layers: int = 3,
        batch_norm: bool = False,
        prototypes: Prototypes | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"ProjectionHead needs num_layers of 1 or more, got {num_layers}")
        self.reads = reads
        widths = [in_dim] + [hidden_dim] * (num_layers - 1)
        layers: list[nn.Module] = []
        for width, following in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width, following), *([nn.BatchNorm1d(following)] if batch_norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], out_dim))
        self.prototypes = prototypes
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.mlp(x), dim=-1)
