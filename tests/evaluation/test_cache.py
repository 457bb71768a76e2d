from __future__ import annotations

import numpy as np
import pytest
import torch
import toys

from esvit_pl.evaluation import EvaluationData, FeatureCache, Logistic

IMAGES, LABELS = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
ABOUT = {"bank": {"data": "photos", "images": 12}, "query": {"data": "others", "images": 12}}


def never():
    raise AssertionError("the images were read")


def test_another_evaluation_reads_no_image_and_answers_the_same(tmp_path):
    net = toys.backbone().eval()
    first = EvaluationData([(IMAGES, LABELS)], [(IMAGES, LABELS)], cache=FeatureCache(tmp_path, ABOUT))
    found = Logistic(C=1.0).run(net, first)
    again = EvaluationData(never, never, cache=FeatureCache(tmp_path, ABOUT))
    assert Logistic(C=1.0).run(net, again) == found
    assert torch.equal(again.features(net, "bank").features, first.features(net, "bank").features)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("what", ["weights", "data", "kind", "architecture"])
def test_features_of_something_else_are_not_given(tmp_path, what):
    net = toys.backbone().eval()
    FeatureCache(tmp_path, ABOUT).put(net, "bank", "pooled", toys_features())
    about = ABOUT if what != "data" else {**ABOUT, "bank": {"data": "new photos", "images": 12}}
    if what == "weights":
        with torch.no_grad():
            next(net.parameters()).add_(1e-6)
    if what == "architecture":
        net.spec = {**net.spec, "window": 2}
    kind = 2 if what == "kind" else "pooled"
    assert FeatureCache(tmp_path, about).get(net, "bank", kind) is None


def toys_features():
    from esvit_pl.evaluation.features import Extracted

    return Extracted(torch.eye(12), None)


def test_features_without_labels(tmp_path):
    net = torch.nn.Identity()
    FeatureCache(tmp_path, ABOUT).put(net, "query", "pooled", toys_features())
    features, labels = FeatureCache(tmp_path, ABOUT).get(net, "query", "pooled")
    assert torch.equal(features, torch.eye(12))
    assert labels is None


def test_a_file_that_holds_something_else_is_refused_by_name(tmp_path):
    net, cache = torch.nn.Identity(), FeatureCache(tmp_path, ABOUT)
    cache.put(net, "bank", "pooled", toys_features())
    (path,) = tmp_path.iterdir()
    arrays = dict(np.load(path))
    arrays["about"] = np.array(str(arrays["about"]).replace("photos", "holidays"))
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match='holds features of data "holidays", and data "photos" was asked for'):
        cache.get(net, "bank", "pooled")
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read .*remove it, and its features"):
        cache.get(net, "bank", "pooled")


def test_features_of_a_pass_that_was_cut_short_are_not_kept(tmp_path):
    """A Trainer with limit_val_batches=1, say: they would be taken for those of all images."""
    net = toys.backbone().eval()
    cache = FeatureCache(tmp_path, ABOUT)
    EvaluationData([(IMAGES[:5], LABELS[:5])], cache=cache).features(net, "bank")
    assert cache.get(net, "bank", "pooled") is None
    assert list(tmp_path.iterdir()) == []
