"""One door for every format: a file, a folder, or a name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

import timm
from torch import Tensor

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.backbones import FAMILIES, Backbone, build
from esvit_pl.checkpoints import released, safetensors_file, timm_folder, training
from esvit_pl.checkpoints.fitting import load_
from esvit_pl.checkpoints.pickled import read_pickled
from esvit_pl.checkpoints.source import Source, State, part, under

Network = Literal["teacher", "student"]
_HUB = ("hf-hub:", "hf_hub:")


def load_backbone(
    path_or_name: str | Path, *, network: Network = "teacher", backbone: Mapping[str, Any] | None = None
) -> Backbone:
    """A pretrained backbone, in eval mode and without gradients, with the `transform` that prepares images for it.

        backbone = esvit_pl.load_backbone("RUN/checkpoints/last.ckpt")
        features = backbone(backbone.transform(PIL.Image.open("photo.jpg"))[None])
        features.pooled, features.regions, features.grid

    Args:
        path_or_name: a checkpoint of ``esvit-pretrain``; one of the released EsViT or DINO, or its bare weights; a
            safetensors file; a folder that timm wrote; the name of a pretrained timm model, or ``hf-hub:USER/REPO``
            (these two are downloaded). The format is recognised.
        network: whose backbone, where the file holds both; the teacher's is the one that the release evaluates.
        backbone: ``spec`` of a backbone that settles what the file leaves open (a released CvT does not say its
            windows), and is compared with the rest.

    Raises:
        ValueError: no such file or name; not recognised; unsafe; weights that do not fit, by name and shape.
    """
    return backbone_of(read_source(path_or_name), network=network, backbone=backbone)


def backbone_of(source: Source, *, network: Network = "teacher", backbone: Mapping[str, Any] | None = None) -> Backbone:
    """`load_backbone` of what has been read already."""
    unsaid = [name for name in ("num_heads", "windows") if name in source.guessed]
    if unsaid and backbone is None:
        values = ", ".join(f"{name}={source.backbone[name]}" for name in unsaid)
        warnings.warn(f"{source.path} does not say {values}, the published ones; backbone= settles it", stacklevel=3)
    made = build(**settled(source, backbone))
    load_(made, fitted(source.network(network), made), f"{source.path} ({source.format})")
    made.transform = EvaluationTransform(source.recipe or Recipe())
    return made.eval().requires_grad_(False)


def read_source(path_or_name: str | Path, *, moments: bool = False) -> Source:
    """What lies at a path or under a name.

    Args:
        path_or_name: as of `load_backbone`.
        moments: read the optimizer's state, too.

    Raises:
        ValueError: as of `load_backbone`.
    """
    name = str(path_or_name)
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        return _file(path, moments=moments)
    return _named(name)


def settled(source: Source, backbone: Mapping[str, Any] | None) -> dict[str, Any]:
    """The spec to build: the file's, where it leaves something open `backbone`'s.

    Raises:
        ValueError: the two contradict each other.
    """
    if backbone is None:
        return source.backbone
    if source.backbone["name"] not in FAMILIES and backbone["name"] not in FAMILIES:
        return dict(backbone)  # timm has several names for one architecture; the weights' shapes decide
    open_ = {*source.guessed, "drop_path_rate"}
    differences = [
        f"{name}: checkpoint {source.backbone.get(name)!r}, backbone= {backbone.get(name)!r}"
        for name in sorted({*source.backbone, *backbone})
        if source.backbone.get(name) != backbone.get(name) and name not in open_ and name in source.backbone
    ]
    if differences:
        raise ValueError(
            f"the checkpoint {source.path} is of another backbone than backbone= asks for; {'; '.join(differences)}. "
            "Leave backbone= out: the checkpoint knows its own"
        )
    return dict(backbone)


def fitted(network: State, backbone: Backbone) -> State:
    """A network's backbone weights under the names that `backbone` has for them.

    A model of timm's own and one of ours may be the same architecture; they differ in a prefix and the classifier.
    """
    state, wanted = part(network, "backbone."), set(backbone.state_dict())
    choices = [state, under("model.", state), part(state, "model."), part(state, "backbone.")]
    best = max(choices, key=lambda choice: len(wanted & set(choice)))
    return {name: value for name, value in best.items() if name in wanted or not _is_classifier(name)}


def recipe_of_timm(pretrained_cfg: Mapping[str, Any]) -> Recipe:
    """How timm prepares images for a pretrained model; interpolation is bicubic here, whatever it says."""
    crop = pretrained_cfg.get("input_size", (3, 224, 224))[-1]
    mean, std = (pretrained_cfg.get(name, getattr(Recipe, name)) for name in ("mean", "std"))
    return Recipe(mean=mean, std=std, eval_crop=crop, eval_resize=round(crop / pretrained_cfg.get("crop_pct", 0.875)))


# -- formats


def _file(path: Path, *, moments: bool) -> Source:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        return _safetensors(path)
    content = read_pickled(path)
    if training.is_ours(content):
        return training.read_training(content, str(path), moments=moments)
    if released.is_released(content):
        return released.read_training(content, str(path), moments=moments)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        kind = (
            f"a dict with {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else type(content)
        )
        raise ValueError(
            f"{path} is no checkpoint that is known here; it holds {kind}. Known are those of esvit-pretrain, of the "
            "released EsViT and DINO, and plain dicts of weights"
        )
    return released.read_weights(content, str(path), form="weights of the released code or timm")


def _safetensors(path: Path) -> Source:
    state, description = safetensors_file.read(path)
    if description is None:
        return released.read_weights(state, str(path), form="safetensors without our description")
    return Source(
        str(path),
        "safetensors",
        description["backbone"],
        {"backbone": under("backbone.", state)},
        config=description["about"].get("config"),
        recipe=Recipe(**description["augment"]) if description.get("augment") else None,
    )


def _folder(path: Path, name: str) -> Source:
    folder = timm_folder.read(path)
    said = folder.description or {}
    return Source(
        name,
        "timm folder",
        timm_folder.spec_of(folder),
        {"backbone": under("backbone.", folder.state)},
        config=(said.get("about") or {}).get("config"),
        recipe=Recipe(**said["augment"]) if said.get("augment") else recipe_of_timm(folder.pretrained_cfg),
    )


def _named(name: str) -> Source:
    if name.startswith(_HUB):
        from huggingface_hub import snapshot_download

        return _folder(Path(snapshot_download(name[len(_HUB[0]) :], allow_patterns=["*.json", "*.safetensors"])), name)
    tagged = name.removeprefix("timm/")
    if not timm.is_model(tagged.partition(".")[0]):
        near = get_close_matches(tagged, timm.list_models(pretrained=True), n=3, cutoff=0.5)
        hint = f"; timm has {', '.join(near)}" if near else ""
        raise ValueError(f"{name} is no file, no folder and no timm model{hint}")
    if not timm.is_model_pretrained(tagged):
        raise ValueError(f"timm has no pretrained weights for {tagged}; it has {_pretrained(tagged)}")
    model = timm.create_model(tagged, pretrained=True, num_classes=0)
    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    return Source(
        name,
        "pretrained timm model",
        {"name": tagged, "img_size": cfg["input_size"][-1]},  # for which its position tables are made
        {"backbone": under("backbone.model.", model.state_dict())},
        guessed=("img_size", "in_chans", "pool"),
        recipe=recipe_of_timm(cfg),
    )


def _pretrained(name: str) -> str:
    tags = timm.list_models(f"{name.partition('.')[0]}*", pretrained=True)
    return ", ".join(tags[:5]) or "none of that architecture"


def _is_classifier(name: str) -> bool:
    return name.removeprefix("model.").startswith(("head.", "fc.", "classifier.", "head_dist."))
