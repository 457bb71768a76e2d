"""Numbers of a device that the host reads later, without a wait in any step.

Reading a number on the host waits until the device has done all that it was asked for, and then the device waits for
the host. So a copy is read one step later, when it has long arrived.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LateValue:
    """The host's copy of a number that is computed on a device; starting the copy waits for nothing.

    Args:
        value: 0-d.

    >>> LateValue(torch.tensor(True)).read()
    True
    """

    def __init__(self, value: Tensor) -> None:
        on_gpu = value.device.type == "cuda"
        # Pinned memory: into other memory CUDA copies piece by piece, and the host would wait.
        copy = torch.empty((), dtype=value.dtype, device="cpu", pin_memory=on_gpu).copy_(value, non_blocking=on_gpu)
        self._copy = copy.numpy()  # the same memory; reading it is no operation of torch's
        self._arrived = torch.cuda.current_stream(value.device).record_event() if on_gpu else None

    def read(self) -> Any:
        """The number; waits for what the device was asked for before it, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._copy.item()
