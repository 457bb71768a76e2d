"""Kernels by kind, worked by hand."""

from __future__ import annotations

import pytest

from benchmarks.kernels import Kernel, kind_of, kinds, longest

SEEN = [
    Kernel("nvjet_sm90_tst_192x192", 0.0, 0.2),
    Kernel("nvjet_sm90_tst_192x192", 0.3, 0.4),
    Kernel("_attend", 0.35, 0.5),
]


def test_kernels_of_a_kind_are_added_up_and_what_is_left_is_waited():
    """Two steps of half a second; two kernels overlap for 0.05 s."""
    rows = {row.kernels: row for row in kinds(SEEN, steps=2, step_seconds=0.5)}
    assert rows["matrix products"].launches == 1
    assert rows["matrix products"].step_seconds == pytest.approx(0.15)
    assert rows["losses' kernels"].time_share == pytest.approx(0.15)
    assert rows["all kernels"].step_seconds == pytest.approx(0.2)
    assert rows["the GPU waits"].step_seconds == pytest.approx(0.3)
    assert [row.kernels for row in longest(SEEN, steps=2, step_seconds=0.5, count=1)] == ["nvjet_sm90_tst_192x192"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fmha_cutlassB_bf16_aligned_64x64_k32_sm80(x)", "attention"),
        ("triton_poi_fused_gelu_gelu_backward_view_236", "compiled"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer and average"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("something new", "others"),
    ],
)
def test_kinds_are_known_by_names(name, kind):
    assert kind_of(name) == kind
