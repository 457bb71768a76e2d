"""A step that leaves no trace: tensors move only where a flag on their device lets them; the host hears of it later.

Reading a flag on the host waits until the device has done all that it was asked for, and then the device waits for the
host. So the flag stays where it was computed, and its copy is read when it has long arrived.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def move_(tensors: Iterable[Tensor], moved: Iterable[Tensor], when: Tensor) -> None:
    """tensor <- moved, in place, where `when` is True; else each stays what it is, to the last bit.

    Args:
        tensors: in any shapes.
        moved: one of the same shape and type for each; may be nan where `when` is False.
        when: 0-d bool on the same device.
    """
    for tensor, new in zip(tensors, moved, strict=True):
        torch.where(when, new, tensor, out=tensor)  # a choice, no product: 0 * nan is nan, and -0 + 0 is 0


class LateFlag:
    """The host's copy of a flag that is computed on a device; starting it waits for nothing.

    Args:
        flag: 0-d bool.
    """

    def __init__(self, flag: Tensor) -> None:
        on_gpu = flag.device.type == "cuda"
        # Pinned: into other memory CUDA copies step by step, and the host would wait.
        copy = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=on_gpu).copy_(flag, non_blocking=on_gpu)
        self._copy = copy.numpy()  # the same memory; reading it is no operation of torch's
        self._arrived = torch.cuda.current_stream(flag.device).record_event() if on_gpu else None

    def read(self) -> bool:
        """The flag; waits for what the device was asked for before the flag, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return bool(self._copy)
