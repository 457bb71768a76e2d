"""Which parameter is which in an optimizer's state that numbers parameters and does not name them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_BUFFERS = ("relative_position_index", "attn_mask", "running_mean", "running_var", "num_batches_tracked")
_GAINS = ("weight_g", "weight.original0", "prototypes.gain")  # may be held at 1, and are no parameters then


def optimizer_order(student: Mapping[str, Tensor], count: int | None = None) -> list[str]:
    """Names of a student's parameters in the order of its optimizer: those that decay, then biases and 1-d ones.

    Args:
        student: its ``state_dict()``; tensors that share memory are one parameter.
        count: parameters that the optimizer has; None for all.

    Raises:
        ValueError: the student has another number of parameters.
    """
    names, seen = [], set()
    for name, value in student.items():
        place = (value.data_ptr(), value.shape) if value.numel() else name
        if not name.endswith(_BUFFERS) and place not in seen:
            seen.add(place)
            names.append(name)
    found = len(names)
    if count is not None and found != count:
        names = [name for name in names if not name.endswith(_GAINS)]
        if len(names) != count:
            raise ValueError(f"its optimizer has {count} parameters, and its student {found}")
    return [*filter(lambda name: _decays(student, name), names), *(n for n in names if not _decays(student, n))]


def _decays(student: Mapping[str, Tensor], name: str) -> bool:
    return student[name].ndim > 1 and not name.endswith(".bias")
