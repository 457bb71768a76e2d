"""One door for every format: a file, a folder, or a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm

from esvit_pl.augment import Recipe
from esvit_pl.checkpoints import pretraining_file, released, safetensors_file, timm_folder
from esvit_pl.checkpoints.checkpoint import Checkpoint, under
from esvit_pl.checkpoints.finite import check_finite
from esvit_pl.checkpoints.locate import WEIGHTS, last_checkpoint, missing
from esvit_pl.checkpoints.other_files import refuse_other_files
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.checkpoints.unwrap import flattened, is_weight

_HUB = ("hf-hub:", "hf_hub:")


def read_checkpoint(
    path_or_name: str | Path, *, moments: bool = False, backbone: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Read the file or folder at a path, or the model of a name.

    Args:
        path_or_name: as in `load_backbone`.
        moments: whether to read the optimizer's state, too.
        backbone: spec of the backbone that the weights are for. Weights of others may need it, such as a ConvNeXt's;
            files that say it themselves do not.

    Raises:
        ValueError: as in `load_backbone`.
    """
    if "://" in str(path_or_name):
        raise ValueError(
            f"{path_or_name} is an address, and files are not fetched from addresses; download it, look at whose it "
            "is, and give its path"
        )
    with told(str(path_or_name)):
        found = _read(str(path_or_name), moments=moments, backbone=backbone)
        check_finite(found)
    return found


@contextmanager
def told(name: str) -> Iterator[None]:
    """Say in a sentence that a file's description of itself has wrong types, or lacks something."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError) as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"{name}: the description in it is not as this library writes it ({what})") from error


def _read(name: str, *, moments: bool, backbone: Mapping[str, Any] | None) -> Checkpoint:
    path = Path(name.removeprefix("local-dir:")).expanduser()
    if timm_folder.is_one(path):
        return _folder(path, name)
    if path.is_file() or path.is_dir():
        return _file(last_checkpoint(path), moments=moments, backbone=backbone)
    return _named(name)


def _file(path: Path, *, moments: bool, backbone: Mapping[str, Any] | None) -> Checkpoint:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        return _safetensors(path, backbone)
    refuse_other_files(path)
    content = read_pickled(path)
    if pretraining_file.is_ours(content):
        return pretraining_file.read(content, str(path), moments=moments)
    if released.is_released(content):
        return released.read(content, str(path), moments=moments, backbone=backbone)
    if not isinstance(content, Mapping) or not any(map(is_weight, flattened(content))):
        kind = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            kind = f"a dict with {', '.join(map(str, list(content)[:6]))}" if content else "an empty dict"
        raise ValueError(
            f"{path} is not a known kind of checkpoint; it holds {kind}. Known are those of esvit-pretrain and of the "
            "released EsViT and DINO, and dicts of weights"
        )
    form = "weights of the released code or timm"
    return released.read_weights(content, str(path), form=form, backbone=backbone)


def _safetensors(path: Path, backbone: Mapping[str, Any] | None) -> Checkpoint:
    state, description = safetensors_file.read(path)
    if description is None:
        return released.read_weights(state, str(path), form="safetensors without our description", backbone=backbone)
    return Checkpoint(
        str(path),
        "safetensors",
        description["backbone"],
        {"backbone": under("backbone.", state)},
        config=description["about"].get("config"),
        recipe=Recipe(**description["augment"]) if description.get("augment") else None,
    )


def _folder(path: Path, name: str) -> Checkpoint:
    folder = timm_folder.read(path)
    said = folder.description or {}
    return Checkpoint(
        name,
        "timm folder",
        timm_folder.spec_of(folder),
        {"backbone": under("backbone.", folder.state)},
        config=(said.get("about") or {}).get("config"),
        recipe=Recipe(**said["augment"]) if said.get("augment") else timm_folder.recipe_of_timm(folder.pretrained_cfg),
    )


def _named(name: str) -> Checkpoint:
    if name.startswith(_HUB):
        from huggingface_hub import snapshot_download

        return _folder(Path(snapshot_download(name[len(_HUB[0]) :], allow_patterns=["*.json", "*.safetensors"])), name)
    tagged = name.removeprefix("timm/")
    if not timm.is_model(tagged.partition(".")[0]):
        is_path = "/" in tagged or Path(name).suffix in WEIGHTS
        near = [] if is_path else get_close_matches(tagged, timm.list_models(pretrained=True), n=3, cutoff=0.5)
        if near:
            raise ValueError(f"{name} is not a file, a folder or a timm model; timm has {', '.join(near)}")
        could_be_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and Path(name).suffix not in WEIGHTS
        hub = f" (a repository of the Hugging Face Hub is written {_HUB[0]}{name})" if could_be_hub else ""
        raise ValueError(f"{missing(Path(name).expanduser())}{hub}")
    if not timm.is_model_pretrained(tagged):
        raise ValueError(f"timm has no pretrained weights for {tagged}; it has {_pretrained(tagged)}")
    try:
        model = timm.create_model(tagged, pretrained=True, num_classes=0)
    except OSError as error:  # of the network, or the Hub's "not in the cache"
        raise ValueError(
            f"the weights of {tagged} are not in the Hub's cache on this machine, and could not be fetched "
            f"({type(error).__name__}). Fetch them where there is a connection (timm.create_model('{tagged}', "
            "pretrained=True)) and copy the cache (~/.cache/huggingface, or where HF_HOME points), or name a file of "
            "weights in place of the model"
        ) from error
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    return Checkpoint(
        name,
        "pretrained timm model",
        {"name": tagged, "img_size": cfg["input_size"][-1]},  # for which its position tables are made
        {"backbone": under("backbone.model.", model.state_dict())},
        guessed=("img_size", "in_chans", "pool"),
        recipe=timm_folder.recipe_of_timm(cfg),
    )


def _pretrained(name: str) -> str:
    tags = timm.list_models(f"{name.partition('.')[0]}*", pretrained=True)
    return ", ".join(tags[:5]) or "none of that architecture"
