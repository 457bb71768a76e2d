"""How a training stops when its loss is not finite, without a wait for the GPU in any step."""

from __future__ import annotations

from torch import Tensor

from esvit_pl.late import LateValue


class NonFiniteLoss(RuntimeError):
    """The loss was infinite or not a number. Nothing was saved from that step on; resume from the last checkpoint."""


class FiniteCheck:
    """Remembers whether the last optimizer step was finite, and raises when it is asked one step later.

    Once a step was not finite, every further question raises, so that nothing is saved after it.

    Args:
        remedy: how to go on from the last checkpoint, for the message.

    >>> import torch
    >>> check = FiniteCheck()
    >>> check.note(torch.tensor(True), step=7, epoch=0)
    >>> check.ask()
    """

    def __init__(
        self,
        remedy: str = "(ckpt_path=...) with a lower optimizer.lr or a smaller module.clip_grad, or with "
        "trainer.precision=32",
    ) -> None:
        self.remedy = remedy
        self._last: tuple[LateValue, int, int] | None = None

    def note(self, finite: Tensor, *, step: int, epoch: int) -> None:
        """Keep a step's flag, 0-d bool, equal on all ranks."""
        self._last = LateValue(finite), step, epoch

    def ask(self) -> None:
        """
        Raises:
            NonFiniteLoss: the step that was noted last was not finite.
        """
        if self._last is None or self._last[0].read():
            return
        _, step, epoch = self._last
        raise NonFiniteLoss(
            f"the loss is not finite at optimizer step {step} (epoch {epoch}). Nothing was saved from that step on: "
            f"resume from the last checkpoint {self.remedy}"
        )
