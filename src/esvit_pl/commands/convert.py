"""``esvit-convert``: a checkpoint of any format as a timm folder, safetensors, ONNX or a file of the released code."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esvit_pl.configs.command_line import command, requires
from esvit_pl.printing import say

if TYPE_CHECKING:
    from esvit_pl.backbones import Backbone
    from esvit_pl.checkpoints import Checkpoint

EXAMPLES = [
    "esvit-convert ckpt_path=RUN/checkpoints/last.ckpt to=timm out=my_swin",
    "esvit-convert ckpt_path=RUN/checkpoints/last.ckpt to=safetensors out=my_swin.safetensors network=student",
    "esvit-convert ckpt_path=RUN/checkpoints/last.ckpt to=onnx out=my_swin.onnx size=96",
    "esvit-convert ckpt_path=checkpoint_best.pth to=timm out=cvt backbone=cvt_tiny_w14 push=me/esvit-cvt",
]
FORMATS = ("timm", "safetensors", "onnx", "released")

_required = requires("esvit-convert", "ckpt_path", "to", "out")


def needs(cfg: DictConfig) -> str | None:
    if missing := _required(cfg):
        return missing
    if cfg.to not in FORMATS:
        return f"to={cfg.to} is not a format; choose to={', to='.join(FORMATS)}"
    if Path(cfg.out).exists() and not cfg.overwrite:
        return f"out={cfg.out} exists already; give another name, or overwrite=true"
    if cfg.to == "onnx" and (beside := _beside(Path(cfg.out))).exists() and not cfg.overwrite:
        return f"{beside}, which to=onnx writes too, exists already; give another name, or overwrite=true"
    if cfg.size is not None and cfg.size < 1:
        return f"size={cfg.size} is not a side of an image; give pixels, such as size=224"
    if cfg.push is not None and cfg.to != "timm":
        return f"push={cfg.push} uploads a timm folder; set to=timm, got to={cfg.to}"
    if cfg.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(cfg.push)):
        return f"push={cfg.push} does not name a repository; write push=USER/REPO"
    return None


@command(
    "convert",
    summary="a checkpoint as a timm folder, safetensors, ONNX or a released file.",
    examples=EXAMPLES,
    needs=needs,
)
def main(cfg: DictConfig) -> None:
    out = Path(cfg.out)
    if cfg.to == "onnx":
        from esvit_pl.checkpoints import onnx_graph

        onnx_graph.check_packages()  # before anything takes time
        for name in ("onnxscript", "onnx_ir"):  # they log every node
            logging.getLogger(name).setLevel(logging.WARNING)
    if cfg.to == "timm":
        _check_place(cfg, out, folder=True)
        write_folder(cfg, out)
        return
    _check_place(cfg, out, folder=False)
    say(f"{out}: {write_file(cfg, out)}")


def write_file(cfg: DictConfig, path: Path) -> str:
    """Write one of the formats that are one file; returns a line about it."""
    from esvit_pl.configs import weights

    if cfg.to == "released":
        from esvit_pl.checkpoints import read_checkpoint, released

        with weights.naming("ckpt_path"):
            released.save(read_checkpoint(cfg.ckpt_path, moments=True), path)
        return "as the released code writes it"
    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    if cfg.to == "safetensors":
        from esvit_pl.checkpoints import safetensors_file

        safetensors_file.save(backbone, path, about=about(cfg, source))
        return f"{kind(backbone)}; esvit_pl.load_backbone reads it"
    from esvit_pl.checkpoints import onnx_graph
    from esvit_pl.checkpoints.safetensors_file import preparation, recipe_of

    recipe = recipe_of(backbone)
    size = cfg.size or (backbone.spec.get("img_size", 224) if recipe is None else recipe.eval_crop)
    prepared = None if recipe is None else preparation(recipe, size)
    difference = onnx_graph.export(backbone, path, size=size, preparation=prepared)
    line = (
        f"{kind(backbone)}, for images of {size} px; onnxruntime and torch differ by at most {difference:.1e} of the "
        "largest value"
    )
    if prepared is None:
        return f"{line}; nothing says how images are prepared for these weights"
    beside = _beside(path)
    beside.write_text(json.dumps(prepared, indent=2) + "\n", encoding="utf-8")
    return f"{line}\n{beside}: how images are prepared for it, as in the file's metadata"


def _beside(path: Path) -> Path:
    """Where the preparation of the images stands beside an ONNX file."""
    return path.with_name(f"{path.name}.json")


def write_folder(cfg: DictConfig, out: Path) -> None:
    """Write the timm folder, and upload it if ``push`` says so."""
    from esvit_pl.checkpoints import timm_folder
    from esvit_pl.configs import weights

    source = weights.evaluated(cfg)
    backbone = weights.frozen_backbone(cfg, source)
    timm_folder.save(backbone, out, about=about(cfg, source))
    say(f'{out}: {kind(backbone)}; timm.create_model("local-dir:{out}", pretrained=True) reads it')
    if unlike := timm_folder.differences(backbone):
        shares = ", ".join(f"{side} px {_share(share)}" for side, share in unlike.items())
        say(
            "warning: on images of some sides timm's Swin computes other regions than these weights were trained with "
            f"({shares}: the largest difference, as a share of the largest value). timm rolls a map before it pads it, "
            f'the released code pads first. There use esvit_pl.load_backbone("{out}"), which computes what was trained'
        )
    if cfg.push is not None:
        say(push(out, cfg.push, private=cfg.private))


def _share(difference: float) -> str:
    return f"{difference:.2g}" if difference < float("inf") else "refused, no multiple of the patch"


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a timm folder of ours with its model card; returns the address.

    A card that the repository has already is kept, since somebody may have written it.

    Raises:
        ValueError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    from esvit_pl.checkpoints import timm_folder
    from esvit_pl.checkpoints.model_card import model_card

    read = timm_folder.read(folder)
    assert read.description is not None
    card = folder / "README.md"
    card.write_text(model_card(repo, read.description, architecture=read.architecture), encoding="utf-8")
    files = [timm_folder.CONFIG, timm_folder.WEIGHTS]
    try:
        hub = HfApi(library_name="esvit_pl")
        address = hub.create_repo(repo, private=private, exist_ok=True)
        if not hub.file_exists(repo, card.name):
            files.append(card.name)
        hub.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="Backbone for timm")
    except Exception as error:  # of the hub's client or of the network below it
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"push={repo}: {type(error).__name__}: {first}; `hf auth login` logs in, and {folder} holds all files"
        ) from error
    return f"{address}"


def about(cfg: DictConfig, source: Checkpoint) -> dict[str, Any]:
    """Where the weights come from, as plain JSON: what `checkpoints.shareable` lists, and the file's name."""
    from esvit_pl.checkpoints.shareable import shareable

    finished = source.epoch == ((source.config or {}).get("trainer") or {}).get("max_epochs")
    network = source.resolve(cfg.network)
    known = {
        "source": Path(source.path).name,
        "format": source.format,
        "network": network if network != "backbone" else None,
        "epoch": source.epoch,
        "config": shareable(source.config or {}) or None,
        "results": results_beside(Path(source.path)) if finished and network == source.resolve("encoder") else None,
    }
    plain = json.loads(json.dumps(known, default=str))
    return {name: value for name, value in plain.items() if value is not None}


def results_beside(checkpoint: Path) -> dict[str, Any] | None:
    """What the run of a checkpoint measured at its end; None if the run did not come to its end."""
    from esvit_pl.checkpoints.shareable import shareable_results

    path = checkpoint.parent.parent / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    return shareable_results(results) if results.get("status") == "finished" else None


def kind(backbone: Backbone) -> str:
    return f"{backbone.spec['name']}, {sum(p.numel() for p in backbone.parameters()):,} parameters"


def _check_place(cfg: DictConfig, out: Path, *, folder: bool) -> None:
    """Refuse to replace a file by a folder, a folder by a file, and the checkpoint itself, even with ``overwrite``."""
    source = Path(str(cfg.ckpt_path)).expanduser()
    if out.exists() and source.exists() and out.resolve() in (source.resolve(), _file_of(source)):
        raise ValueError(f"out={out} is the checkpoint that is to be converted; give another name")
    if out.exists() and out.is_dir() != folder:
        there, wanted = ("file", "folder") if folder else ("folder", "file")
        raise ValueError(f"out={out} is a {there}, and to= writes a {wanted}; give another name")


def _file_of(source: Path) -> Path | None:
    from esvit_pl.checkpoints.locate import last_checkpoint

    with suppress(ValueError):  # of a folder that holds none
        return last_checkpoint(source).resolve()
    return None


if __name__ == "__main__":
    main()
