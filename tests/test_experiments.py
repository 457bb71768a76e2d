"""conf/experiment against the published results and against the scaling rules of docs/experiments.md."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
import timm
import torch
from commandline import Commands, write_pictures
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from esvit_pl.configs import assemble
from esvit_pl.profiling import published
from esvit_pl.schedules import cosine

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "conf" / "experiment"
LOSSES = ("view", "view_region")


class Published(NamedTuple):
    """A run that gave a published result."""

    size: str
    window: int
    gpus: tuple[int, int]  # nodes x GPUs of each
    batch: int  # images of a GPU
    epochs: int
    region_start: int | None  # None for L_V alone
    local_crops: int = 8
    family: str = "swin"


def both(
    size: str, window: int, gpus: tuple[int, int], batch: int, start: int, family: str = "swin"
) -> list[Published]:
    """L_V and L_V + L_R of one backbone."""
    return [Published(size, window, gpus, batch, 300, begin, family=family) for begin in (None, start)]


BACKBONES = {
    "swin_tiny_w7": both("tiny", 7, (1, 16), 32, 0),
    "swin_tiny_w14": both("tiny", 14, (1, 16), 32, 200),
    "swin_small_w7": both("small", 7, (1, 16), 32, 0),
    "swin_small_w14": both("small", 14, (2, 16), 16, 180),
    "swin_base_w7": both("base", 7, (1, 16), 32, 200),
    "swin_base_w14": both("base", 14, (4, 16), 8, 200),
    "cvt_tiny_w7": both("tiny", 7, (1, 16), 64, 200, "cvt"),
    "vil_tiny": both("tiny", 7, (1, 16), 64, 200, "vil"),
    "resnet50": both("tiny", 7, (1, 16), 64, 200, "resnet"),
}
PUBLISHED: dict[str, Published] = {
    **{f"{name}_{loss}": run for name, runs in BACKBONES.items() for loss, run in zip(LOSSES, runs, strict=True)},
    "swin_tiny_w7_view_two_crops_100": Published("tiny", 7, (1, 16), 32, 100, None, 0),
    "swin_tiny_w7_view_two_crops_300": Published("tiny", 7, (1, 16), 32, 300, None, 0),
    "swin_tiny_w7_view_region_two_crops_100": Published("tiny", 7, (1, 16), 32, 100, 0, 0),
    "swin_tiny_w7_view_region_two_crops_300": Published("tiny", 7, (1, 16), 32, 300, 0, 0),
    "swin_tiny_w7_view_imagenet_1k": Published("tiny", 7, (1, 16), 64, 300, None),
    "swin_tiny_w7_view_webvision_v1": Published("tiny", 7, (1, 16), 64, 150, None),
    "swin_tiny_w7_view_openimages_v4": Published("tiny", 7, (1, 16), 64, 50, None),
    "swin_tiny_w7_view_imagenet_22k": Published("tiny", 7, (1, 16), 64, 30, None),
    "swin_tiny_w7_view_region_imagenet_1k": Published("tiny", 7, (1, 16), 64, 300, 0),
    "swin_tiny_w7_view_region_webvision_v1": Published("tiny", 7, (1, 16), 64, 150, 0),
    "swin_tiny_w7_view_region_openimages_v4": Published("tiny", 7, (1, 16), 64, 50, 0),
    "swin_tiny_w7_view_region_imagenet_22k": Published("tiny", 7, (1, 16), 64, 30, 0),
}
# name -> (images, global batch, epochs)
PRESETS = {
    "one_gpu_10k": (10_000, 64, 800),
    "one_gpu_100k": (100_000, 128, 300),
    "one_gpu_1m": (1_000_000, 256, 100),
    "laptop": (2_000, 64, 50),
    "continued": (10_000, 64, 100),
}
EVERY = [*PUBLISHED, *PRESETS]
SHAPES = {"tiny": (96, [2, 2, 6, 2], 0.1), "small": (96, [2, 2, 18, 2], 0.2), "base": (128, [2, 2, 18, 2], 0.2)}
MILLIONS = {"tiny": 28, "small": 49, "base": 87}
DEFAULTS = {
    "backbone": "swin_tiny_w7",
    "loss": "view_region",
    "optimizer": "adamw",
    "augment": "multi_crop",
    "datamodule": "worker_color",
    "module": "pretrain",
    "trainer": "default",
}


@cache
def compose(*words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("esvit_pl.conf", version_base="1.3"):
        return hydra.compose("pretrain", ["paths.output_dir=nowhere", *words])


def experiment(name: str) -> DictConfig:
    return compose(f"experiment={name}", "dataset.root=photos")


def header(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line for line in lines[: lines.index("defaults:")])


def global_batch(cfg: DictConfig) -> int:
    trainer = cfg.trainer
    return cfg.datamodule.batch_size * trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a plain tree but its branches."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from leaves(child, f"{key}.{name}" if key else name)
    else:
        yield key, node


# -- the published rows


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_settings_are_those_of_the_published_run(name):
    row, cfg = PUBLISHED[name], experiment(name)
    embed_dim, depths, drop_path = (None, None, 0.0) if row.family == "resnet" else SHAPES[row.size]
    assert (cfg.backbone.name, cfg.backbone.get("depths")) == (
        {"resnet": "resnet50"}.get(row.family, row.family),
        depths,
    )
    if row.family == "swin":
        assert (cfg.backbone.embed_dim, cfg.backbone.window) == (embed_dim, row.window)
    elif row.family in ("cvt", "vil"):
        assert cfg.backbone.windows == [row.window] * 4
    assert cfg.trainer.sync_batchnorm == (row.family in ("cvt", "resnet"))
    assert cfg.backbone.drop_path_rate == drop_path
    assert (cfg.trainer.num_nodes, cfg.trainer.devices) == row.gpus
    assert cfg.datamodule.batch_size == row.batch
    assert global_batch(cfg) == (1024 if row.batch == 64 else 512)
    assert cfg.trainer.max_epochs == row.epochs
    assert (cfg.trainer.precision, cfg.trainer.strategy.broadcast_buffers) == ("bf16-mixed", False)
    assert cfg.augment.num_local == row.local_crops
    assert list(cfg.augment.global_scale) == ([0.4, 1.0] if row.local_crops else [0.14, 1.0])
    weights = (cfg.loss.view_weight, cfg.loss.region_weight, cfg.loss.region_start_epoch)
    assert weights == ((1.0, 0.0, 0) if row.region_start is None else (0.5, 0.5, row.region_start))
    assert (cfg.loss.num_prototypes, cfg.optimizer.lr, cfg.module.momentum) == (65536, 0.0005, 0.996)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_published_run_is_too_short_for_its_warm_ups(name):
    cfg = experiment(name)
    with torch.device("meta"):
        module = assemble.pretrainer(cfg, assemble.construct(cfg, "augment"))
    epochs = PUBLISHED[name].epochs
    assert {setting: duration.of(epochs) for setting, duration in module.durations.items()} == {
        "optimizer.warmup_epochs": 10,
        "loss.teacher_temp_warmup_epochs": 30,
        "module.freeze_prototypes_epochs": 1,
    }
    assert module.shortened(epochs) is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_command_machines_and_expected_accuracy(name):
    row, text = PUBLISHED[name], header(name)
    lines = text.splitlines()
    assert re.fullmatch(rf"#   esvit-pretrain experiment={name} dataset\.root=/data/\w+", lines[1])
    assert any(line.startswith("# Expected: linear ") for line in lines)  # docs/tables.py writes it
    machines = "16 GPUs" if row.gpus[0] == 1 else f"{row.gpus[0]} nodes x 16 GPUs"
    assert f"{machines} x {row.batch} images = {row.gpus[0] * row.gpus[1] * row.batch}" in text
    others = ("imagenet_1k", "webvision_v1", "openimages_v4", "imagenet_22k")
    unknown = row.local_crops == 0 or name == "vil_tiny_view" or name.partition("view_region_")[2] in others
    published = "own batch is not published" if unknown else "# Published with "
    assert published in text
    if row.region_start:
        assert f"L_R joins at epoch {row.region_start} of 300" in text


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_words_for_fewer_gpus_keep_the_global_batch(name):
    words = header(name).partition("# Fewer GPUs, the same global batch: ")[2].splitlines()[0].split()
    fewer = OmegaConf.merge(experiment(name), OmegaConf.from_dotlist(words))
    assert (fewer.trainer.num_nodes, fewer.trainer.devices) == (1, 8)
    assert global_batch(fewer) == global_batch(experiment(name))


def test_data_without_an_evaluation_of_its_own_is_read_without_labels():
    for loss, images in product(LOSSES, ("webvision_v1", "openimages_v4", "imagenet_22k")):
        name = f"swin_tiny_w7_{loss}_{images}"
        dataset = experiment(name).dataset
        assert (dataset._target_, dataset.labels) == ("esvit_pl.datasets.folder", "none")
        assert "esvit-linear ckpt_path=RUN/checkpoints/last.ckpt dataset=imagenet" in header(name)
    assert experiment("swin_tiny_w7_view_imagenet_1k").dataset._target_ == "esvit_pl.datasets.imagenet"


# -- the presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_follows_the_scaling_rules(name):
    images, batch, epochs = PRESETS[name]
    cfg = experiment(name)
    assert (global_batch(cfg), cfg.trainer.max_epochs) == (batch, epochs)
    steps_per_epoch = images // batch
    steps = steps_per_epoch * epochs
    horizon = min(1 / (1 - 0.996 ** (batch / 512)), 0.03 * steps)
    assert 1 / (1 - cfg.module.momentum) == pytest.approx(horizon, rel=0.01)
    end = 0.0 if horizon < 0.01 * steps else 10 / steps
    assert 1 - cfg.module.momentum_end == pytest.approx(end, rel=0.01)
    assert cfg.loss.num_prototypes == 2 ** round(math.log2(images * 65536 / 1_281_167))
    warmup = max(steps / 30, min(1000, steps / 10))
    with torch.device("meta"):
        module = assemble.pretrainer(cfg, assemble.construct(cfg, "augment"))
    warm, temperature_warm, frozen, *heads = (duration.of(epochs) for duration in module.durations.values())
    assert heads == ([1] if name == "continued" else [])
    assert warm * steps_per_epoch == pytest.approx(warmup, rel=0.01)
    assert frozen == pytest.approx(warm / 10, rel=0.01)
    temperature = (cfg.loss.teacher_temp, temperature_warm)
    assert temperature == ((0.04, 0) if name == "laptop" else (0.07, epochs / 10))


@pytest.mark.parametrize("name", PRESETS)
def test_the_header_of_a_preset_does_its_sums(name):
    (images, batch, epochs), text, cfg = PRESETS[name], header(name), experiment(name)
    assert text.splitlines()[1] == f"#   esvit-pretrain experiment={name} dataset.root=photos/"
    assert f"about {images:,} images: {epochs} epochs of {images // batch:,} steps of {batch} images" in text
    assert "not measured" in text
    body = (FOLDER / f"{name}.yaml").read_text()
    for key in ("optimizer.warmup_epochs", "module.freeze_prototypes_epochs"):
        stated = re.search(rf"{key.partition('.')[2]}: [\d.]+ # ([\d,]+) steps", body)
        if stated is not None:
            steps = round(OmegaConf.select(cfg, key) * (images // batch))
            assert int(stated[1].replace(",", "")) == steps


def test_the_reference_of_the_rules_is_the_published_recipe():
    cfg = experiment("swin_tiny_w7_view_region")
    images, steps = 1_281_167, 1_281_167 // 512 * 300
    assert 1 / (1 - cfg.module.momentum) == pytest.approx(250)
    assert 250 * 512 == 128_000
    assert images / cfg.loss.num_prototypes == pytest.approx(19.55, abs=0.01)
    assert {cfg.optimizer.warmup_epochs, cfg.module.freeze_prototypes_epochs} == {None}  # 10 and 1, see above
    assert cfg.trainer.max_epochs / 10 == 30
    assert steps == 750_600


@pytest.mark.parametrize(
    ("share", "percent"),
    [(250 / 750_600, 5), (500 / 390_600, 8), (1000 / 234_300, 12), (2000 / 124_800, 19), (0.03, 23)],
    ids=["published", "one_gpu_1m", "one_gpu_100k", "one_gpu_10k", "limit"],
)
def test_a_teacher_whose_momentum_ends_at_1_stands_still_at_the_end(share, percent):
    steps = 1_000_000
    m = 1 - 1 / (share * steps)
    alive = [left for left in range(1, steps // 2, 500) if _horizon(steps - left, steps, m) < left]
    assert 100 * alive[0] / steps == pytest.approx(percent, abs=0.6)


def _horizon(step: int, steps: int, m: float) -> float:
    """Steps that the teacher remembers at `step`."""
    return 1 / (1 - cosine(step, steps, start=m, end=1.0))


# -- all of them


def test_every_file_is_in_a_table_here():
    others = ["embedded", "compare_embedded", "own_images", "does_l_r_help"]
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted([*others, *EVERY, *RIVALS])


@pytest.mark.parametrize("name", EVERY)
def test_a_file_says_only_what_differs_from_the_defaults(name):
    content: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    chosen = {
        key.removeprefix("override /"): option for each in content.pop("defaults") for key, option in each.items()
    }
    assert not DEFAULTS.items() & chosen.items()
    restated = []
    for group, node in content.items():
        if not isinstance(node, dict):
            restated += [group] if compose()[group] == node else []
            continue
        option = chosen.get(group, DEFAULTS.get(group))
        words = [] if option is None else [f"{group}={option}"]
        without = compose(*words)[group]
        restated += [f"{group}.{key}" for key, value in leaves(node) if OmegaConf.select(without, key) == value]
    assert restated == []


@pytest.mark.parametrize("name", EVERY)
def test_the_whole_pretrainer_is_built_at_full_size(name):
    cfg = experiment(name)
    with torch.device("meta"):
        module = assemble.pretrainer(cfg, assemble.construct(cfg, "augment"))
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}
    heads = {"view"} if "region" not in name and name in PUBLISHED else {"view", "region"}
    assert {*module.student.heads} == {*module.teacher.heads} == heads
    for head in module.student.heads.values():
        assert head.prototypes.direction.shape == (cfg.loss.num_prototypes, cfg.loss.out_dim)
    if name != "laptop":
        size = PUBLISHED[name].size if name in PUBLISHED else "tiny"
        millions = sum(p.numel() for p in module.student.backbone.parameters()) / 1e6
        family = PUBLISHED[name].family if name in PUBLISHED else "swin"
        assert millions == pytest.approx({"cvt": 29, "resnet": 23}.get(family, MILLIONS[size]), abs=1.0)


# The same depths, terms, schedules and views, all else as small as it gets.
HEADS = "backbone.num_heads=[1,1,1,1]"
NARROW = {
    "swin": [HEADS, "backbone.embed_dim=4", "backbone.img_size=32", "augment.global_size=32", "augment.local_size=16"],
    "cvt": [HEADS, "backbone.dims=[4,4,4,4]", "augment.global_size=32", "augment.local_size=16"],
    "vil": [
        HEADS,
        "backbone.dims=[4,4,4,4]",
        "backbone.img_size=64",
        "augment.global_size=64",
        "augment.local_size=32",
    ],
    "resnet": ["+backbone.channels=[4,4,4,4]", "augment.global_size=64", "augment.local_size=32"],
}
SMALL = [
    "augment.eval_resize=32",
    "augment.eval_crop=32",
    "loss.num_prototypes=16",
    "loss.hidden_dim=16",
    "loss.out_dim=8",
    "evaluation.baselines=false",
    "trainer=cpu",
    "trainer.devices=1",
    "trainer.num_nodes=1",
    "trainer.max_steps=2",
    "trainer.log_every_n_steps=1",
    "datamodule.batch_size=2",
    "datamodule.num_workers=0",
    "callbacks=none",
    "evaluation.probes=[]",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four pictures, laid out as ImageNet is."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for hue, label in enumerate(("red", "green")):
            write_pictures(root / split / label, 4, hue)
    return root


QUICK = {"swin_tiny_w14_view", "cvt_tiny_w7_view_region", "vil_tiny_view", "resnet50_view_region", "one_gpu_10k"}
"""One of each family, and what is started most; the others are built in the same way."""


@pytest.mark.usefixtures("nothing_drawn")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EVERY]
)
def test_two_steps_through_the_command(name, images, tmp_path, monkeypatch):
    create = timm.create_model  # nothing is downloaded: what timm would fill with weights is random here
    swin = {"embed_dim": 4, "num_heads": (1, 1, 1, 1), "img_size": 32}

    def random_weights(name, pretrained=False, **settings):
        return create(name, **settings, **(swin if pretrained else {}))

    monkeypatch.setattr(timm, "create_model", random_weights)
    narrow = NARROW[PUBLISHED[name].family if name in PUBLISHED else "swin"]
    outcome = Commands(tmp_path).run("pretrain", f"experiment={name}", f"dataset.root={images}", *narrow, *SMALL)
    assert outcome.code == 0, outcome.err
    assert outcome.results["status"] == "finished"
    cfg = experiment(name)
    assert f"in {cfg.trainer.max_epochs} epochs" in outcome.out
    assert ", 2 steps: " in outcome.out
    losses = outcome.metric("train/view_loss")
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    together = cfg.loss.region_weight > 0 and cfg.loss.region_start_epoch == 0
    assert ("train/region_loss" in outcome.names()) == together
    assert outcome.metric("train/lr")[0] == 0.0  # the first step of a warm-up from 0
    assert outcome.metric("train/teacher_momentum")[0] == pytest.approx(cfg.module.momentum)


# -- the page about them


def test_the_page_shows_the_numbers_of_the_presets():
    page = (ROOT / "docs" / "experiments.md").read_text()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    rows = {row[0].strip("`"): row[1:] for row in cells}
    for name, (number, batch, epochs) in PRESETS.items():
        cfg = experiment(name)
        steps = number // batch * epochs
        assert rows[name][:5] == [f"{number:,}", str(batch), str(epochs), f"{steps:,}", f"{cfg.loss.num_prototypes:,}"]
        assert rows[name][5] == f"{cfg.module.momentum:g} to {cfg.module.momentum_end:g}"
        assert rows[name][6] == f"{cfg.optimizer.warmup_epochs or 10:g}"


# -- the rivals' own recipes


class Rival(NamedTuple):
    """A published training of another method."""

    batch: int
    epochs: int
    lr: float  # at that batch
    warmup: float
    decay: tuple[float, float]
    momentum: tuple[float, float] | None  # of the teacher
    crops: tuple[int, int]
    scale: float  # smallest share of a global crop
    clip: tuple[float | None, str] = (None, "parameter")
    decaying: str = "matrices"


RIVALS = {
    "moby_swin_tiny_300": Rival(512, 300, 1e-3, 5, (0.05, 0.05), (0.99, 1), (2, 0), 0.08, (5.0, "network"), "layers"),
    "mocov3_vit_small_300": Rival(4096, 300, 2.4e-3, 40, (0.1, 0.1), (0.99, 1), (2, 0), 0.08, decaying="all"),
    "mocov3_vit_base_300": Rival(4096, 300, 2.4e-3, 40, (0.1, 0.1), (0.99, 1), (2, 0), 0.08, decaying="all"),
    "mocov3_resnet50_300": Rival(4096, 300, 4.8, 10, (1e-6, 1e-6), (0.99, 1), (2, 0), 0.2),
    "byol_resnet50_1000": Rival(4096, 1000, 3.2, 10, (1.5e-6, 1.5e-6), (0.996, 1), (2, 0), 0.08),
    "swav_resnet50_800": Rival(4096, 800, 4.8, 10, (1e-6, 1e-6), None, (2, 6), 0.14, decaying="all"),
    "swav_resnet50_small_batch_400": Rival(256, 400, 0.6, 0, (1e-6, 1e-6), None, (2, 6), 0.14, decaying="all"),
    "simclr_resnet50_800": Rival(4096, 800, 6.4, 40, (1e-4, 1e-4), None, (2, 0), 0.08),
    "densecl_resnet50_200": Rival(256, 200, 0.03, 0, (1e-4, 1e-4), (0.999, 0.999), (2, 0), 0.2, decaying="all"),
    "ibot_swin_tiny_w7_300": Rival(1024, 300, 2e-3, 10, (0.04, 0.4), (0.996, 1), (2, 10), 0.25, (3.0, "parameter")),
    "ibot_swin_tiny_w14_300": Rival(
        1040, 300, 2.03125e-3, 10, (0.04, 0.4), (0.996, 1), (2, 10), 0.25, (3.0, "parameter")
    ),
    "ibot_vit_small_800": Rival(1024, 800, 2e-3, 10, (0.04, 0.4), (0.996, 1), (2, 10), 0.25, (3.0, "parameter")),
    "ibot_vit_base_400": Rival(1024, 400, 2e-3, 10, (0.04, 0.4), (0.996, 1), (2, 10), 0.25, (3.0, "parameter")),
    "simmim_swin_base_100": Rival(2048, 100, 8e-4, 10, (0.05, 0.05), None, (1, 0), 0.67, (5.0, "network"), "layers"),
    "mpp_vit_base_14": Rival(4096, 14, 2e-4, 0.14, (0.0, 0.0), None, (1, 0), 0.4),
}


def test_every_recipe_of_another_method_is_looked_at():
    assert RIVALS.keys() == published.METHODS.keys()


@pytest.mark.parametrize("name", RIVALS)
def test_the_recipe_of_another_method_is_the_published_one(name):
    row, cfg = RIVALS[name], experiment(name)
    recipe, optimizer, objective = (assemble.construct(cfg, part) for part in ("augment", "optimizer", "loss"))
    assert (global_batch(cfg), cfg.trainer.max_epochs) == (row.batch, row.epochs)
    assert optimizer.lr * row.batch / 256 == pytest.approx(row.lr)
    assert optimizer.durations["warmup_epochs"].of(row.epochs) == pytest.approx(row.warmup)
    assert (optimizer.weight_decay, optimizer.weight_decay_end, optimizer.decaying) == (*row.decay, row.decaying)
    if row.momentum is not None:
        assert (cfg.module.momentum, cfg.module.momentum_end) == row.momentum
    assert objective.uses_teacher == (row.momentum is not None)
    assert (recipe.num_global, recipe.num_local) == row.crops
    assert recipe.global_scale == (row.scale, 1.0)
    assert (cfg.module.clip_grad, cfg.module.clip_grad_of) == row.clip
    assert objective.uses_masks == bool(recipe.mask_cell)
    batch_norm = cfg.backbone.name == "resnet50" and "densecl" not in name
    assert cfg.trainer.sync_batchnorm == batch_norm
