"""Tables that follow from sizes alone: made once, and constants of compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def made_once(function: Function) -> Function:
    """Keep what a function of sizes, a device and a dtype gave (``cache_clear``, ``cache_info`` as in ``lru_cache``).

    torch.compile looks through ``lru_cache``, and would make the tables anew in every step.
    """
    kept = lru_cache(maxsize=256)(function)

    @torch.compiler.assume_constant_result
    def boxed(*sizes: Any) -> tuple[Any]:  # bare tensors that come from one function are one to torch.compile
        return (kept(*sizes),)

    @wraps(function)
    def look_up(*sizes: Any) -> Any:
        return boxed(*sizes)[0]

    cast(Any, look_up).cache_clear, cast(Any, look_up).cache_info = kept.cache_clear, kept.cache_info
    return cast(Function, look_up)
