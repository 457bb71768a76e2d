"""Heads: what turns features into projections, and projections into distributions."""

# b rows | d channels | p projection width | k prototypes

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.distributed import num_ranks, sum_with_gradient
from esvit_pl.precision import wide


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


class Reused(nn.Module):
    """A head that is fed something else, too: its weights are those of `head`.

    >>> head = ProjectionHead(8, hidden_dim=16, out_dim=4)
    >>> again = Reused(head, reads="regions")
    >>> again(torch.zeros(2, 8)).shape, again.reads, again.head is head
    (torch.Size([2, 4]), 'regions', True)
    """

    def __init__(self, head: nn.Module, *, reads: str) -> None:
        super().__init__()
        self.head, self.reads = head, reads

    @property
    def prototypes(self) -> nn.Module | None:
        return getattr(self.head, "prototypes", None)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows (b d) of all ranks, which have equally many; with one rank, plain batch norm.

    torch's own SyncBatchNorm runs on GPUs only.

    >>> SyncedBatchNorm(2)(torch.tensor([[0.0, 1.0], [2.0, 5.0]])).round(decimals=2)
    tensor([[-1., -1.],
            [ 1.,  1.]], grad_fn=<RoundBackward1>)
    """

    def forward(self, x: Tensor) -> Tensor:
        if num_ranks() == 1 or not self.training:
            return super().forward(x)
        count, rows = len(x) * num_ranks(), wide(x)
        mean = sum_with_gradient(rows.sum(0)) / count
        variance = sum_with_gradient((rows - mean).square().sum(0)) / count
        self._follow(mean.detach(), variance.detach() * (count / (count - 1)))
        out = (rows - mean) * (variance + self.eps).rsqrt()
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


class MLPHead(nn.Module):
    """Linear layers with ReLU between them: rows (b d) -> (b p). Projectors and predictors of the contrastive methods.

    Args:
        widths: d, the hidden widths, p.
        reads: what it is fed: "pooled", "regions", or the name of an earlier head.
        bias: of the Linear layers before the last.
        last_bias: of the last Linear layer.
        batch_norm: after every Linear layer but the last.
        last_norm: batch norm at the end: "plain" has neither scale nor shift, "scaled" has a scale alone.
        unit: divide the result by its length.
        prototypes: what the objective scores projections against, if it does.

    >>> predictor = MLPHead([256, 4096, 256], reads="projection", bias=False, last_bias=False, last_norm="plain")
    >>> [type(layer).__name__ for layer in predictor.mlp]
    ['Linear', 'SyncedBatchNorm', 'ReLU', 'Linear', 'SyncedBatchNorm']
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        reads: str = "pooled",
        bias: bool = True,
        last_bias: bool = True,
        batch_norm: bool = True,
        last_norm: Literal["plain", "scaled"] | None = None,
        unit: bool = False,
        prototypes: nn.Module | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in zip(widths[:-2], widths[1:-1], strict=True):
            norm = [SyncedBatchNorm(following)] if batch_norm else []
            layers += [nn.Linear(width, following, bias=bias), *norm, nn.ReLU()]
        layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
        if last_norm is not None:
            layers.append(SyncedBatchNorm(widths[-1], affine=last_norm == "scaled"))
        if last_norm == "scaled":
            layers[-1].bias.requires_grad_(False)
        self.mlp = nn.Sequential(*layers)
        self.reads, self.unit, self.prototypes = reads, unit, prototypes

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return F.normalize(out, dim=-1) if self.unit else out


class UnitPrototypes(nn.Module):
    """k directions of length 1 (SwAV): they are brought back to it in every forward, outside the graph.

    >>> UnitPrototypes(dim=4, num_prototypes=6)().norm(dim=1).allclose(torch.ones(6))
    True
    """

    def __init__(self, dim: int = 128, num_prototypes: int = 3000) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(num_prototypes, dim))
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)  # torch's default for a Linear, as released

    def forward(self) -> Tensor:
        """The prototypes (k p)."""
        with torch.no_grad():
            self.direction.copy_(F.normalize(self.direction, dim=1))
        return self.direction
