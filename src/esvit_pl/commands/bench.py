"""``esvit-bench``: the parts of a training against their straightforward forms, on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command, words_as_setting

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.profiling.data_sheets import DataSheet
    from esvit_pl.profiling.report import Report

EXAMPLES = [
    "esvit-bench loss tokens                                      # of the Swin-T recipe",
    "esvit-bench step backbone=swin_tiny_w14 batch_size=2",
    "esvit-bench memory datamodule.batch_size=64 trainer=gpu",
    "esvit-bench recipe trainer=gpu datamodule=device_color",
    "esvit-bench roofline gpu=H100 backbone=swin_base_w7",
]


def main() -> None:
    sys.argv[1:] = words_as_setting(sys.argv[1:], "benchmarks")
    show()


def needs(cfg: DictConfig) -> str | None:
    choices = ", ".join(BENCHMARKS)
    if not cfg.benchmarks:
        return f"esvit-bench needs a benchmark or several: {choices}"
    unknown = [name for name in cfg.benchmarks if name not in BENCHMARKS]
    return f"there is no benchmark {' and no '.join(unknown)}; there are {choices}" if unknown else None


@command("bench", summary="measure losses, tokens, crops, steps on this machine.", examples=EXAMPLES, needs=needs)
def show(cfg: DictConfig) -> None:
    from esvit_pl.profiling.report import write_json

    for name in cfg.benchmarks:
        reports = []
        for report in BENCHMARKS[name](cfg):
            print(report.title(), flush=True)
            reports.append(report.finished())
            print(f"\n{report.table()}\n", flush=True)
        print(f"{write_json(reports, Path(cfg.out) / f'{name}.json')}\n", flush=True)


def loss(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.benchmarks.loss import loss_costs
    from esvit_pl.configs import assemble

    recipe, backbone = assemble.construct(cfg, "augment"), build_backbone(cfg)
    counts = region_counts(backbone, recipe)
    batch_size = cfg.batch_size or 8
    yield report(
        cfg,
        "loss",
        f"losses with their prototype layers, {cfg.loss.num_prototypes:,} prototypes of width {cfg.loss.out_dim}, "
        f"batch {batch_size}, views of {in_words(counts)} regions, {cfg.trainer.precision}; forward and backward; "
        "straightforward holds all logits and every pair's targets, ours streams them; memory beyond the inputs",
        loss_costs(
            batch_size=batch_size,
            num_prototypes=cfg.loss.num_prototypes,
            dim=cfg.loss.out_dim,
            regions=counts,
            repeats=cfg.repeats,
            device=device(cfg),
            bf16=bf16(cfg),
        ),
    )


def crops(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.benchmarks.crops import crop_rates
    from esvit_pl.configs import assemble

    recipe: Recipe = assemble.construct(cfg, "augment")
    batch_size = cfg.batch_size or 16
    yield report(
        cfg,
        "crops",
        f"views of {in_words(recipe.sizes)} px of JPEGs made here, batch {batch_size}, one thread, no other processes",
        crop_rates(
            recipe, images=(4 * batch_size, batch_size), batch_size=batch_size, repeats=cfg.repeats, device=device(cfg)
        ),
    )


def tokens(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.backbones.swin import Swin
    from esvit_pl.benchmarks.tokens import token_savings
    from esvit_pl.configs import assemble

    backbone = build_backbone(cfg)
    if not isinstance(backbone, Swin):
        raise ValueError(f"tokens measures the padding of Swin, got backbone.name={cfg.backbone.name}; choose a Swin")
    recipe: Recipe = assemble.construct(cfg, "augment")
    batch_size = cfg.batch_size or 4
    sizes = recipe.sizes
    yield report(
        cfg,
        "tokens",
        f"{chosen(cfg, 'backbone')}, batch {batch_size}, views of {in_words(sizes)} px; forward and backward; "
        "straightforward computes padding, ours the tokens only; memory beyond the weights",
        token_savings(
            backbone,
            crops=tuple((sizes.count(side), side) for side in dict.fromkeys(sizes)),
            batch_size=batch_size,
            repeats=cfg.repeats,
            device=device(cfg),
        ),
    )


def step(cfg: DictConfig) -> Iterator[Report]:
    yield step_report(cfg, cfg.batch_size or 4)


def recipe(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.benchmarks.crops import loader_rate
    from esvit_pl.benchmarks.recipe import model_flops, recipe_rates
    from esvit_pl.configs import assemble

    views: Recipe = assemble.construct(cfg, "augment")
    batch_size = cfg.batch_size or (64 if device(cfg) == "cuda" else 4)
    parts = step_report(cfg, batch_size)
    yield parts
    *_, whole = parts.rows
    at_best = 1e12 * data_sheet(cfg, gpu_here(cfg)).tflops or None
    flops = model_flops(build_backbone(cfg), assemble.construct(cfg, "loss"), views.sizes, views.num_global)
    loader = loader_rate(
        views,
        batch_size=batch_size,
        num_workers=cfg.datamodule.num_workers,
        color_on=cfg.datamodule.color_on,
        reduced_decoding=cfg.datamodule.reduced_decoding,
    )
    yield report(
        cfg,
        "recipe",
        f"{flops / 1e9:.3g} GFLOPs an image; utilisation of {f'{at_best / 1e12:g}' if at_best else 'unknown'} TFLOP/s; "
        f"loader: {loader.way}, {loader.num_workers} processes, JPEGs of {loader.image} px",
        recipe_rates(whole, loader.images_per_second, batch_size=batch_size, flops=flops, device_flops=at_best),
    )


def step_report(cfg: DictConfig, batch_size: int) -> Report:
    from esvit_pl.benchmarks.step import step_costs
    from esvit_pl.configs import assemble

    views: Recipe = assemble.construct(cfg, "augment")
    switched = [f"module.{name}=true" for name in ("compile", "grad_checkpointing") if cfg.module[name]]
    return report(
        cfg,
        "step",
        f"{chosen(cfg, 'backbone')}, {cfg.loss.num_prototypes:,} prototypes, batch {batch_size}, views of "
        f"{in_words(views.sizes)} px, {', '.join([cfg.trainer.precision, *switched])}; memory is all that is held, "
        "weights and moments too",
        step_costs(
            build_backbone(cfg),
            assemble.construct(cfg, "loss"),
            sides=views.sizes,
            num_global=views.num_global,
            batch_size=batch_size,
            repeats=cfg.repeats,
            device=device(cfg),
            bf16=bf16(cfg),
            compile=cfg.module.compile,
            grad_checkpointing=cfg.module.grad_checkpointing,
        ),
    )


def switches(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from esvit_pl.benchmarks import switches
    from esvit_pl.configs import assemble

    views: Recipe = assemble.construct(cfg, "augment")
    batch_size = cfg.batch_size or 4
    spec = build_backbone(cfg).spec
    yield report(
        cfg,
        "switches",
        f"{chosen(cfg, 'backbone')} with its heads, batch {batch_size}, views of {in_words(views.sizes)} px, "
        f"{cfg.trainer.precision}; the student's forward and backward; memory beyond weights, views and gradients",
        switches.rows(
            backbone=spec["name"],
            batch_size=batch_size,
            sides=views.sizes,
            repeats=cfg.repeats,
            device=device(cfg),
            autocast=torch.bfloat16 if bf16(cfg) else None,
            **{key: value for key, value in spec.items() if key != "name"},
        ),
    )


def memory(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from esvit_pl.benchmarks.memory import available_bytes, judge, memory_needs
    from esvit_pl.configs import assemble

    views: Recipe = assemble.construct(cfg, "augment")
    with torch.device("cpu" if cfg.measured else "meta"):
        module = assemble.pretrainer(cfg, views)
    wanted = (cfg.batch_size or cfg.datamodule.batch_size) * cfg.trainer.accumulate_grad_batches
    batch_size = cfg.batch_size or cfg.datamodule.batch_size
    how = {"sides": views.sizes, "precision": cfg.trainer.precision, "device": device(cfg)}
    yield report(
        cfg,
        "memory",
        f"{chosen(cfg, 'backbone')}, {cfg.loss.num_prototypes:,} prototypes, views of {in_words(views.sizes)} px, "
        f"{cfg.trainer.precision}, {cfg.optimizer.name}; the most that is allocated at once, and what it is then",
        memory_needs(
            module,
            batches=sorted({max(1, batch_size // 4), max(1, batch_size // 2), batch_size}),
            measured=cfg.measured,
            accumulate=cfg.trainer.accumulate_grad_batches,
            **how,
        ),
    )
    print(judge(module, batch=wanted, available_bytes=available_bytes(device(cfg)), **how), flush=True)


def roofline(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.benchmarks.roofline import bounds
    from esvit_pl.configs import assemble
    from esvit_pl.profiling.data_sheets import DATA_SHEETS
    from esvit_pl.profiling.report import Report

    views: Recipe = assemble.construct(cfg, "augment")
    batch_size = cfg.batch_size or cfg.datamodule.batch_size
    gpu = cfg.gpu or gpu_here(cfg)
    sheet = data_sheet(cfg, gpu)
    if not all(sheet):
        raise ValueError(
            f"roofline reads a GPU's data sheet, and there is none of {gpu or 'a CPU'}; choose gpu= one of "
            f"{', '.join(DATA_SHEETS)}, or give peak_tflops= and peak_gbytes="
        )
    yield Report(
        "roofline",
        f"{chosen(cfg, 'backbone')}, {cfg.loss.num_prototypes:,} prototypes, batch {batch_size}, views of "
        f"{in_words(views.sizes)} px; what the products of a step take at least in bfloat16, all else free; on paper",
        {"gpu": f"{gpu or 'a GPU'} with {sheet.tflops:g} TFLOP/s and {sheet.gbytes:g} GB/s"},
        bounds(
            build_backbone(cfg),
            assemble.construct(cfg, "loss"),
            views.sizes,
            views.num_global,
            batch_size=batch_size,
            sheet=sheet,
        ),
    )


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
    print(save(picture(rows, where=here.get("gpu", as_words(here))), path), flush=True)


def vil(cfg: DictConfig) -> Iterator[Report]:
    from esvit_pl.benchmarks.vil import attention_costs

    yield report(
        cfg,
        "vil",
        "ViL's sliding attention against a full one; 96 channels, 3 heads, chunks of 7, batch 2; forward and backward",
        attention_costs(repeats=cfg.repeats, device=device(cfg)),
    )


BENCHMARKS: dict[str, Callable[[DictConfig], Iterator[Report]]] = {
    "loss": loss,
    "crops": crops,
    "tokens": tokens,
    "step": step,
    "switches": switches,
    "memory": memory,
    "recipe": recipe,
    "roofline": roofline,
    "throughput": throughput,
    "vil": vil,
}


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
    """Of a GPU by its name, 0 where it is unknown; the settings win."""
    from esvit_pl.profiling.data_sheets import DataSheet
    from esvit_pl.profiling.data_sheets import data_sheet as look_up

    known = look_up(gpu) or DataSheet(0, 0)
    return DataSheet(cfg.peak_tflops or known.tflops, cfg.peak_gbytes or known.gbytes)


def bf16(cfg: DictConfig) -> bool:
    """Whether networks run in bfloat16 where autocast lets them."""
    if cfg.trainer.precision not in ("32-true", "bf16-mixed", 32, "32"):
        raise ValueError(
            f"esvit-bench measures trainer.precision=32-true and bf16-mixed, got {cfg.trainer.precision}; choose one"
        )
    return cfg.trainer.precision == "bf16-mixed"


def build_backbone(cfg: DictConfig) -> Backbone:
    from esvit_pl.configs import assemble

    assemble.seed_weights(cfg)
    return assemble.construct(cfg, "backbone")


def backbone_of(name: str) -> Backbone:
    """A file of conf/backbone with random weights."""
    from esvit_pl.configs import assemble
    from esvit_pl.configs.compose import compose

    return assemble.construct(compose("pretrain", f"backbone={name}"), "backbone")


def region_counts(backbone: Backbone, recipe: Recipe) -> tuple[int, ...]:
    """Regions of each view. Nothing is computed."""
    from copy import deepcopy

    import torch

    shape = deepcopy(backbone).to("meta").eval()
    seen = {side: shape(torch.empty(1, recipe.channels, side, side, device="meta")) for side in set(recipe.sizes)}
    return tuple(seen[side].regions.shape[1] for side in recipe.sizes)


def in_words(numbers: Any) -> str:
    """``2 x 224 + 8 x 96``"""
    numbers = list(numbers)
    return " + ".join(f"{numbers.count(number)} x {number}" for number in dict.fromkeys(numbers))


def chosen(cfg: DictConfig, group: str) -> str:
    """The option of a group by its name."""
    from esvit_pl.configs import assemble

    return str(assemble.choice(group))


if __name__ == "__main__":
    main()
