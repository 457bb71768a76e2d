from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import toys

from esvit_pl.backbones import build
from esvit_pl.checkpoints import onnx_graph

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "cvt" else [pytest.mark.slow]) for name in toys.FAMILIES]
)
def test_onnxruntime_computes_the_same_for_any_number_of_images(family, tmp_path):
    """Of 40 px, which is no multiple of the window, so that masks and padding are part of the graph."""
    torch.manual_seed(0)
    backbone = build(family, **toys.FAMILIES[family])
    path = tmp_path / "new" / "backbone.onnx"
    difference = onnx_graph.export(backbone, path, size=40, preparation={"center_crop": 40})
    assert 0 < difference < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["backbone.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["pooled", "regions"]
    assert session.get_modelmeta().custom_metadata_map["preparation"] == '{"center_crop": 40}'
    images = torch.randn(5, 3, 40, 40)
    pooled, regions = session.run(["pooled", "regions"], {"image": images.numpy()})
    with torch.no_grad():
        wanted = backbone(images)
    np.testing.assert_allclose(pooled, wanted.pooled.numpy(), atol=1e-5)
    np.testing.assert_allclose(regions, wanted.regions.numpy(), atol=1e-5)
    # Nothing that tracing has made stays in the masks that a backbone keeps: it can go on training.
    backbone.train()(images).pooled.sum().backward()
    assert any(parameter.grad is not None for parameter in backbone.parameters())


class Mean(torch.nn.Module):
    """A backbone that is quickly exported; with `fixed` it turns the number of images into a plain one."""

    spec = {"name": "mean"}

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x):
        pooled = x.mean((2, 3)) * self.weight.expand(len(x) if self.fixed else x.shape[0], -1)
        return pooled, pooled[:, None], (1, 1)


def test_a_graph_that_differs_is_refused_and_gone(tmp_path, monkeypatch):
    path = tmp_path / "backbone.onnx"
    monkeypatch.setattr(onnx_graph, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"differs from the backbone by .* more than -1: it is not written"):
        onnx_graph.export(Mean(fixed=False), path, size=16)
    assert not path.exists()


def test_a_graph_for_one_number_of_images_is_refused_and_gone(tmp_path):
    with pytest.raises(ValueError, match="takes 2 images at a time and no other number"):
        onnx_graph.export(Mean(fixed=True), tmp_path / "backbone.onnx", size=16)
    assert not (tmp_path / "backbone.onnx").exists()


def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"onnx is not installed.*pip install 'esvit_pl\[onnx\]'"):
        onnx_graph.export(build("cvt", **toys.FAMILIES["cvt"]), tmp_path / "backbone.onnx")
