"""How long a step must take at least on a GPU, by its data sheet; nothing is computed.

After the roofline model (Williams et al., doi:10.1145/1498765.1498785): a product takes as long as its operations at
the GPU's best, or as long as its matrices' way from and to memory, whichever is longer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from esvit_pl.backbones import Backbone
from esvit_pl.objectives import EsViTObjective
from esvit_pl.profiling.data_sheets import DataSheet
from esvit_pl.profiling.recipe import forward_passes

BFLOAT16_BYTES = 2
BATCHED = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""Products that only attentions have."""


class Bound(NamedTuple):
    """Some products of a step."""

    part: str
    operations: int
    """Two for a multiply-add."""
    moved_bytes: int
    at_least_seconds: float
    memory_bound_share: float
    """Of that time: products that wait for memory."""
    utilization_share: float
    """Of the GPU's operations in that time; the step's, which does more than products, is below it."""
    images_per_second: float | None = None
    """At most."""


def bounds(
    backbone: Backbone,
    objective: EsViTObjective,
    sides: Sequence[int],
    num_global: int = 2,
    *,
    batch_size: int,
    sheet: DataSheet,
) -> Iterator[Bound]:
    """Lower bounds of a step's time: its products in bfloat16, part by part and all together.

    All else is taken to cost nothing: norms, activations, sums, copies, the optimizer. A product reads its factors and
    writes its result once; of products inside an attention or a loss the largest of the three matrices never leaves the
    chip, as in FlashAttention and `losses.kernels`. Backward has two products for each of forward, as large.

    Args:
        backbone, objective, sides, num_global: as in `profiling.recipe.model_flops`.
        batch_size: images of a step.
        sheet: of the GPU.
    """
    products: dict[str, list[Product]] = defaultdict(list)
    for forward in forward_passes(backbone, objective, sides, num_global, batch_size):
        with Products(logits=forward.logits) as seen:
            forward.run()
        for product in seen.found:
            products[product.part] += [product] * forward.times
    for part, some in products.items():
        yield _bound(part, some, sheet)
    together = _bound("all products", [product for some in products.values() for product in some], sheet)
    yield together._replace(images_per_second=batch_size / together.at_least_seconds)


class Product(NamedTuple):
    """Of two matrices, or many such products in one call."""

    part: str
    operations: int
    moved_bytes: int

    def seconds(self, sheet: DataSheet) -> tuple[float, float]:
        """For operations, and for memory."""
        return self.operations / (1e12 * sheet.tflops), self.moved_bytes / (1e9 * sheet.gbytes)


class Products(TorchDispatchMode):
    """Finds the products among what torch calls while it is entered.

    Args:
        logits: they are those of projections with prototypes.
    """

    def __init__(self, *, logits: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.logits = logits
        self.found: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            sizes = [x.numel() for x in tree_leaves((args, out)) if isinstance(x, Tensor) and x.ndim > 1]  # no biases
            part = "losses" if self.logits else "attention" if func.overloadpacket in BATCHED else "layers"
            stays = 0 if part == "layers" else max(sizes)
            operations = count(*args, **(kwargs or {}), out_val=out)
            self.found.append(Product(part, operations, BFLOAT16_BYTES * (sum(sizes) - stays)))
        return out


def _bound(part: str, products: Sequence[Product], sheet: DataSheet) -> Bound:
    seconds = [product.seconds(sheet) for product in products]
    at_least = sum(map(max, seconds))
    waiting = sum(moving for computing, moving in seconds if moving > computing)
    return Bound(
        part,
        operations=sum(product.operations for product in products),
        moved_bytes=sum(product.moved_bytes for product in products),
        at_least_seconds=at_least,
        memory_bound_share=waiting / at_least,
        utilization_share=sum(computing for computing, _ in seconds) / at_least,
    )
