"""Measures that need no labels: the pure functions of all images' features, and the nearest images."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys

from esvit_pl.evaluation import (
    EffectiveRank,
    EvaluationData,
    LiDAR,
    NearestImages,
    PerBlock,
    RankMe,
    RawPixels,
    RegionDiversity,
)
from esvit_pl.metrics import effective_rank, lidar, rankme, region_diversity

DRAW = torch.Generator().manual_seed(0)
BANK, QUERY = torch.randn(6, 3, 32, 32, generator=DRAW), torch.randn(3, 3, 32, 32, generator=DRAW)


def test_they_measure_the_images_of_bank_and_query_together():
    encoder = toys.backbone().eval()
    with torch.no_grad():
        features = encoder(torch.cat([BANK, QUERY]))
    images = EvaluationData(bank=[BANK[:4], BANK[4:]], query=[QUERY])
    assert EffectiveRank().run(encoder, images) == {
        "effective_rank": pytest.approx(float(effective_rank(features.pooled)), rel=1e-5)
    }
    assert RankMe().run(encoder, images) == {"rankme": pytest.approx(float(rankme(features.pooled)), rel=1e-5)}
    diversity = float(region_diversity(features.regions))
    assert RegionDiversity().run(encoder, images) == {"region_diversity": pytest.approx(diversity, rel=1e-5)}
    assert 0 < diversity < 1


def test_every_block_is_measured_in_one_pass():
    """A micro-Swin of 2 stages: the two blocks of the first have 8 channels, the one of the second has 16."""
    encoder, passes = toys.backbone(depths=[2, 1]).eval(), []
    encoder.patch_embed.register_forward_pre_hook(lambda *_: passes.append("a batch"))
    found = PerBlock(views=0).run(encoder, EvaluationData(bank=[BANK[:2], BANK[2:]], query=[QUERY]))
    assert len(passes) == 3
    with torch.no_grad():
        blocks = encoder.last_blocks(torch.cat([BANK, QUERY]), 3).split([8, 8, 16], dim=1)
        maps = [each.regions for each in encoder.block_features(torch.cat([BANK, QUERY]))]
    for number, (block, regions) in enumerate(zip(blocks, maps, strict=True), start=1):
        assert found[f"effective_rank/block{number}"] == pytest.approx(float(effective_rank(block)), rel=1e-5)
        assert found[f"rankme/block{number}"] == pytest.approx(float(rankme(block.double())), rel=1e-4)
        assert found[f"region_diversity/block{number}"] == pytest.approx(float(region_diversity(regions)), rel=1e-5)
    assert next(iter(found)) == "effective_rank/block3"  # what a table shows
    assert len(found) == 9
    last = PerBlock(blocks=2, views=0).run(encoder, EvaluationData(bank=[BANK], query=[QUERY]))
    assert last == {name: pytest.approx(found[name]) for name in found if "block1" not in name}


def test_lidar_of_every_block_is_that_of_its_feature():
    encoder = toys.backbone(depths=[2, 1]).eval()

    def pairs(*, seed, **_):
        batches = torch.randn(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).split([4, 2], dim=1)
        return [{"views": [*batch]} for batch in batches]

    data = EvaluationData(bank=[BANK], query=[QUERY], pairs=pairs)
    found = PerBlock(views=4, images=5).run(encoder, data)
    with torch.no_grad():
        views = [torch.cat([batch["views"][n] for batch in pairs(seed=seed)])[:5] for seed in (0, 1) for n in (0, 1)]
        blocks = [encoder.last_blocks(view, 3).split([8, 8, 16], dim=1) for view in views]
    for number, clones in enumerate(zip(*blocks, strict=True), start=1):
        assert found[f"lidar/block{number}"] == pytest.approx(float(lidar(torch.stack(clones, dim=1))), rel=1e-6)
    assert found["lidar/block3"] == pytest.approx(LiDAR(views=4, images=5).run(encoder, data)["lidar"], rel=1e-6)
    assert set(PerBlock(blocks=1, views=4, images=5).run(encoder, data)) == {name for name in found if "block3" in name}


def of_one_or_two(encoder, rank=0, ranks=1):
    """Per block, of six images of the bank, three of the query and four views of the bank's."""

    def pairs(*, seed, **_):
        views = torch.randn(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        return [{"views": [*views[:, rank::ranks]]}]

    data = EvaluationData(bank=[BANK[:3], BANK[3:4], BANK[4:]], query=[QUERY], pairs=pairs)
    return PerBlock(views=4, images=6).run(encoder, data)


def two_ranks(rank, store):
    torch.manual_seed(0)
    encoder = toys.backbone(depths=[2, 1]).eval()
    expected = of_one_or_two(encoder)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = of_one_or_two(encoder, rank, 2)
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="gloo is not built in")
def test_two_ranks_measure_every_block_as_one(tmp_path):
    mp.spawn(two_ranks, args=(str(tmp_path / "store"),), nprocs=2)


def test_raw_pixels_have_one_block():
    found = PerBlock(views=0).run(RawPixels(side=8), EvaluationData(bank=[BANK], query=[QUERY]))
    assert list(found) == ["effective_rank/block1", "rankme/block1", "region_diversity/block1"]


def test_blocks_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="blocks of 1 or more, or None for all, got 0"):
        PerBlock(blocks=0)
    with pytest.raises(ValueError, match="2 blocks"):
        PerBlock(blocks=3).check(toys.backbone(), None)


def test_lidar_is_that_of_all_views_of_the_first_images():
    def views_of(seed):
        return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed)) + 5 * torch.eye(5)[:, :4]

    def pairs(*, same_box, color, seed):
        assert (same_box, color) == (False, True)
        return [{"views": [*views_of(seed)[:, :3]]}, {"views": [*views_of(seed)[:, 3:]]}]

    found = LiDAR(views=6, images=4, seed=7).run(lambda images: -images, EvaluationData(pairs=pairs))
    clones = torch.cat([views_of(seed) for seed in (7, 8, 9)]).transpose(0, 1)[:4]
    assert found == {"lidar": pytest.approx(float(lidar(-clones)))}


@pytest.mark.parametrize(
    ("how", "said"),
    [({"views": 3}, "an even number of views, 2 or more, got 3"), ({"images": 1}, "2 images or more, got 1")],
)
def test_what_lidar_refuses(how, said):
    with pytest.raises(ValueError, match=said):
        LiDAR(**how)


def test_an_encoder_without_regions_is_told():
    with pytest.raises(ValueError, match="region diversity needs an encoder that gives Features with .regions, got Te"):
        RegionDiversity().run(lambda images: images.flatten(1), EvaluationData(bank=[BANK], query=[QUERY]))


def test_the_nearest_images_by_number():
    look = NearestImages(queries=2, k=2)
    bank = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    query = torch.tensor([[0.0, 2.0], [9.0, 9.0], [3.0, 0.1], [5.0, 5.0]])
    look.run(lambda images: images, EvaluationData(bank=[bank], query=[query]))
    assert [(found.query, found.bank) for found in look.found] == [(0, [0, 2]), (2, [1, 2])]
    assert look.found[0].cosines == pytest.approx([1.0, 0.8])


def test_they_are_asked_without_labels():
    assert not any(
        asked.needs_labels for asked in (EffectiveRank(), RankMe(), LiDAR(), RegionDiversity(), NearestImages())
    )
