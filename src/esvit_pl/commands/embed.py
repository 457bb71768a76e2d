"""``esvit-embed``: features of images in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.commands.evaluation import origin
from esvit_pl.configs import evaluated_images, weights
from esvit_pl.configs.command_line import command, requires
from esvit_pl.printing import say

if TYPE_CHECKING:
    from esvit_pl.datasets import ImageDataset, Splits

EXAMPLES = [
    "esvit-embed ckpt_path=RUN                       # the images of its training, into features.npz",
    "esvit-embed ckpt_path=RUN dataset=folder dataset.root=photos/ out=photos.csv",
    "esvit-embed ckpt_path=RUN dataset=imagenet dataset.root=/data/imagenet split=val blocks=4 dtype=float16",
]
ENDINGS = (".npz", ".csv", ".parquet")
SPLITS = ("train", "val", "bank", "query")


@command(
    "embed",
    summary="features of images in a file.",
    examples=EXAMPLES,
    needs=requires("esvit-embed", "ckpt_path"),
    refuses=partial(evaluated_images.refuse_experiment, "esvit-embed"),
)
def main(cfg: DictConfig) -> None:
    weights.say(str(embed(cfg)))


def embed(cfg: DictConfig, images: Splits | None = None) -> Path:
    """The whole job; returns the file.

    Args:
        images: in place of ``cfg.dataset``.
    """
    import torch

    from esvit_pl.configs import assemble, trainers
    from esvit_pl.configs.processes import is_first_process
    from esvit_pl.datasets import Splits, Subset
    from esvit_pl.evaluation.stored import FeatureFolder
    from esvit_pl.modules.embedder import Embedder

    class Part(Splits):
        def describe(self) -> str:
            return f"images: {len(self.query):,}"

    out = Path(cfg.out)
    check(cfg, out)
    trainers.check_devices(cfg)
    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    line = evaluated_images.take_dataset(cfg, source, "esvit-embed") if images is None else None
    recipe, prepared = evaluated_images.preparation(cfg, source)
    assemble.check_channels(recipe, backbone)
    evaluated_images.keep(cfg, recipe)
    splits, _ = assemble.images(cfg, images)
    dataset = getattr(splits, cfg.split)
    if dataset is None:
        raise ValueError(f"split={cfg.split}: these images have none; choose split=train, bank or query")
    if cfg.blocks:
        backbone.last_blocks_width(cfg.blocks)  # raises where there are not so many blocks
    weights.say("\n".join(filter(None, [line, prepared])))

    about = {
        **origin(cfg, backbone, recipe, dataset),
        "blocks": cfg.blocks,
        "regions": cfg.regions,
        "dtype": cfg.dtype,
    }
    folder = FeatureFolder(out.with_name(f"{out.name}.partial"), about, number=len(dataset), begins=is_first_process())
    missing = folder.missing()
    if 0 < len(missing) < len(dataset):
        weights.say(f"{folder.folder} holds {len(dataset) - len(missing):,} of {len(dataset):,} images already")
    if len(missing):
        part = Subset(dataset, missing)
        data = assemble.datamodule(cfg, Part(part, part), recipe)
        module = Embedder(
            backbone,
            folder.writer,
            missing,
            blocks=cfg.blocks,
            regions=cfg.regions,
            dtype=getattr(torch, cfg.dtype),
        )
        trainer = trainers.quiet(cfg, bar=cfg.trainer.enable_progress_bar)
        trainer.validate(module, data, verbose=False)
    if is_first_process():
        write(folder, out, dataset, about, splits.classes)
    return out


def check(cfg: DictConfig, out: Path) -> None:
    """Refuse wrong settings before anything is loaded."""
    if out.suffix not in ENDINGS:
        raise ValueError(f"out={out} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:  # said now, not after hours
        raise ValueError(f"out={out} needs pyarrow: pip install 'esvit_pl[parquet]'; .npz and .csv do not")
    if out.exists() and not cfg.overwrite:
        raise ValueError(f"{out} is there already; overwrite=true replaces it, out= names another file")
    if cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split} must be one of {', '.join(SPLITS)}")
    if cfg.dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={cfg.dtype} must be float32 or float16")
    if cfg.blocks < 0:
        raise ValueError(f"blocks={cfg.blocks} must be 0 or more")


def write(
    folder: Any, out: Path, dataset: ImageDataset, about: Mapping[str, Any], classes: Sequence[str] | None
) -> None:
    """The file; images that the data set skips because they cannot be read are left out, and a line says so."""
    import numpy as np

    from esvit_pl.evaluation.stored import write_csv, write_npz, write_parquet

    skipped = folder.missing()
    kept = np.setdiff1d(np.arange(len(dataset)), skipped)
    if len(skipped):
        say(f"left out, for they cannot be read: {', '.join(dataset.name(int(index)) for index in skipped)}")
    names = [dataset.name(int(index)) for index in kept]
    labels = None if dataset.labels is None else np.array(dataset.labels)[kept]
    features = folder.merged(kept)
    about = {**about, "classes": None if labels is None else classes}
    if out.suffix == ".csv":
        write_csv(out, names, labels, features)
    elif out.suffix == ".parquet":
        write_parquet(out, names, labels, features, about)
    else:
        write_npz(out, names, labels, features, about)
    folder.remove()


if __name__ == "__main__":
    main()
