from __future__ import annotations

import golden_files
import pytest
import torch
import torch.nn.functional as F

from esvit_pl.metrics import knn, knn_accuracy, knn_correct, knn_predict, nearest


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("knn"), ids=lambda path: path.stem)
@pytest.mark.parametrize("chunk", [None, 7], ids=["at_once", "chunked"])
def test_golden_accuracies(path, chunk) -> None:
    golden = golden_files.read(path)
    wanted = {int(k): pair for k, pair in golden.settings["top1_top5"].items()}
    tensors = golden.tensors
    got = knn_accuracy(
        tensors["train_features"],
        tensors["train_labels"],
        tensors["test_features"],
        tensors["test_labels"],
        k=list(wanted),
        temperature=golden.settings["temperature"],
        num_classes=golden.settings["num_classes"],
        chunk=chunk,
    )
    assert {k: [100 * value for value in pair] for k, pair in got.items()} == {
        k: pytest.approx(pair, rel=0, abs=1e-9) for k, pair in wanted.items()
    }


def test_two_far_neighbours_lose_to_a_near_one_only_while_the_temperature_is_low() -> None:
    # Cosines to the query: 1 for class 1, 0.6 twice for class 0; 2 exp(-0.4 / t) > 1 above t = 0.4 / ln 2 = 0.577.
    bank, labels = torch.tensor([[5.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([1, 0, 0])
    query = torch.tensor([[2.0, 0.0]])
    assert knn_predict(bank, labels, query, k=3, temperature=0.57)[0, 0] == 1
    assert knn_predict(bank, labels, query, k=3, temperature=0.58)[0, 0] == 0
    assert knn_predict(bank, labels, query, k=1, temperature=100)[0, 0] == 1


def test_a_tiny_temperature_does_not_overflow() -> None:
    bank = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert knn_predict(bank, torch.tensor([2, 0, 0]), torch.tensor([[1.0, 0.0]]), k=3, temperature=1e-4)[0, 0] == 2


def test_with_three_classes_every_answer_is_among_the_first_five() -> None:
    features = torch.randn(12, 4)
    labels = torch.arange(12) % 3
    accuracy = knn_accuracy(features[:6], labels[:6], features[6:], labels[6:], k=3)[3]
    assert accuracy.top5 == 1.0
    assert accuracy.top1 < 1.0


def test_a_class_without_a_vote_is_not_among_the_first_five() -> None:
    bank, labels = torch.eye(6), torch.arange(6)  # each neighbour votes for a class of its own
    query = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])  # neighbours in the order of their numbers
    for truth, right in {0: {1: 1, 2: 1, 5: 1, 6: 1}, 1: {1: 0, 2: 1, 5: 1, 6: 1}, 5: {1: 0, 2: 0, 5: 0, 6: 0}}.items():
        found = knn_accuracy(bank, labels, query, torch.tensor([truth]), k=[1, 2, 5, 6])
        assert {k: accuracy.top5 for k, accuracy in found.items()} == right


def test_each_k_of_several_is_what_it_is_alone() -> None:
    bank, labels = torch.randn(50, 8), torch.randint(0, 9, (50,))
    query, truth = torch.randn(40, 8), torch.randint(0, 9, (40,))
    together = knn_accuracy(bank, labels, query, truth, k=[1, 5, 50])
    assert list(together) == [1, 5, 50]
    assert len(set(together.values())) == 3
    assert together == {k: knn_accuracy(bank, labels, query, truth, k=k)[k] for k in together}


def test_a_query_class_that_the_bank_lacks_is_wrong_and_no_error() -> None:
    right = knn_correct(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 7]), k=[1])
    assert right.tolist() == [[1.0, 1.0]]


def test_is_computed_in_float32_under_autocast() -> None:
    # bfloat16 cannot tell these two neighbours apart.
    bank = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0300], [1.0, 0.0299]]), dim=1)
    query = torch.tensor([[1.0, 0.0]])
    with torch.autocast("cpu", torch.bfloat16):
        ranked = knn_predict(bank, torch.tensor([0, 1]), query, k=1)
    assert ranked[0, 0] == 1


def test_the_nearest_are_those_of_all_cosines_and_of_equal_ones_the_first(monkeypatch) -> None:
    draw = torch.Generator().manual_seed(0)
    bank, query = torch.randn(300, 6, generator=draw), torch.randn(50, 6, generator=draw)
    bank[120:220:5] = 4 * bank[:20]  # equally near, further back
    exact = F.cosine_similarity(query[:, None].double(), bank.double(), dim=2).float()
    cosines, places = exact.sort(dim=1, descending=True, stable=True)
    for at_once, chunk in ((2**15, None), (64, 7), (1, 50)):
        monkeypatch.setattr(knn, "BANK_AT_ONCE", at_once)
        found = nearest(bank, query, 40, chunk=chunk)
        torch.testing.assert_close(found[0], cosines[:, :40])
        assert torch.equal(found[1], places[:, :40])
        in_pieces = nearest([bank[:7], bank[7:200], bank[200:]], query, 40, chunk=chunk)
        assert all(torch.equal(one, other) for one, other in zip(found, in_pieces, strict=True))


def test_where_all_images_are_equal_the_first_are_the_nearest() -> None:
    assert nearest(torch.ones(500, 3), torch.ones(4, 3), 3)[1].tolist() == [[0, 1, 2]] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_bank_in_half_precision_is_asked_in_float32(dtype) -> None:
    bank, query = F.normalize(torch.randn(200, 16), dim=1).to(dtype), torch.randn(30, 16)
    half, whole = nearest(bank, query, 5), nearest(bank.float(), query, 5)
    assert half[0].dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(half, whole, strict=True))


def test_bad_input() -> None:
    bank, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"k=6 neighbours, and the bank holds 5 images; choose k from 1 to 5"):
        knn_accuracy(bank, labels, bank, labels, k=6)
    with pytest.raises(ValueError, match="k of 1 or more, got k=0"):
        knn_accuracy(bank, labels, bank, labels, k=0)
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        knn_predict(bank, labels, bank, k=1, temperature=0)
    with pytest.raises(ValueError, match="one query image or more"):
        knn_accuracy(bank, labels, bank[:0], labels[:0], k=1)
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 2\)"):
        knn_predict(bank, labels, bank[:, :2], k=1)
    with pytest.raises(ValueError, match=r"bank_labels must be \(5,\), one for each feature, got \(4,\)"):
        knn_predict(bank, labels[:4], bank, k=1)
    with pytest.raises(ValueError, match="bank_labels must be classes from 0 on, got -1"):
        knn_predict(bank, labels - 1, bank, k=1)
    with pytest.raises(ValueError, match="num_classes=2 is too small for label 2"):
        knn_predict(bank, labels, bank, k=1, num_classes=2)
    with pytest.raises(ValueError, match=r"k=6 neighbours, and the bank holds 5 images"):
        nearest([bank[:2], bank[2:]], bank, k=6)
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 2\)"):
        nearest(bank, bank[:, :2], k=1)
