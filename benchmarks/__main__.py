"""Ours against the straightforward form, on this machine: ``python -m benchmarks loss tokens``, from a checkout.

    loss        prototype losses: streamed, against all logits
    crops       views of JPEGs: here, in the worker, on the device, and as PIL recipes are usually written
    tokens      Swin: tokens only, against tokens and padding
    step        one step of a training, part by part and whole, against the straightforward form
    switches    module.compile and module.grad_checkpointing: time, memory, error (compiling takes minutes)
    kernels     where a GPU's time goes in a step of a training: its kernels by kind and by name, and where it waits
    roofline    what the products of a step take at least on a GPU (gpu=H100), by its data sheet; on paper
    vil         ViL's sliding attention against a full one
    knn         k-NN of a bank of ImageNet's size (bank_images=, query_images=), whole and in half precision
    listing     the start on a folder of very many images: files=2000000, made here (empty files)

Settings are those of esvit-bench: batch_size=, repeats=, gpu=, peak_tflops=, peak_gbytes=, out=, and every setting of
esvit-pretrain. loss and step know EsViT's objective alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.commands.bench import (
    Benchmark,
    bf16,
    build_backbone,
    chosen,
    data_sheet,
    device,
    gpu_here,
    in_words,
    parts_in_words,
    report,
    run,
    switches_in_words,
    training_step,
    unknown,
)
from esvit_pl.configs.command_line import UserError, command

if TYPE_CHECKING:
    from esvit_pl.augment import Recipe
    from esvit_pl.backbones import Backbone
    from esvit_pl.profiling.report import Report


def main() -> None:
    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    show()


def needs(cfg: DictConfig) -> str | None:
    return unknown("python -m benchmarks", cfg, BENCHMARKS)


@command("bench", summary="", needs=needs, bare_words="benchmarks")
def show(cfg: DictConfig) -> None:
    run(cfg, BENCHMARKS)


def loss(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.loss import loss_costs

    views, batch_size = given(cfg, batch_size=8)
    counts = region_counts(build_backbone(cfg), views)
    sizes = {"num_prototypes": cfg.loss.num_prototypes, "dim": cfg.loss.out_dim}
    yield report(
        cfg,
        "loss",
        f"losses with their prototype layers, {cfg.loss.num_prototypes:,} prototypes of width {cfg.loss.out_dim}, "
        f"batch {batch_size}, views of {in_words(counts)} regions, {cfg.trainer.precision}; forward and backward; "
        "straightforward holds all logits and every pair's targets, ours streams them; memory beyond the inputs",
        loss_costs(batch_size=batch_size, regions=counts, bf16=bf16(cfg), **sizes, **how(cfg)),
    )


def crops(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.crops import crop_rates

    views, batch_size = given(cfg, batch_size=16)
    yield report(
        cfg,
        "crops",
        f"views of {in_words(views.sizes)} px of JPEGs made here, batch {batch_size}, one thread, no other processes",
        crop_rates(views, images=(4 * batch_size, batch_size), batch_size=batch_size, **how(cfg)),
    )


def tokens(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.tokens import token_savings
    from esvit_pl.backbones.swin import Swin

    backbone = build_backbone(cfg)
    if not isinstance(backbone, Swin):
        raise UserError(f"tokens measures the padding of Swin, got backbone.name={cfg.backbone.name}; choose a Swin")
    views, batch_size = given(cfg, batch_size=4)
    crops = tuple((views.sizes.count(side), side) for side in dict.fromkeys(views.sizes))
    yield report(
        cfg,
        "tokens",
        f"{chosen(cfg, 'backbone')}, batch {batch_size}, views of {in_words(views.sizes)} px; forward and backward; "
        "straightforward computes padding, ours the tokens only; memory beyond the weights",
        token_savings(backbone, crops=crops, batch_size=batch_size, **how(cfg)),
    )


def step(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.step import step_costs
    from esvit_pl.configs import assemble

    views, batch_size = given(cfg, batch_size=4)
    yield report(
        cfg,
        "step",
        f"{chosen(cfg, 'backbone')}, {cfg.loss.num_prototypes:,} prototypes, batch {batch_size}, views of "
        f"{in_words(views.sizes)} px, {switches_in_words(cfg)}; memory is all that is held, "
        "weights and moments too",
        step_costs(
            build_backbone(cfg),
            assemble.construct(cfg, "loss"),
            sides=views.sizes,
            num_global=views.num_global,
            batch_size=batch_size,
            bf16=bf16(cfg),
            compile=cfg.module.compile,
            grad_checkpointing=cfg.module.grad_checkpointing,
            **how(cfg),
        ),
    )


def switches(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from benchmarks import switches

    views, batch_size = given(cfg, batch_size=4)
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
            autocast=torch.bfloat16 if bf16(cfg) else None,
            **how(cfg),
            **{key: value for key, value in spec.items() if key != "name"},
        ),
    )


def kernels(cfg: DictConfig) -> Iterator[Report]:
    import torch

    from benchmarks import kernels
    from esvit_pl.configs import assemble
    from esvit_pl.profiling.training import Noise, Training

    views, batch_size = given(cfg, batch_size=cfg.datamodule.batch_size)
    if device(cfg) != "cuda":
        raise UserError("kernels watches a GPU, and this would run on a CPU; set trainer=gpu where there is one")
    step = training_step(cfg, views)
    autocast = torch.bfloat16 if bf16(cfg) else None
    training = Training(step, assemble.construct(cfg, "optimizer"), autocast=autocast)
    batch = Noise(step, views.sizes, batch_size).batch(device(cfg))
    seen, alone = kernels.step_kernels(lambda: training(batch), steps=cfg.repeats, device=device(cfg))
    what = (
        f"{parts_in_words(cfg, step.objective.spec)}, batch {batch_size}, views of {in_words(views.sizes)} px, "
        f"{switches_in_words(cfg)}; a step takes {1000 * alone:.1f} ms"
    )
    for name, rows in (("kinds", kernels.kinds), ("longest", kernels.longest)):
        yield report(cfg, f"kernels, {name}", what, iter(rows(seen, steps=cfg.repeats, step_seconds=alone)))


def roofline(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.roofline import bounds
    from esvit_pl.configs import assemble
    from esvit_pl.profiling.data_sheets import DATA_SHEETS
    from esvit_pl.profiling.report import Report

    views, batch_size = given(cfg, batch_size=cfg.datamodule.batch_size)
    gpu = cfg.gpu or gpu_here(cfg)
    sheet = data_sheet(cfg, gpu)
    if not all(sheet):
        raise UserError(
            f"roofline reads a GPU's data sheet, and there is none of {gpu or 'a CPU'}; choose gpu= one of "
            f"{', '.join(DATA_SHEETS)}, or give peak_tflops= and peak_gbytes="
        )
    objective = assemble.construct(cfg, "loss")
    yield Report(
        "roofline",
        f"{chosen(cfg, 'backbone')}, {cfg.loss.num_prototypes:,} prototypes, batch {batch_size}, views of "
        f"{in_words(views.sizes)} px; what the products of a step take at least in bfloat16, all else free; on paper",
        {"gpu": f"{gpu or 'a GPU'} with {sheet.tflops:g} TFLOP/s and {sheet.gbytes:g} GB/s"},
        bounds(build_backbone(cfg), objective, views.sizes, views.num_global, batch_size=batch_size, sheet=sheet),
    )


def vil(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.vil import attention_costs

    yield report(
        cfg,
        "vil",
        "ViL's sliding attention against a full one; 96 channels, 3 heads, chunks of 7, batch 2; forward and backward",
        attention_costs(**how(cfg)),
    )


def knn(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.knn import searches

    channels = build_backbone(cfg).width
    sizes = {"bank_images": cfg.bank_images, "query_images": cfg.query_images, "channels": channels}
    yield report(
        cfg,
        "knn",
        f"made features of {channels} channels, a bank of {cfg.bank_images:,} images, {cfg.query_images:,} queries; "
        "straightforward holds all similarities of 256 queries, and computes them for each k again; memory includes "
        "the bank; 'for 50 000' is projected from these queries",
        searches(**sizes, **how(cfg)),
    )


def listing(cfg: DictConfig) -> Iterator[Report]:
    from benchmarks.listing import starts

    yield report(
        cfg,
        "listing",
        "a process until it knows its images, with four loading processes; peak memory includes the libraries'",
        starts(cfg.files),
    )


BENCHMARKS: dict[str, Benchmark] = {
    "loss": loss,
    "crops": crops,
    "tokens": tokens,
    "step": step,
    "switches": switches,
    "kernels": kernels,
    "roofline": roofline,
    "vil": vil,
    "knn": knn,
    "listing": listing,
}


def given(cfg: DictConfig, *, batch_size: int) -> tuple[Recipe, int]:
    """The views, and the batch size: that of the settings, or this one."""
    from esvit_pl.configs import assemble

    views: Recipe = assemble.construct(cfg, "augment")
    return views, cfg.batch_size or batch_size


def how(cfg: DictConfig) -> dict[str, Any]:
    """What all measurements take."""
    return {"repeats": cfg.repeats, "device": device(cfg)}


def region_counts(backbone: Backbone, recipe: Recipe) -> tuple[int, ...]:
    """Regions of each view. Nothing is computed."""
    from copy import deepcopy

    import torch

    shape = deepcopy(backbone).to("meta").eval()
    seen = {side: shape(torch.empty(1, recipe.channels, side, side, device="meta")) for side in set(recipe.sizes)}
    return tuple(seen[side].regions.shape[1] for side in recipe.sizes)


if __name__ == "__main__":
    main()
