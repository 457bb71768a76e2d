"""Tables that depend on sizes alone: computed once, and constants of compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def cached_constant(function: Function) -> Function:
    """A cache for a function of sizes, a device and a dtype, with ``cache_clear`` and ``cache_info`` of ``lru_cache``.

    ``lru_cache`` alone is not enough: torch.compile looks through it, and would compute the tables again in every step.
    """
    cached = lru_cache(maxsize=256)(function)

    def in_a_tuple(*sizes: Any) -> tuple[Any]:  # torch.compile would take two tensors from one function for the same
        return (cached(*sizes),)

    constant: Callable[..., tuple[Any]] = cast(Any, torch.compiler.assume_constant_result)(in_a_tuple)

    @wraps(function)
    def look_up(*sizes: Any) -> Any:
        return constant(*sizes)[0]

    cast(Any, look_up).cache_clear, cast(Any, look_up).cache_info = cached.cache_clear, cached.cache_info
    return cast(Function, look_up)
