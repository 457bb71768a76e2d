"""Losses and measures are computed in float32 at least, whatever precision the networks run in."""

from __future__ import annotations

import torch
from torch import Tensor


def factors(device_type: str) -> torch.dtype:
    """The type in which autocast lets matrices be multiplied here; float32 where there is no autocast."""
    return torch.get_autocast_dtype(device_type) if _autocasts(device_type) else torch.float32


def narrow(x: Tensor) -> Tensor:
    """What autocast makes of a factor of a product of matrices; done before it is moved about, half the bytes move."""
    return x.to(factors(x.device.type)) if _autocasts(x.device.type) and x.dtype is not torch.float64 else x


def wide(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _autocasts(device_type: str) -> bool:
    # Asked about "meta", torch fails.
    return device_type != "meta" and torch.is_autocast_enabled(device_type)
