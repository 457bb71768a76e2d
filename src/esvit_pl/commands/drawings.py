"""What ``esvit-visualize`` draws and measures, one function for each ``draw=`` and ``measure=``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from esvit_pl.configs import assemble, evaluated_images, weights
from esvit_pl.configs.several import listed, named
from esvit_pl.printing import say
from esvit_pl.safe_text import file_name

if TYPE_CHECKING:
    from torch import Tensor

    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint
    from esvit_pl.data import ImageDataModule


class Subject(NamedTuple):
    """A backbone with its title, and the checkpoint that it comes from."""

    title: str
    backbone: Backbone
    source: Checkpoint


def attention(cfg: DictConfig) -> None:
    from esvit_pl.visualize import attention_maps, attention_panels

    how = {"block": cfg.draw.block, "side": cfg.draw.side}
    queries: list[Any] = points(cfg.query) or [None]
    backbones = list(subjects(cfg))
    for path in listed(cfg.image):
        rows = [
            (subject.title, pixels(path, subject.backbone), attention_maps(subject.backbone, path, query, **how), query)
            for query in queries
            for subject in backbones
        ]
        figure = attention_panels(rows, heads=cfg.draw.heads, mass=cfg.draw.mass)
        put(cfg, figure, "attention", path)


def correspondence(cfg: DictConfig) -> None:
    from esvit_pl.visualize import draw_correspondence, matched_views

    how = {"k": cfg.draw.k, "same_box": cfg.draw.same_box, "color": cfg.draw.color, "seed": cfg.seed}
    backbones = list(subjects(cfg))
    for path in listed(cfg.image):
        for subject in backbones:
            matched = matched_views(subject.backbone, path, cfg.image2, **how)
            name = "correspondence" if len(backbones) == 1 else f"correspondence_{file_name(subject.title)}"
            put(cfg, draw_correspondence(matched, title=subject.title), name, path)


def pca(cfg: DictConfig) -> None:
    from esvit_pl.visualize import draw_pca, pca_maps

    paths = listed(cfg.image)
    how = {"foreground": cfg.draw.foreground, "side": cfg.draw.side}
    backbones = list(subjects(cfg))
    maps = {subject.title: pca_maps(subject.backbone, paths, **how) for subject in backbones}
    put(cfg, draw_pca([pixels(path, backbones[0].backbone) for path in paths], maps), "pca")


def neighbours(cfg: DictConfig) -> None:
    from esvit_pl.augment import evaluation_view
    from esvit_pl.evaluation import EvaluationData, NearestImages
    from esvit_pl.runs.pictures import draw_neighbours
    from esvit_pl.visualize import draw_near_regions, nearest_regions

    for subject in subjects(cfg):
        data, recipe = images_of(cfg, subject)
        folder = Path(cfg.out) / file_name(subject.title)
        if cfg.image is None:
            looked = NearestImages(cfg.draw.queries, cfg.draw.k)
            looked.run(subject.backbone, EvaluationData(data.bank_dataloader(), data.query_dataloader()))
            say(draw_neighbours(folder, {subject.title: looked.found}, data.dataset, recipe))
            continue
        if cfg.query is None:
            raise ValueError("the nearest regions need query=[x,y], a place in image=; without image= images are shown")
        for path in listed(cfg.image):
            rows = []
            for query in points(cfg.query):
                found = nearest_regions(subject.backbone, path, query, data.bank_dataloader(), k=cfg.draw.k)
                shown = [evaluation_view(recipe, data.dataset.bank[near.image][0], normalized=False) for near in found]
                rows.append((pixels(path, subject.backbone), query, list(zip(shown, found, strict=True))))
            put(cfg, draw_near_regions(rows), f"regions_{file_name(subject.title)}", path)


def views(cfg: DictConfig) -> None:
    from esvit_pl.augment import Recipe, draw, make_views
    from esvit_pl.visualize import crops

    recipe = Recipe()
    if cfg.ckpt_path is not None:
        recipe, _ = evaluated_images.preparation(cfg, next(subjects(cfg)).source)
    elif assemble.choice("augment") != "checkpoint":
        recipe = assemble.construct(cfg, "augment")
    for path in listed(cfg.image):
        image = pixels(path, None)
        drawn = draw(recipe.views, recipe, image.shape[-2:], seed=cfg.seed, epoch=0, index=0)
        cut = make_views(recipe, image, drawn, normalized=False)
        how = {"num_global": recipe.num_global, "flipped": drawn.flipped.tolist(), "cell": cfg.draw.cell}
        put(cfg, crops(image, drawn.boxes, cut, **how), "views", path)


def curves(cfg: DictConfig) -> None:
    from esvit_pl.metrics_file import curve, read_metrics
    from esvit_pl.visualize import draw_curves

    trainings = {
        title: [read_metrics(metrics_file(run)) for run in listed(runs)] for title, runs in named(cfg.draw.runs).items()
    }
    names = listed(cfg.draw.metrics)
    metrics = {
        name: {
            title: [found for rows in seeds if (found := curve(rows, name))[0]] for title, seeds in trainings.items()
        }
        for name in names
    }
    if not any(seeds for curves in metrics.values() for seeds in curves.values()):
        there = sorted({name for seeds in trainings.values() for rows in seeds for row in rows for name in row})
        raise ValueError(f"draw.metrics={names}: no run has logged them; there are {', '.join(there)}")
    put(cfg, draw_curves(metrics), "curves")


def throughput(cfg: DictConfig) -> None:
    from esvit_pl.profiling.report import as_words
    from esvit_pl.profiling.throughput import Throughput, picture

    if cfg.draw.file is None:
        put(cfg, picture(), "throughput")
        return
    reports = [report for report in json.loads(Path(cfg.draw.file).read_text(encoding="utf-8")) if report["rows"]]
    needed = set(Throughput._fields) - set(Throughput._field_defaults)
    found = next((report for report in reports if needed <= set(report["rows"][0])), None)
    if found is None:
        raise ValueError(f"draw.file={cfg.draw.file} is not what esvit-bench throughput writes")
    rows = [Throughput(**{name: row[name] for name in Throughput._fields if name in row}) for row in found["rows"]]
    put(cfg, picture(rows, where=found["machine"].get("gpu", as_words(found["machine"]))), "throughput")


def film(cfg: DictConfig) -> None:
    from esvit_pl.visualize import film as write

    frames = sorted(map(Path, glob(str(cfg.draw.frames))))
    if not frames:
        raise ValueError(f"draw.frames={cfg.draw.frames} names no picture")
    name = file_name(frames[0].parent.name)
    say(write(frames, Path(cfg.out) / f"{name}.gif", seconds=cfg.draw.seconds))


DRAWINGS: dict[str, Callable[[DictConfig], None]] = {
    "attention": attention,
    "correspondence": correspondence,
    "pca": pca,
    "neighbours": neighbours,
    "views": views,
    "curves": curves,
    "throughput": throughput,
    "film": film,
}


def measure_correspondence(cfg: DictConfig) -> None:
    """Print and write a table: the accuracy of each backbone for each way to make two views."""
    from esvit_pl.datasets import Splits, Subset
    from esvit_pl.evaluation import EvaluationData, RegionCorrespondence
    from esvit_pl.evaluation.correspondence import WAYS
    from esvit_pl.evaluation.label_free import evenly
    from esvit_pl.profiling.report import as_markdown

    unknown = [way for way in cfg.measure.ways if way not in WAYS]
    if unknown or not cfg.measure.ways:
        raise ValueError(f"measure.ways needs some of {', '.join(WAYS)}, got {list(cfg.measure.ways)}")
    found: dict[tuple[str, str], list[list[dict[str, float]]]] = {}  # of a way and a title, for each training
    for subject in trainings(cfg):
        data, _ = images_of(cfg, subject)
        query = data.dataset.paired or data.dataset.query
        if cfg.measure.images is not None:
            query = Subset(query, evenly(len(query), cfg.measure.images))
        data.dataset = Splits(query, query)
        pairs = EvaluationData(pairs=data.pairs_dataloader)
        for way in cfg.measure.ways:
            title, same_box, color = WAYS[way]
            asked = [RegionCorrespondence(same_box=same_box, color=color, seed=seed) for seed in cfg.measure.seeds]
            found.setdefault((title, subject.title), []).append(
                [evaluator.run(subject.backbone, pairs) for evaluator in asked]
            )
    order = [WAYS[way].title for way in cfg.measure.ways]
    rows = [Row.of(*key, found[key]) for key in sorted(found, key=lambda key: order.index(key[0]))]
    say(as_markdown(rows))
    path = Path(cfg.out) / "correspondence.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n", encoding="utf-8")
    say(path)


class Row(NamedTuple):
    """The measures of one backbone for one way to make views, each with its spread: over trainings where there are
    several, else over seeds of the views.
    """

    views: str
    backbone: str
    exact: str
    near: str
    distance: str
    exact_by_chance: str
    near_by_chance: str
    distance_by_chance: str
    regions: int

    @classmethod
    def of(cls, views: str, title: str, found: Sequence[Sequence[Mapping[str, float]]]) -> Row:
        def shown(name: str, digits: int = 3) -> str:
            each = [[seed[f"correspondence/{name}"] for seed in training] for training in found]
            values = [mean(seeds) for seeds in each] if len(each) > 1 else each[0]
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{mean(values):.{digits}f}{spread}"

        return cls(
            views,
            title,
            shown("exact"),
            shown("near"),
            shown("distance", 1),
            shown("exact_chance"),
            shown("near_chance"),
            shown("distance_chance", 1),
            round(mean(seed["correspondence/regions"] for training in found for seed in training)),
        )


# -- what is looked at


def trainings(cfg: DictConfig) -> Iterator[Subject]:
    """The backbones of ``ckpt_path``, where a title may stand for several trainings; those of the first title come with
    random weights, too.
    """
    for number, (title, paths) in enumerate(named(cfg.ckpt_path).items()):
        for path in listed(paths):
            one = cast(DictConfig, OmegaConf.merge(cfg, {}))
            one.ckpt_path = {title: path}
            yield from subjects(one, untrained=number == 0)


def subjects(cfg: DictConfig, *, untrained: bool | None = None) -> Iterator[Subject]:
    """The backbones of ``ckpt_path``; with ``untrained`` the same one with random weights first."""
    from esvit_pl.commands.evaluation import untrained as with_random_weights

    untrained = cfg.untrained if untrained is None else untrained
    for number, (title, path) in enumerate(named(cfg.ckpt_path).items()):
        if isinstance(path, ListConfig):
            raise ValueError(
                f"ckpt_path names {len(path)} checkpoints {title}; a picture shows one of each name, "
                "measure=correspondence takes several for the spread between trainings"
            )
        one = cast(DictConfig, OmegaConf.merge(cfg, {"ckpt_path": path}))
        source = weights.evaluated(one)
        backbone = weights.frozen_backbone(one, source).to(device(cfg))
        if number == 0 and untrained:
            random = with_random_weights(cfg, source, backbone).to(device(cfg))
            random.transform = backbone.transform
            yield Subject("untrained", random, source)
        yield Subject(title, backbone, source)


def images_of(cfg: DictConfig, subject: Subject) -> tuple[ImageDataModule, Recipe]:
    """The images of ``dataset``, or of the checkpoint's training, prepared as in it."""
    one = cast(DictConfig, OmegaConf.merge(cfg, {}))
    line = evaluated_images.take_dataset(one, subject.source, "esvit-visualize")
    if line is not None:
        weights.say(line)
    recipe, _ = evaluated_images.preparation(one, subject.source)
    evaluated_images.keep(one, recipe)
    splits, _ = assemble.images(one)
    return assemble.datamodule(one, splits, recipe), recipe


def device(cfg: DictConfig) -> str:
    """ "cuda" or "cpu"."""
    import torch

    from esvit_pl.configs import trainers

    trainers.check_devices(cfg)
    return "cuda" if cfg.trainer.accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def pixels(path: str, backbone: Backbone | None) -> Tensor:
    """uint8 (3 h w) of a file."""
    from esvit_pl.datasets import decode

    return decode(path, getattr(getattr(backbone, "transform", None), "pixels", None))


def points(query: Any) -> list[tuple[float, float]]:
    """``[x,y]`` or a list of them."""
    plain: Any = OmegaConf.to_container(query) if isinstance(query, ListConfig) else query
    if plain is None:
        return []
    rows = plain if isinstance(plain, list) and plain and isinstance(plain[0], list) else [plain]
    if not all(
        isinstance(row, list) and len(row) == 2 and all(isinstance(x, int | float) for x in row) for row in rows
    ):
        raise ValueError(f"query must be [x,y] in pixels or a list of such points, got {plain}")
    return [(float(x), float(y)) for x, y in rows]


def metrics_file(run: str) -> Path:
    path = Path(run) / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{run} holds no metrics.csv; draw.runs needs folders of runs")
    return path


def put(cfg: DictConfig, figure: Any, name: str, path: str | None = None) -> None:
    """Save a figure in ``out`` and print where it lies."""
    from esvit_pl.visualize import save

    end = "" if path is None else f"_{file_name(Path(path).stem)}"
    say(save(figure, Path(cfg.out) / f"{name}{end}.png"))
