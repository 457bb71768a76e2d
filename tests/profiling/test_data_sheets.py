from __future__ import annotations

import pytest

from esvit_pl.profiling.data_sheets import data_sheet


@pytest.mark.parametrize(
    ("name", "tflops", "gbytes"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 3350),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA L40S", 362, 864),
        ("NVIDIA L4", 121, 300),
        ("NVIDIA A10G", 70, 600),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("h100", 989, 3350),
    ],
)
def test_a_gpu_is_found_by_its_name(name, tflops, gbytes):
    assert data_sheet(name) == (tflops, gbytes)


@pytest.mark.parametrize("name", ["NVIDIA GeForce GTX 1080", ""])
def test_a_gpu_that_nobody_listed(name):
    assert data_sheet(name) is None
