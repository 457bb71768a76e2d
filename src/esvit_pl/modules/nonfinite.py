"""How a training stops when its loss is not finite, without a wait for the GPU in any step.

Reading a flag on the host waits until the device has done all that it was asked for, and then the device waits for the
host. So the flag's copy is read one step later, when it has long arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteLoss(RuntimeError):
    """The loss was infinite or not a number. Nothing was saved from that step on; resume from the last checkpoint."""


class LateFlag:
    """The host's copy of a flag that is computed on a device; starting the copy waits for nothing.

    Args:
        flag: 0-d bool.

    >>> LateFlag(torch.tensor(True)).read()
    True
    """

    def __init__(self, flag: Tensor) -> None:
        on_gpu = flag.device.type == "cuda"
        # Pinned memory: into other memory CUDA copies piece by piece, and the host would wait.
        copy = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=on_gpu).copy_(flag, non_blocking=on_gpu)
        self._copy = copy.numpy()  # the same memory; reading it is no operation of torch's
        self._arrived = torch.cuda.current_stream(flag.device).record_event() if on_gpu else None

    def read(self) -> bool:
        """The flag; waits for what the device was asked for before the flag, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return bool(self._copy)


class FiniteCheck:
    """Remembers whether the last optimizer step was finite, and raises when it is asked one step later.

    Once a step was not finite, every further question raises, so that nothing is saved after it.

    >>> check = FiniteCheck()
    >>> check.note(torch.tensor(True), step=7, epoch=0)
    >>> check.ask()
    """

    def __init__(self) -> None:
        self._last: tuple[LateFlag, int, int] | None = None

    def note(self, finite: Tensor, *, step: int, epoch: int) -> None:
        """Keep a step's flag, 0-d bool, equal on all ranks."""
        self._last = LateFlag(finite), step, epoch

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
            "resume from the last checkpoint (ckpt_path=...) with a lower optimizer.lr or a smaller module.clip_grad, "
            "or with trainer.precision=32"
        )
