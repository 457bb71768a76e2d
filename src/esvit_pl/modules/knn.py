"""k-NN evaluation of a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from esvit_pl.evaluation.features import Unpack, unpack_batch
from esvit_pl.evaluation.knn import KNN, BankDtype
from esvit_pl.modules.evaluation import Evaluation


class KNNEvaluator(Evaluation):
    """Weighted k-NN accuracy of a frozen backbone (`evaluation.KNN`; docs/recipes.md, "Evaluation").

    ``trainer.validate(KNNEvaluator(backbone), datamodule)``: the images of ``datamodule.bank_dataloader()`` vote on
    those of the validation loader (`trainer.test`: of the test loader). Logs ``knn/top1`` and ``knn/top5`` as
    fractions, for the first k; further k as ``knn/k<k>/top1``.

    >>> import esvit_pl
    >>> module = KNNEvaluator(esvit_pl.build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], img_size=32), k=5)

    Args:
        backbone: images (b c h w) -> (b d) or ``Features``, whose pooled feature counts. Nothing in it changes but its
            mode, which is eval.
        k: voting neighbours, or several numbers of them.
        temperature: of the votes.
        bank_dtype: in which the bank is kept: float32, float16 or bfloat16.
        unpack: batch -> (images, labels).
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        bank_dtype: BankDtype = "float32",
        unpack: Unpack = unpack_batch,
    ) -> None:
        super().__init__(backbone, KNN(k=k, temperature=temperature, bank_dtype=bank_dtype), unpack=unpack)
