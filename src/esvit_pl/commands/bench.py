"""``esvit-bench``: what a training takes on this machine, its memory and its images a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command
from esvit_pl.printing import say

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.pretraining import PretrainingStep
    from esvit_pl.profiling.data_sheets import DataSheet
    from esvit_pl.profiling.report import Report

EXAMPLES = [
    "esvit-bench memory datamodule.batch_size=64 trainer=gpu",
    "esvit-bench recipe trainer=gpu datamodule=device_color",
    "esvit-bench methods experiment=embedded batch_size=64 losses=[view,view_region,moby]",
    "esvit-bench throughput backbones=[swin_tiny_w7,deit_small_p16]",
]
IN_A_CHECKOUT = ("loss", "crops", "tokens", "step", "switches", "kernels", "roofline", "vil", "knn", "listing")
"""Comparisons with the straightforward form; they live beside the package (benchmarks/)."""

Benchmark = Callable[[DictConfig], "Iterator[Report]"]


def needs(cfg: DictConfig) -> str | None:
    moved = [name for name in cfg.benchmarks if name in IN_A_CHECKOUT]
    if moved:
        return f"esvit-bench {moved[0]} is now `python -m benchmarks {moved[0]}`, in a checkout of the library"
    return unknown("esvit-bench", cfg, BENCHMARKS)


def unknown(program: str, cfg: DictConfig, known: Mapping[str, Benchmark]) -> str | None:
    """What is wrong with the names of benchmarks or with their settings, if anything is."""
    choices = ", ".join(known)
    if not cfg.benchmarks:
        return f"{program} needs a benchmark or several: {choices}"
    wrong = [name for name in cfg.benchmarks if name not in known]
    for setting in ("batch_size", "repeats"):
        if cfg[setting] is not None and cfg[setting] < 1:
            return f"{setting}={cfg[setting]} must be 1 or more"
    return f"there is no benchmark {' and no '.join(wrong)}; there are {choices}" if wrong else None


@command(
    "bench",
    summary="predict memory, measure throughput of a training.",
    examples=EXAMPLES,
    needs=needs,
    bare_words="benchmarks",
)
def main(cfg: DictConfig) -> None:
    run(cfg, BENCHMARKS)


def run(cfg: DictConfig, known: Mapping[str, Benchmark]) -> None:
    """Print the tables of the chosen benchmarks, and write them as JSON."""
    from esvit_pl.configs import own_images
    from esvit_pl.profiling.report import write_json

    cfg, _ = own_images.of_job(cfg)
    for name in cfg.benchmarks:
        reports = []
        for report in known[name](cfg):
            say(report.title())
            reports.append(report.finished())
            say(f"\n{report.table()}\n")
        say(f"{write_json(reports, Path(cfg.out) / f'{name}.json')}\n")


def memory(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from esvit_pl.configs import assemble
    from esvit_pl.profiling.available_memory import available_bytes
    from esvit_pl.profiling.batch_size import judge, smallest_batch
    from esvit_pl.profiling.memory import memory_needs

    views: Recipe = assemble.construct(cfg, "augment")
    with torch.device("cpu" if cfg.measured else "meta"):
        module = assemble.pretrainer(cfg, views)
    step, recipe = module.step, module.optimizer
    batch_size = cfg.batch_size or cfg.datamodule.batch_size
    accumulate = cfg.trainer.accumulate_grad_batches
    how = {"sides": views.sizes, "precision": cfg.trainer.precision, "device": device(cfg)}
    yield report(
        cfg,
        "memory",
        f"{parts_in_words(cfg, step.objective.spec)}, views of {in_words(views.sizes)} px, "
        f"{cfg.trainer.precision}, {cfg.optimizer.name}; the most that is allocated at once, and what it is then",
        memory_needs(
            step,
            recipe,
            batches=sorted({max(smallest_batch(step), batch_size // part) for part in (4, 2, 1)}),
            measured=cfg.measured,
            accumulate=accumulate,
            **how,
        ),
    )
    there = available_bytes(device(cfg))
    say(judge(step, recipe, batch=batch_size * accumulate, available_bytes=there, **how))


def recipe(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from esvit_pl.configs import assemble
    from esvit_pl.profiling.recipe import model_flops, recipe_rates, step_rate

    views: Recipe = assemble.construct(cfg, "augment")
    batch_size = cfg.batch_size or (64 if device(cfg) == "cuda" else 4)
    at_best = 1e12 * data_sheet(cfg, gpu_here(cfg)).tflops or None
    objective = assemble.construct(cfg, "loss")
    flops = model_flops(build_backbone(cfg), objective, views.sizes, views.num_global)
    step = step_rate(
        partial(training_step, cfg, views),
        assemble.construct(cfg, "optimizer"),
        views.sizes,
        batch_size=batch_size,
        repeats=cfg.repeats,
        device=device(cfg),
        autocast=torch.bfloat16 if bf16(cfg) else None,
    )
    way, loader = loader_rate(cfg, views, batch_size)
    yield report(
        cfg,
        "recipe",
        f"{parts_in_words(cfg, objective.spec)}, batch {batch_size}, views of {in_words(views.sizes)} px, "
        f"{switches_in_words(cfg)}; {flops / 1e9:.3g} GFLOPs an image; utilisation of "
        f"{f'{at_best / 1e12:g}' if at_best else 'unknown'} TFLOP/s; loader: {way}; memory is all that the step holds, "
        "weights and moments too",
        recipe_rates(step, loader, flops=flops, device_flops=at_best),
    )


def methods(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from esvit_pl.configs import assemble
    from esvit_pl.configs.compose import again, options
    from esvit_pl.profiling.methods import Method, costs

    found: dict[str, Method] = {}
    sides: dict[tuple[int, ...], list[str]] = {}
    own_first = sorted(options("loss"), key=lambda loss: not loss.startswith("view"))
    for loss in cfg.losses or own_first:
        its = again(f"loss={loss}")
        views: Recipe = assemble.construct(its, "augment")
        try:
            with torch.device("meta"):
                assemble.pretrainer(its, views)
        except (ValueError, NotImplementedError) as refusal:
            if cfg.losses:
                raise
            say(f"without {loss}: {refusal}")
            continue
        sides.setdefault(tuple(views.sizes), []).append(loss)
        found[loss] = Method(partial(training_step, its, views), assemble.construct(its, "optimizer"), views.sizes)
    batch_size = cfg.batch_size or (64 if device(cfg) == "cuda" else 4)
    seen = "; ".join(f"{in_words(views)} px for {', '.join(losses)}" for views, losses in sides.items())
    yield report(
        cfg,
        "methods",
        f"{chosen(cfg, 'backbone')}, batch {batch_size}, {switches_in_words(cfg)}; views of {seen}",
        costs(
            found,
            batch_size=batch_size,
            repeats=cfg.repeats,
            device=device(cfg),
            autocast=torch.bfloat16 if bf16(cfg) else None,
        ),
    )


def training_step(cfg: DictConfig, views: Recipe) -> PretrainingStep:
    """The step of this training on its device, compiled if it shall be."""
    from esvit_pl.compiling import compile_
    from esvit_pl.configs import assemble

    step = assemble.pretrainer(cfg, views).step.to(device(cfg))
    if cfg.module.compile:
        compile_([network for network in (step.student, step.teacher) if network is not None], device(cfg))
    return step


def loader_rate(cfg: DictConfig, views: Recipe, batch_size: int) -> tuple[str, float]:
    """What is loaded, in words, and images a second of the training loader on JPEGs made here. With
    ``datamodule.color_on=device`` colour is not in it."""
    from esvit_pl import datasets
    from esvit_pl.data import ImageDataModule
    from esvit_pl.datasets import Splits, Subset
    from esvit_pl.profiling import loader
    from esvit_pl.profiling.photographs import photographs_in_a_folder

    color_on, reduced = cfg.datamodule.color_on, cfg.datamodule.reduced_decoding
    with photographs_in_a_folder(64, (375, 500)) as folder:
        jpegs = datasets.folder(folder).train
        data = ImageDataModule(
            Splits(jpegs),
            views,
            batch_size=batch_size,
            num_workers=cfg.datamodule.num_workers,
            persistent_workers=False,
            color_on=color_on,
            reduced_decoding=reduced,
        )
        images = loader.batches_needed(data.num_workers) * batch_size
        data.dataset = Splits(Subset(jpegs, [index % len(jpegs) for index in range(images)]))
        rate = loader.loader_rate(data.train_dataloader(), batch_size=batch_size, num_workers=data.num_workers)
    way = f"{color_on}_color" + (", reduced_decoding" if reduced else "")
    return f"{way}, {data.num_workers} processes, JPEGs of 500 x 375 px", rate


def throughput(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.configs.compose import list_backbones
    from esvit_pl.profiling.measure import machine
    from esvit_pl.profiling.published import RIVALS
    from esvit_pl.profiling.report import Report, as_words
    from esvit_pl.profiling.throughput import picture
    from esvit_pl.profiling.throughput import throughput as measure
    from esvit_pl.visualize import save

    rows: list[Any] = []
    names = cfg.backbones or [name for name in list_backbones() if name != "timm"]
    builders = {name: partial(backbone_of, name) for name in names}

    def measured() -> Iterator[Any]:
        for row in measure(
            builders, batch_size=batch_size, precision="bf16" if bf16(cfg) else "float32", device=device(cfg)
        ):
            rows.append(row)
            yield row

    batch_size = cfg.batch_size or 1
    what = f"backbones without heads, images of 224 px, batch {batch_size}, {cfg.trainer.precision}, inference"
    yield report(cfg, "throughput", f"{what}; beside them what the paper publishes", measured())
    yield Report("published", "the paper's rivals, measured by their authors", {"gpu": "V100"}, RIVALS)
    here = machine(device(cfg))
    path = Path(cfg.out) / "throughput.png"
    say(save(picture(rows, where=here.get("gpu", as_words(here))), path))


BENCHMARKS: dict[str, Benchmark] = {"memory": memory, "recipe": recipe, "methods": methods, "throughput": throughput}


def report(cfg: DictConfig, name: str, what: str, rows: Iterator[Any]) -> Report:
    from esvit_pl.profiling.measure import machine
    from esvit_pl.profiling.report import Report

    return Report(name, what, machine(device(cfg)), rows)


def device(cfg: DictConfig) -> str:
    """Where the trainer would run: "cuda" or "cpu"."""
    import torch

    asked = cfg.trainer.accelerator
    if asked in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={asked}, and torch {torch.__version__} sees no GPU here; trainer=cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def gpu_here(cfg: DictConfig) -> str:
    """Name of the GPU that is measured; empty on a CPU."""
    import torch

    return torch.cuda.get_device_name() if device(cfg) == "cuda" else ""


def data_sheet(cfg: DictConfig, gpu: str) -> DataSheet:
    """The data sheet of a GPU; unknown numbers are 0, and the settings replace what is known."""
    from esvit_pl.profiling.data_sheets import DataSheet
    from esvit_pl.profiling.data_sheets import data_sheet as look_up

    known = look_up(gpu) or DataSheet(0, 0)
    return DataSheet(cfg.peak_tflops or known.tflops, cfg.peak_gbytes or known.gbytes)


def bf16(cfg: DictConfig) -> bool:
    """Whether networks run in bfloat16 where autocast lets them."""
    if cfg.trainer.precision not in ("32-true", "bf16-mixed", 32, "32"):
        raise ValueError(
            f"benchmarks measure trainer.precision=32-true and bf16-mixed, got {cfg.trainer.precision}; choose one"
        )
    return bool(cfg.trainer.precision == "bf16-mixed")


def build_backbone(cfg: DictConfig) -> Backbone:
    from esvit_pl.configs import assemble

    assemble.seed_weights(cfg)
    backbone: Backbone = assemble.construct(cfg, "backbone")
    return backbone


def backbone_of(name: str) -> Backbone:
    """A file of conf/backbone with random weights."""
    from esvit_pl.configs import assemble
    from esvit_pl.configs.compose import compose

    backbone: Backbone = assemble.construct(compose("pretrain", f"backbone={name}"), "backbone")
    return backbone


def in_words(numbers: Any) -> str:
    """``2 x 224 + 8 x 96``"""
    numbers = list(numbers)
    return " + ".join(f"{numbers.count(number)} x {number}" for number in dict.fromkeys(numbers))


def chosen(cfg: DictConfig, group: str) -> str:
    """The option of a group by its name."""
    from esvit_pl.configs import assemble

    return str(assemble.choice(group))


def switches_in_words(cfg: DictConfig) -> str:
    """Precision, and what speeds the step up or saves memory."""
    switched = [f"module.{name}=true" for name in ("compile", "grad_checkpointing") if cfg.module[name]]
    return ", ".join([str(cfg.trainer.precision), *switched])


def parts_in_words(cfg: DictConfig, spec: Mapping[str, Any]) -> str:
    """Backbone and loss by the names of their options, and the sizes that the objective's spec holds."""
    sizes = [f"{name}={value}" for name, value in spec.items() if type(value) is int and value > 1]
    return f"{chosen(cfg, 'backbone')}, loss {chosen(cfg, 'loss')}" + (f" ({', '.join(sizes)})" if sizes else "")


if __name__ == "__main__":
    main()
