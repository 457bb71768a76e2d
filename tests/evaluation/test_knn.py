"""k-NN as an evaluator: the accuracies of the pure function."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from esvit_pl.evaluation import KNN, EvaluationData, Extracted, knn, knn_accuracy_over_ranks
from esvit_pl.metrics import knn_accuracy
from esvit_pl.printing import say_once
from esvit_pl.profiling.measure import peak_bytes

DRAW = torch.Generator().manual_seed(0)
BANK, QUERY = ((torch.randn(n, 4, generator=DRAW), torch.randint(0, 3, (n,), generator=DRAW)) for n in (30, 21))


def test_says_what_the_pure_function_says_of_the_encoders_features():
    data = EvaluationData(bank=[BANK], query=[(QUERY[0][:9], QUERY[1][:9]), (QUERY[0][9:], QUERY[1][9:])])
    expected = knn_accuracy(-BANK[0], BANK[1], -QUERY[0], QUERY[1], k=[2, 9])
    assert KNN(k=[2, 9], prefix="mine", feature="raw").run(lambda x: -x, data) == {
        "mine/top1": expected[2].top1,
        "mine/top5": expected[2].top5,
        "mine/raw/k9/top1": expected[9].top1,
        "mine/raw/k9/top5": 1.0,
    }
    assert 0 < expected[2].top1 < 1


@pytest.mark.parametrize("bank_dtype", ["float16", "bfloat16"])
def test_a_bank_in_half_precision_is_that_of_the_rounded_features(bank_dtype):
    rounded = F.normalize(1e6 * BANK[0], dim=1).to(getattr(torch, bank_dtype)).float()
    expected = knn_accuracy(rounded, BANK[1], *QUERY, k=3)[3]
    data = EvaluationData([BANK], [QUERY])

    def encoder(images):
        return 1e6 * images  # more than float16 can hold

    assert KNN(k=3, bank_dtype=bank_dtype).run(encoder, data)["knn/top1"] == expected.top1
    (kept,) = data.batches(encoder, "bank", bank_dtype)
    assert torch.equal(kept.features.float(), rounded)
    assert torch.equal(data.features(encoder, "bank").features, encoder(BANK[0]))  # for whom asks as they are


def test_several_k_in_one_pass():
    data = EvaluationData([BANK], [QUERY])
    found = KNN(k=[20, 10, 5, 1]).run(torch.neg, data)
    for k in (10, 5, 1):
        alone = KNN(k=k).run(torch.neg, data)
        assert (found[f"knn/k{k}/top1"], found[f"knn/k{k}/top5"]) == (alone["knn/top1"], alone["knn/top5"])


class Wide(torch.nn.Module):
    """Knows the width of what it gives."""

    width = 512

    def forward(self, images):
        return images.repeat(1, 128)


def test_the_memory_of_a_large_bank_is_told_before_its_images_are_read(capsys, monkeypatch):
    monkeypatch.setattr(knn, "WORTH_A_LINE", 61_440)
    say_once.cache_clear()

    class Watched(TensorDataset):
        def __getitem__(self, index):
            assert "takes" in capsys.readouterr().out or self.seen
            self.seen = True
            return super().__getitem__(index)

    bank = Watched(*BANK)
    bank.seen = False
    KNN(k=1).run(Wide(), EvaluationData(DataLoader(bank, 10), [QUERY]))
    assert bank.seen
    assert capsys.readouterr().out == ""  # told once
    KNN(k=1).run(lambda x: x.repeat(1, 128), EvaluationData([BANK], [QUERY]))  # whose width nobody knows before
    assert capsys.readouterr().out == ""
    KNN(k=1).run(lambda x: x.repeat(1, 256), EvaluationData([BANK], [QUERY]))
    assert capsys.readouterr().out == "k-NN: a bank of 30 images x 1024 channels in float32 takes 0.00 GB\n"
    KNN(k=1, bank_dtype="float16").run(Wide(), EvaluationData(DataLoader(bank, 10), [QUERY]))
    assert capsys.readouterr().out == ""  # half of it is not worth a line


@pytest.mark.parametrize(("bank_dtype", "bytes_each"), [("float32", 4), ("float16", 2)])
def test_the_bank_is_held_once(bank_dtype, bytes_each):
    images = 30_000

    def batches():
        for number in range(0, images, 500):
            yield torch.randn(500, 64), torch.arange(number, number + 500) % 10

    data = EvaluationData(batches(), [(torch.randn(20, 64), torch.arange(20) % 10)])
    data.pieces(torch.neg, "query")
    held = peak_bytes(lambda: data.pieces(torch.neg, "bank", "pooled" if bank_dtype == "float32" else bank_dtype, 5000))
    bank = images * 64 * bytes_each
    assert held < 1.4 * bank + images * 8  # and a piece, and the labels
    searching = peak_bytes(lambda: KNN(k=20, bank_dtype=bank_dtype).run(torch.neg, data))
    assert searching < 2**24 + bank / 4


def dealt(images, labels, batch_size):
    return DataLoader(TensorDataset(images, labels), batch_size, sampler=DistributedSampler(images, shuffle=False))


def two_ranks(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    draw = torch.Generator().manual_seed(1)
    images, labels = torch.randn(400, 4, generator=draw), torch.randint(0, 9, (400,), generator=draw)
    bank, query = (images[:300].round(), labels[:300]), (images[300:].round(), labels[300:])  # many are equally near
    ks = [20, 3, 200]
    expected = knn_accuracy(*bank, *query, k=ks)
    mine = [Extracted(each[0][rank::2], each[1][rank::2]) for each in (bank, query)]
    pieces = [Extracted(mine[0].features[:1], mine[0].labels[:1]), Extracted(mine[0].features[1:], mine[0].labels[1:])]
    for chunk in (None, 1, 7, 100):
        assert knn_accuracy_over_ranks(pieces, mine[1], k=ks, chunk=chunk) == expected
    for bank_dtype in ("float32", "float16"):
        data = EvaluationData(dealt(*bank, 16), dealt(*query, 30))
        found = KNN(k=ks, bank_dtype=bank_dtype).run(torch.clone, data)
        rounded = bank[0] if bank_dtype == "float32" else F.normalize(bank[0], dim=1).half().float()
        wanted = knn_accuracy(rounded, bank[1], *query, k=ks)
        assert [found["knn/top1"], found["knn/k3/top1"], found["knn/k200/top5"]] == [
            wanted[20].top1,
            wanted[3].top1,
            wanted[200].top5,
        ]
    # A rank without a bank, and one without a query.
    nothing = Extracted(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long))
    alone = (Extracted(*bank), nothing) if rank == 0 else (nothing, Extracted(*query))
    assert knn_accuracy_over_ranks(*alone, k=ks, chunk=30) == expected
    few = Extracted(bank[0][:3][rank::2], bank[1][:3][rank::2])  # fewer than k on a rank, and on both
    assert knn_accuracy_over_ranks(few, mine[1], k=[2, 20]) == {
        2: knn_accuracy(bank[0][:3], bank[1][:3], *query, k=2)[2],
        20: knn_accuracy(bank[0][:3], bank[1][:3], *query, k=3)[3],
    }
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_two_ranks_answer_as_one_to_the_last_tie(tmp_path):
    mp.spawn(two_ranks, args=(str(tmp_path / "store"),), nprocs=2)


def test_bad_input():
    with pytest.raises(ValueError, match="needs bank_dtype float32, float16 or bfloat16, got float8"):
        KNN(bank_dtype="float8")
    with pytest.raises(ValueError, match="k-NN needs one image of the bank or more, got none"):
        KNN(k=1).run(torch.neg, EvaluationData(bank=[], query=[QUERY]))
    with pytest.raises(ValueError, match="batches of the query have none; give unpack="):
        KNN(k=1).run(lambda x: x, EvaluationData(bank=[BANK], query=[QUERY[0]]))
    with pytest.raises(ValueError, match="this evaluator needs bank images; give EvaluationData bank="):
        KNN(k=1).run(lambda x: x, EvaluationData(query=[QUERY]))
    with pytest.raises(ValueError, match="an accuracy needs one query image or more, got none"):
        KNN(k=1).run(lambda x: x, EvaluationData(bank=[BANK], query=[]))
