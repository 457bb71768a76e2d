from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from esvit_pl.backbones import Features
from esvit_pl.distributed import gather_uneven
from esvit_pl.evaluation import Extracted, extract_features, knn_accuracy_over_ranks, unpack_batch, unpack_first_view
from esvit_pl.metrics import knn_accuracy

IMAGES, LABELS = torch.arange(24.0).reshape(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 2, 2])


def batches(form) -> list:
    return [form(image, label) for image, label in zip(IMAGES.split(4), LABELS.split(4), strict=True)]


@pytest.mark.parametrize(
    "form",
    [lambda x, y: (x, y), lambda x, y: [x, y, "more"], lambda x, y: {"image": x, "label": y, "index": 0}],
    ids=["tuple", "list", "dict"],
)
def test_features_and_labels_of_common_batches(form) -> None:
    features, labels = extract_features(lambda x: x.flatten(1), batches(form))
    assert torch.equal(features, IMAGES.flatten(1))
    assert torch.equal(labels, LABELS)


def test_takes_the_pooled_feature_and_leaves_no_graph_and_no_inference_tensor() -> None:
    linear = nn.Linear(4, 3)
    kept: list[Tensor] = []

    def network(x: Tensor) -> Features:
        kept.append(torch.ones(3))  # as a network that caches a mask
        y = linear(x.flatten(1))
        return Features(y, y[:, None], (1, 1))

    with torch.inference_mode():
        extracted = extract_features(network, batches(lambda x, y: (x, y)))
    assert extracted.features.shape == (6, 3)
    assert not extracted.features.requires_grad
    (linear(torch.ones(1, 4)) * kept[0]).sum().backward()  # fails with a tensor made in inference mode


def test_without_labels() -> None:
    assert extract_features(lambda x: x.flatten(1), [IMAGES]).labels is None


def test_no_batch_at_all() -> None:
    assert extract_features(lambda x: x.flatten(1), []).features.shape == (0, 0)


def test_unpack_first_view() -> None:
    first, second, label = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1, 2])
    assert unpack_first_view({"views": [first, second], "label": label}) == (first, label)
    assert unpack_first_view({"views": [first, second]}) == (first, None)
    assert unpack_first_view({"image": second, "label": label, "views": [first]}) == (second, label)
    assert unpack_first_view((second, label)) == (second, label)


def test_half_precision_becomes_float32_and_float64_stays() -> None:
    half = extract_features(lambda x: x.flatten(1).bfloat16(), [IMAGES])
    double = extract_features(lambda x: x.flatten(1).double(), [IMAGES])
    assert (half.features.dtype, double.features.dtype) == (torch.float32, torch.float64)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"got a dict with the keys x, y; give unpack="):
        unpack_batch({"x": 1, "y": 2})
    with pytest.raises(ValueError, match="got int; give unpack="):
        unpack_batch(3)
    with pytest.raises(ValueError, match=r"got a tensor of shape \(6, 1, 2, 2\)"):
        extract_features(lambda x: x, [IMAGES])
    with pytest.raises(ValueError, match="got str"):
        extract_features(lambda x: "x", [IMAGES])


def data(n: int, seed: int) -> Extracted:
    draw = torch.Generator().manual_seed(seed)
    return Extracted(torch.randn(n, 5, generator=draw), torch.randint(0, 4, (n,), generator=draw))


def two_ranks(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    bank, query = data(11, 0), data(7, 1)
    mine = slice(0, 8) if rank == 0 else slice(8, 11)
    part = Extracted(bank.features[mine], bank.labels[mine])
    assert torch.equal(gather_uneven(part.features), bank.features)
    assert torch.equal(gather_uneven(part.labels), bank.labels)
    asked = query if rank == 0 else Extracted(torch.zeros(0, 0), query.labels[:0])  # rank 1 has no query at all
    assert torch.equal(gather_uneven(asked.features), query.features)
    assert knn_accuracy_over_ranks(part, asked, k=3) == knn_accuracy(*bank, *query, k=3)
    dist.destroy_process_group()


def test_two_ranks_of_uneven_size_equal_one(tmp_path) -> None:
    mp.spawn(two_ranks, args=(str(tmp_path / "store"),), nprocs=2)
