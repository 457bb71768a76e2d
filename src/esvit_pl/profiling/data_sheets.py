"""What makers say that their GPUs can do."""

from __future__ import annotations

from typing import NamedTuple


class DataSheet(NamedTuple):
    """A GPU at its best."""

    tflops: float
    """Dense bfloat16 operations a second, in 10^12."""
    gbytes: float
    """Bytes a second from and to its memory, in 10^9."""


DATA_SHEETS = {
    "B200": DataSheet(2250, 8000),
    "H200": DataSheet(989, 4800),
    "H100 PCIe": DataSheet(756, 2000),
    "H100": DataSheet(989, 3350),
    "A100 80GB PCIe": DataSheet(312, 1935),
    "A100-SXM4-80GB": DataSheet(312, 2039),
    "A100": DataSheet(312, 1555),
    "L40S": DataSheet(362, 864),
    "L40": DataSheet(181, 864),
    "L4": DataSheet(121, 300),
    "A10G": DataSheet(70, 600),
    "A10": DataSheet(125, 600),
    "RTX 4090": DataSheet(165, 1008),
    "RTX 3090": DataSheet(71, 936),
}
"""Part of a GPU's name -> without sparsity. The first that fits counts."""


def data_sheet(name: str) -> DataSheet | None:
    """The data sheet of a GPU, by its name in torch; None if `DATA_SHEETS` does not hold it."""
    return next((sheet for part, sheet in DATA_SHEETS.items() if part.lower() in name.lower()), None)
