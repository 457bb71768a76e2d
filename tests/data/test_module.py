from __future__ import annotations

import inspect
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image

from esvit_pl import datasets
from esvit_pl.augment import PARAMS, RandAugment, Recipe, cut_views, draw, make_views, normalize
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.printing import say_once

CONF = Path(__file__).parents[2] / "conf"
# Newer Pythons warn of every fork in a process with threads; loading workers are such forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")

QUIET = "ignore:.*(no `validation_step`|does not have many workers|treespec, LeafSpec|train dataloader shuffling)"
NORMED = Recipe(global_size=8, num_local=2, local_size=4, normalize="image", noise=0.1)
RECIPE = Recipe(global_size=8, num_local=2, local_size=4, eval_resize=8, eval_crop=8, supervised_size=8)


def images(n: int, labelled: bool = True) -> ArrayDataset:
    pixels = torch.randint(0, 256, (n, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(pixels, [f"{i}.png" for i in range(n)], [i % 3 for i in range(n)] if labelled else None)


def module(n: int = 22, *, labelled: bool = True, recipe: Recipe = RECIPE, **settings) -> ImageDataModule:
    settings = {"batch_size": 4, "eval_batch_size": 5, "num_workers": 0, **settings}
    return ImageDataModule(Splits(images(n, labelled), images(7, labelled)), recipe, **settings)


def ranked(rank: int, ranks: int, accumulate: int = 1, processed: int = 0, **settings) -> ImageDataModule:
    data = module(**settings)
    progress = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=processed)))
    data.trainer = SimpleNamespace(
        training=True,
        world_size=ranks,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        limit_train_batches=1.0,
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )
    return data


def order(data: ImageDataModule) -> list[list[int]]:
    return [batch["index"].tolist() for batch in data.train_dataloader()]


def passes(data: ImageDataModule, number: int) -> list[dict]:
    """The batches of so many passes over one loader, epochs 0, 1, ..."""
    loader, batches = data.train_dataloader(), []
    for epoch in range(number):
        data.set_epoch(epoch)
        batches += list(loader)
    return batches


def equal(one: object, other: object) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))


def collect() -> tuple[pl.LightningModule, list[dict]]:
    """A module that trains on nothing and keeps its batches."""
    seen: list[dict] = []

    class Collect(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            seen.append(batch)
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    return Collect(), seen


def trainer(folder: Path, **settings) -> pl.Trainer:
    plain = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**plain, **settings})


# ---- views are a function of (seed, epoch, index, view) --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("train", ["multi_crop", "supervised"])
def test_workers_and_their_persistence_change_no_bit(train):
    plain = passes(module(train=train), 2)
    assert len(plain) == 10
    for persistent in (False, True):
        assert equal(plain, passes(module(train=train, num_workers=4, persistent_workers=persistent), 2))
    assert not equal(plain[:5], plain[5:])


def test_the_data_travel_to_workers_that_are_not_forked():
    loader = module().train_dataloader()
    there = pickle.loads(pickle.dumps(loader.dataset))
    assert equal(loader.collate_fn([there[3, 7]])["views"], loader.collate_fn([loader.dataset[3, 7]])["views"])


def test_threads_change_no_bit_at_full_size():
    pixels = torch.randint(0, 256, (4, 3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Splits(ArrayDataset(pixels, list("abcd")))
    recipe = Recipe(num_local=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        here = ImageDataModule(data, recipe, batch_size=4, num_workers=0).train_dataloader()
        there = ImageDataModule(data, recipe, batch_size=4, num_workers=1).train_dataloader()
        assert equal(list(here), list(there))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_image_has_the_same_views_in_whatever_batch_it_comes():
    def by_index(data):
        batches = passes(data, 1)
        return {int(i): [v[row] for v in batch["views"]] for batch in batches for row, i in enumerate(batch["index"])}

    few, many = by_index(module(24, batch_size=2)), by_index(module(24, batch_size=8))
    assert few.keys() == many.keys() == set(range(24))
    assert all(equal(few[index], many[index]) for index in few)


def test_another_seed_is_another_order_and_other_views():
    first, other = passes(module(), 1), passes(module(seed=1), 1)
    assert [batch["index"].tolist() for batch in first] != [batch["index"].tolist() for batch in other]


def test_no_global_random_state_is_used():
    state = torch.get_rng_state()
    passes(module(num_workers=1), 1)
    list(module().bank_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


# ---- colour on the device --------------------------------------------------------------------------------------------

SMALL = {"global_size": 8, "local_size": 4}
EMBEDDED = {"brightness": 0.2, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "global_blur": [0.0], "local_blur": 0.0}


@pytest.mark.parametrize("recipe", [
    Recipe(**SMALL),
    Recipe(global_size=8, num_local=[2, 1], local_size=[6, 4], local_scale=[[0.2, 0.4], [0.05, 0.2]]),
    Recipe(**SMALL, **EMBEDDED, global_solarize=[0.0], noise=0.1),
    Recipe(**SMALL, normalize="view", noise=0.1),
    Recipe(**SMALL, normalize="image"),
    Recipe(**SMALL, mean=[0.5], std=[0.25]),
    Recipe(**SMALL, mean=[0.5], std=[0.25], normalize="image"),
    Recipe(**SMALL, num_local=0),
    Recipe(**SMALL, mask_cell=4),
], ids=["released", "kinds", "embedded", "view", "image", "grey", "grey image", "global only", "masks"])  # fmt: skip
def test_views_of_the_device_are_those_of_the_worker_bit_for_bit(recipe):
    data = module(recipe=recipe, color_on="device", num_workers=1)
    batches, expected = passes(data, 1), passes(module(recipe=recipe), 1)
    assert {crop.dtype for crop in batches[0]["crops"]} == {torch.uint8}
    assert equal([data.finish(batch) for batch in batches], expected)
    assert "crops" in batches[0]  # the batch itself stays as it was


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize(("workers", "precision"), [(0, "32-true"), (1, "bf16-mixed"), (0, "64-true")])
def test_a_trainer_makes_the_views(tmp_path, workers, precision):
    network, seen = collect()
    data = module(recipe=NORMED, color_on="device", num_workers=workers)
    trainer(tmp_path, max_epochs=1, precision=precision).fit(network, datamodule=data)
    network, expected = collect()
    trainer(tmp_path, max_epochs=1, precision=precision).fit(network, datamodule=module(recipe=NORMED))
    assert len(seen) == 5
    assert equal(seen, expected)
    assert {view.dtype for view in seen[0]["views"]} == {torch.float64 if precision == "64-true" else torch.float32}


@pytest.mark.filterwarnings(QUIET)
def test_a_precision_that_would_round_the_parameters_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs the parameters of the views in float32, got torch\.bfloat16"):
        trainer(tmp_path, max_epochs=1, precision="bf16-true").fit(collect()[0], datamodule=module(color_on="device"))


def test_only_multi_crop_training_is_left_to_the_device():
    data = module(train="supervised", color_on="device")
    for loader in (data.train_dataloader(), data.bank_dataloader(), data.query_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].dtype == torch.float32
        moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
        assert equal(moved, batch)


# ---- JPEGs at a smaller scale ----------------------------------------------------------------------------------------

WIDE = Recipe(global_size=48, num_local=2, local_size=24, supervised_size=24, eval_resize=48, eval_crop=48)
SIDES = ((600, 900), (180, 150), (72, 72))  # crops of the first stay large at a quarter, of the last at no reduction


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Splits:
    """Smooth pictures of several sizes, JPEGs and one PNG, in two classes."""
    root = tmp_path_factory.mktemp("jpegs")
    for number in range(12):
        height, width = SIDES[number % 3]
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        pixels = torch.stack([(3 * x + number).sin(), (4 * y - number).cos(), (2 * x + y).sin()], dim=-1)
        name = root / "ab"[number % 2] / f"{number:02d}.{'png' if number == 3 else 'jpg'}"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray((127 + 120 * pixels).byte().numpy()).save(name, quality=95)
    return datasets.folder(root, val_fraction=0.2)


def of_files(files: Splits, recipe: Recipe = WIDE, **settings) -> ImageDataModule:
    return ImageDataModule(files, recipe, **{"batch_size": 4, "num_workers": 0, **settings})


def test_views_are_those_of_whole_images_unless_reduced_decoding_is_asked_for(files):
    for batch in passes(of_files(files), 2):
        assert batch.keys() == {"views", "boxes", "flipped", "params", "index", "label"}
    whole = [files.train[index] for index in range(12)]
    data = of_files(files, batch_size=12)
    data.set_epoch(3)
    batch = next(iter(data.train_dataloader()))
    for row, index in enumerate(batch["index"].tolist()):
        image, label = whole[index]
        parameters = draw(WIDE.views, WIDE, image.shape[-2:], seed=0, epoch=3, index=index)
        assert equal(make_views(WIDE, image, parameters), [view[row] for view in batch["views"]])
        assert label == batch["label"][row]


@pytest.mark.parametrize("train", ["multi_crop", "supervised"])
def test_reduced_decoding_draws_the_same_and_makes_nearly_the_same_views(files, train):
    plain = Recipe(**{**vars(WIDE), "jitter": 0.0, "grayscale": 0.0, "global_solarize": [0.0]})
    whole = passes(of_files(files, plain, train=train, train_subset="all"), 4)
    reduced = passes(of_files(files, plain, train=train, train_subset="all", reduced_decoding=True), 4)
    pixels = "views" if train == "multi_crop" else "image"
    for one, two in zip(whole, reduced, strict=True):
        views, others = one.pop(pixels), two.pop(pixels)
        assert equal(one, two)
        assert not equal(views, others)
        for view, other in zip(views, others, strict=True):
            difference = (view - other).abs() * min(plain.std)  # in 0-1
            assert difference.mean() < 0.02
            assert difference.max() < 0.1


def test_each_image_is_reduced_as_its_crops_allow(files, monkeypatch):
    reductions: dict[int, set[int]] = {index: set() for index in range(12)}

    def spied(self, index):
        picture = opened(self, index)
        return picture._replace(decode=lambda reduction: reductions[index].add(reduction) or picture.decode(reduction))

    opened = datasets.FolderDataset.open
    monkeypatch.setattr(datasets.FolderDataset, "open", spied)
    passes(of_files(files, reduced_decoding=True), 8)
    names = [files.train.name(index) for index in range(12)]
    by_size = {sides: set() for sides in SIDES}
    for index, name in enumerate(names):
        by_size[SIDES[int(name[2:4]) % 3]] |= reductions[index]
    assert by_size == {(600, 900): {4, 8}, (180, 150): {1, 2}, (72, 72): {1}}


def test_views_of_reduced_images_are_the_same_on_the_device_and_with_workers(files):
    recipe = Recipe(**{**vars(WIDE), "normalize": "image"})
    expected = passes(of_files(files, recipe, reduced_decoding=True), 1)
    data = of_files(files, recipe, reduced_decoding=True, color_on="device", num_workers=1)
    assert equal([data.finish(batch) for batch in passes(data, 1)], expected)


def test_evaluation_and_images_that_lie_in_memory_are_never_reduced(files):
    for loader in ("bank_dataloader", "query_dataloader"):
        whole, reduced = (list(getattr(of_files(files, reduced_decoding=on), loader)()) for on in (False, True))
        assert equal(whole, reduced)
    assert equal(passes(module(), 1), passes(module(reduced_decoding=True), 1))


# ---- the order of an epoch -------------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_cut_to_whole_windows():
    data = module(22)
    data.set_epoch(3)
    first = order(data)
    assert len(data.train_dataloader()) == 5
    assert len({index for batch in first for index in batch}) == 20
    assert first == order(data)
    data.set_epoch(4)
    assert order(data) != first


def test_two_ranks_and_two_accumulated_batches_see_the_images_of_one_large_batch():
    large = order(module(35, batch_size=16))
    ranks = [order(ranked(rank, 2, n=35, batch_size=8)) for rank in range(2)]
    assert [one + two for one, two in zip(*ranks, strict=True)] == large
    accumulated = order(ranked(0, 1, accumulate=2, n=35, batch_size=8))
    assert [one + two for one, two in zip(accumulated[::2], accumulated[1::2], strict=True)] == large


def test_what_is_left_out_is_said_once_and_by_rank_0(capsys):
    data = ranked(0, 2, accumulate=2, n=35)
    say_once.cache_clear()
    assert len(data.train_dataloader()) == len(data.train_dataloader()) == 4
    ranked(1, 2, accumulate=2, n=35).train_dataloader()
    assert capsys.readouterr().out == (
        "each epoch uses 32 of 35 images: the last 3 do not fill a step of 16 images "
        "(batch_size 4 x 2 ranks x 2 accumulated batches). Which images these are changes from epoch to epoch\n"
    )


@pytest.mark.fault(
    "number: fewer images than one step has", "refused: the terms of the step, and the largest batch that fits"
)
def test_fewer_images_than_one_step_is_an_error():
    message = (
        r"one step needs 64 images \(batch_size 16 x 2 ranks x 2 accumulated batches\), and there are 22: "
        r"lower batch_size to 5 or less"
    )
    with pytest.raises(ValueError, match=message):
        ranked(0, 2, accumulate=2, batch_size=16).train_dataloader()
    with pytest.raises(ValueError, match="one step has 0 images .*0 accumulated batches.; each must be 1 or more"):
        ranked(0, 2, accumulate=0, batch_size=16).train_dataloader()


def test_a_pass_starts_where_the_trainer_counts():
    whole = order(ranked(0, 1))
    assert order(ranked(0, 1, processed=3)) == whole[3:]
    assert order(ranked(0, 1, processed=5 + 1)) == order(ranked(0, 1, processed=5))[1:]
    limited = ranked(0, 1, processed=4)
    limited.trainer.limit_train_batches = 2  # two epochs of two batches are over: this is the third
    fresh = module()
    fresh.set_epoch(2)
    assert order(limited) == order(fresh)


# ---- under a Lightning Trainer ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize(("workers", "color_on"), [(0, "worker"), (1, "worker"), (1, "device")])
def test_a_trainer_sees_epoch_after_epoch_also_when_it_resumes(tmp_path, workers, color_on):
    expected = passes(module(), 3)
    network, seen = collect()
    trainer(tmp_path, max_epochs=3).fit(network, datamodule=module(num_workers=workers, color_on=color_on))
    assert equal(seen, expected)

    class SaveAt(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in (5, 7):  # the border of an epoch, the middle of one
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    network, _ = collect()
    trainer(tmp_path, max_epochs=2, callbacks=SaveAt()).fit(network, datamodule=module())
    for step in (5, 7):
        network, seen = collect()
        data = module(num_workers=workers, color_on=color_on)
        trainer(tmp_path, max_epochs=3).fit(
            network, datamodule=data, ckpt_path=tmp_path / f"{step}.ckpt", weights_only=True
        )
        assert equal(seen, expected[step:])
    with pytest.raises(ValueError, match="cannot resume at the same place in the data: batch_size was 4 and is 2"):
        trainer(tmp_path, max_epochs=3).fit(
            collect()[0], datamodule=module(batch_size=2), ckpt_path=tmp_path / "7.ckpt", weights_only=True
        )


@pytest.mark.filterwarnings(QUIET)
def test_limited_and_overfitted_epochs(tmp_path):
    network, seen = collect()
    trainer(tmp_path, max_epochs=3, limit_train_batches=2).fit(network, datamodule=module())
    expected = passes(module(), 3)
    assert equal(seen, expected[0:2] + expected[5:7] + expected[10:12])
    network, seen = collect()
    trainer(tmp_path, max_epochs=2, overfit_batches=1).fit(network, datamodule=module())
    assert [batch["index"].tolist() for batch in seen] == [[0, 1, 2, 3]] * 2


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_training_batch():
    batch = passes(module(), 1)[0]
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if key != "views"} == {
        "label": (torch.int64, (4,)),
        "index": (torch.int64, (4,)),
        "boxes": (torch.float32, (4, 4, 4)),
        "flipped": (torch.bool, (4, 4)),
        "params": (torch.float32, (4, 4, len(PARAMS))),
    }
    assert [tuple(view.shape) for view in batch["views"]] == [(4, 3, 8, 8)] * 2 + [(4, 3, 4, 4)] * 2
    assert batch["label"].tolist() == [index % 3 for index in batch["index"].tolist()]
    x, y, w, h = batch["boxes"].unbind(-1)
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + w <= 1 + 1e-6).all()
    assert (y + h <= 1 + 1e-6).all()


def test_a_batch_with_masks_hides_cells_of_the_global_views():
    batch = passes(module(recipe=Recipe(global_size=8, local_size=4, num_local=1, mask_cell=4, mask_chance=1.0)), 1)[0]
    assert [None if mask is None else tuple(mask.shape) for mask in batch["masks"]] == [(4, 2, 2), (4, 2, 2), None]
    assert batch["masks"][0].dtype == torch.bool


def test_evaluation_batches_hold_every_image_once_in_order():
    data = module()
    bank, query = list(data.bank_dataloader()), list(data.query_dataloader())
    assert torch.cat([batch["index"] for batch in bank]).tolist() == list(range(22))
    assert [len(batch["index"]) for batch in query] == [5, 2]
    assert query[1].keys() == {"image", "index", "label"}
    assert query[1]["image"].shape == (2, 3, 8, 8)
    assert equal(query, list(data.val_dataloader()))


def test_ranks_share_the_evaluation_images_without_repeats():
    loaders = [ranked(rank, 3).query_dataloader() for rank in range(3)]
    indices = [torch.cat([batch["index"] for batch in loader]).tolist() for loader in loaders]
    assert indices == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(loader.sampler) for loader in loaders] == [3, 2, 2]


@pytest.mark.parametrize("color_on", ["worker", "device"])
def test_rand_augment_changes_the_supervised_crop_as_seed_epoch_and_index_say(color_on):
    settings = {"train": "supervised", "rand_augment": "rand-m9-mstd0.5-inc1", "color_on": color_on, "seed": 5}
    data, change = module(**settings), RandAugment("rand-m9-mstd0.5-inc1", size=8, mean=RECIPE.mean)
    batches = passes(data, 2)
    changed = 0
    for place, batch in enumerate(batches):
        for view, index in zip(batch["image"], batch["index"].tolist(), strict=True):
            epoch = place // (len(batches) // 2)
            image = data.train_images[index][0]
            drawn = draw([RECIPE.supervised_view], RECIPE, image.shape[-2:], seed=5, epoch=epoch, index=index)
            (crop,) = cut_views(image, drawn)
            crop = change(crop, 5, epoch, index, "rand_augment")
            assert torch.equal(view, normalize(RECIPE, crop[None].float() / 255, None)[0])
            changed += int(not torch.equal(view, make_views(RECIPE, image, drawn)[0]))
    assert changed > 10
    random.random(), np.random.random()  # noqa: NPY002 - what somebody else has drawn
    assert equal(passes(module(**settings), 2), batches)
    assert equal(passes(module(**settings, num_workers=2), 2), batches)
    assert all(
        torch.equal(a["image"], b["image"])
        for a, b in zip(module(**settings).bank_dataloader(), module().bank_dataloader(), strict=True)
    )


def test_another_rand_augment_is_not_resumed():
    saved = module(train="supervised", rand_augment="rand-m9-inc1").state_dict()
    module(train="supervised", rand_augment="rand-m9-inc1").load_state_dict(saved)
    with pytest.raises(ValueError, match="rand_augment was rand-m9-inc1 and is None"):
        module(train="supervised").load_state_dict(saved)
    older = {key: value for key, value in saved.items() if key != "rand_augment"}  # of a version without it
    module(train="supervised").load_state_dict(older)


def test_supervised_training_keeps_to_the_bank():
    parted = Splits(images(40), val_fraction=0.3)
    settings = {"batch_size": 1, "num_workers": 0}
    data = ImageDataModule(parted, RECIPE, train="supervised", **settings)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {"image", "index", "label"}
    assert batch["image"].shape == (1, 3, 8, 8)
    assert data.train_images is parted.bank
    assert len(ImageDataModule(parted, RECIPE, **settings).train_images) == 40
    assert ImageDataModule(parted, RECIPE, train_subset="bank", **settings).train_images is parted.bank


def test_data_without_labels_have_no_label_in_any_batch():
    data = module(labelled=False)
    assert not data.has_labels
    assert data.num_classes is None
    for loader in (data.train_dataloader(), data.bank_dataloader(), data.query_dataloader()):
        assert "label" not in next(iter(loader))
    with pytest.raises(ValueError, match="train='supervised' needs labels"):
        module(labelled=False, train="supervised")


def test_classes():
    assert module().num_classes == 3
    assert ImageDataModule(Splits(images(4), None, ["a", "b", "c", "d"]), RECIPE).num_classes == 4


def test_batches_are_pinned_where_there_is_a_gpu(monkeypatch):
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        for color_on in ("worker", "device"):
            assert module(color_on=color_on).train_dataloader().pin_memory is gpu
            assert module(color_on=color_on, pin_memory=not gpu).query_dataloader().pin_memory is not gpu


def test_no_local_crops():
    batch = passes(module(recipe=Recipe(global_size=8, num_local=0)), 1)[0]
    assert len(batch["views"]) == batch["boxes"].shape[1] == 2


def test_a_broken_file_stops_the_loader_and_is_named(tmp_path):
    for number in range(4):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"")
    data = ImageDataModule(datasets.folder(tmp_path), RECIPE, batch_size=4, num_workers=0)
    with pytest.raises(ValueError, match=r"cannot read the image file '.*2\.png'"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ({"eval_batch_size": -1}, "eval_batch_size must be 1 or more, got -1"),
    ({"num_workers": -1}, "num_workers must be 0 or more, or None for the number of CPU cores, got -1"),
    ({"rand_augment": "rand-m9"}, "rand_augment='rand-m9' is for train='supervised'; the recipe has the changes"),
    ({"rand_augment": "m9", "train": "supervised"}, "rand_augment must be words of timm's RandAugment, such as"),
    ({"train": "both"}, "train must be 'multi_crop' or 'supervised', got 'both'"),
    ({"color_on": "gpu"}, "color_on must be 'worker' or 'device', got 'gpu'"),
    ({"train_subset": "val"}, "train_subset must be 'all', 'bank' or None, got 'val'"),
])  # fmt: skip
def test_bad_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        module(**wrong)


# ---- a number has one home -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted([*(CONF / "dataset").glob("*.yaml"), *(CONF / "datamodule").glob("*.yaml")]),
                         ids=lambda file: f"{file.parent.name}/{file.stem}")  # fmt: skip
def test_configurations_show_the_signatures_defaults(file):
    shown = OmegaConf.to_container(OmegaConf.load(file))
    if file.stem == "device_color":
        assert shown == {"defaults": ["worker_color", "_self_"], "color_on": "device"}
        return
    name = shown.pop("_target_").removeprefix("esvit_pl.")
    target = ImageDataModule if name == "data.ImageDataModule" else getattr(datasets, name.split(".")[1])
    parameters = dict(inspect.signature(target).parameters)
    if parameters.pop("reading", None):
        parameters |= inspect.signature(datasets.Reading).parameters
    given_by_the_command = {"dataset", "recipe", "seed"} if target is ImageDataModule else set()
    assert shown.keys() == parameters.keys() - given_by_the_command
    required = {key for key in shown if parameters[key].default is inspect.Parameter.empty}
    assert {key for key, value in shown.items() if value == "???"} == required
    shown |= {key: tuple(value) for key, value in shown.items() if isinstance(value, list)}
    assert all(shown[key] == parameters[key].default for key in shown.keys() - required)


def test_a_part_of_each_class_is_held_out_for_probes():
    """A fifth of 8, 7 and 7 images, rounded up, prepared as evaluations see them, and shared by the ranks."""
    data = module(train="supervised")
    away, loader = data.hold_out(0.2, seed=0)
    labels = torch.tensor(data.train_images.labels)
    assert [int((away & (labels == label)).sum()) for label in range(3)] == [2, 2, 2]
    seen = torch.cat([batch["image"] for batch in loader])
    whole = torch.cat([batch["image"] for batch in data.bank_dataloader()])
    assert torch.equal(seen, whole[away])
    assert torch.cat([batch["label"] for batch in loader]).tolist() == labels[away].tolist()
    assert torch.equal(module(train="supervised").hold_out(0.2, seed=0)[0], away)
    assert not torch.equal(module(train="supervised").hold_out(0.2, seed=1)[0], away)
    parts = [ranked(rank, 2, train="supervised").hold_out(0.2, seed=0) for rank in (0, 1)]
    assert all(torch.equal(mask, away) for mask, _ in parts)
    shares = [torch.cat([batch["image"] for batch in share]) for _, share in parts]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), seen)
    with pytest.raises(ValueError, match="hold_out needs labels"):
        module(labelled=False).hold_out(0.2, seed=0)
