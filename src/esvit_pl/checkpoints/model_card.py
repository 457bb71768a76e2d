"""The page that introduces a published backbone: how to load it, how it was trained, and its results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from esvit_pl.checkpoints.shareable import shareable
from esvit_pl.evaluation.names import PROBES, ROWS
from esvit_pl.safe_text import as_code, for_markdown

RECIPE = ("loss", "optimizer", "module", "augment", "datamodule", "trainer")
"""Groups of the run's config that the card shows, as far as they are `shareable`."""
HEAD = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- image-feature-extraction
- self-supervised-learning
- timm
- esvit
---"""
ESVIT = """ Pretrained without labels, by the method of EsViT ([arXiv 2106.09785](https://arxiv.org/abs/2106.09785))."""
SWIN = """
The layer norms of this Swin add 1e-6 to the variance, those of timm 1e-5; with
`create_model(..., norm_layer=timm.layers.LayerNorm)` timm computes what was trained, to the last bit where all maps are
multiples of the window. On other maps timm pads in another order than the training did; esvit_pl keeps that order:
"""
NORMALIZED = """
Images were standardised each by itself (`normalize: {}`), which timm's transforms cannot do; use `backbone.transform`.
"""


def model_card(repo: str, description: Mapping[str, Any], *, architecture: str) -> str:
    """The card as Markdown. It says what is known, and of the rest that it is not known.

    Args:
        repo: ``USER/REPO``.
        description: `safetensors_file.description` of the backbone. The card shows these entries of its ``about``, if
            they are there: ``network``, ``source``, ``format``, ``epoch``, ``config`` (of the run), ``results`` (the
            run's results.json).
        architecture: timm's name of it.
    """
    about = description.get("about") or {}
    config = shareable(about.get("config") or {})
    backbone, source = description["backbone"], about.get("source")
    family = for_markdown(backbone["name"])
    network = f"the {for_markdown(str(about['network']))}'s backbone" if about.get("network") else "a backbone"
    origin = f" of {as_code(str(source))}" if source else ""
    epochs = f", after {about['epoch']} epoch{'s' * (about['epoch'] != 1)}" if about.get("epoch") is not None else ""
    registers = f"import esvit_pl.backbones  # registers {architecture}\n" if architecture.startswith("esvit_") else ""
    objective = str((config.get("loss") or {}).get("_target_"))
    is_esvit = objective.endswith(".EsViTObjective") or about.get("format") == "released EsViT"
    normalize = (description.get("augment") or {}).get("normalize", "dataset")
    return f"""{HEAD}

# {repo.rpartition("/")[2]}

{family}: {network}{origin}{epochs}. It gives features of images and has no classifier. Written by
`esvit-convert` of esvit_pl.{ESVIT if is_esvit else ""}

## Use

```python
import timm
{registers}
model = timm.create_model("hf-hub:{repo}", pretrained=True)
```
{SWIN if backbone["name"] == "swin" else "Or, with regions and the transform for images:"}
```python
import esvit_pl

backbone = esvit_pl.load_backbone("hf-hub:{repo}")
pooled, regions, grid = backbone(backbone.transform(image)[None])
```
{"" if normalize == "dataset" else NORMALIZED.format(normalize)}
## Backbone

{_settings(backbone)}

## Pretraining

{_recipe(config) or f"{for_markdown(str(source or 'The checkpoint'))} does not tell it."}

## Data

{_data(config.get("dataset")) or "The checkpoint does not tell it."}

## Results

{_results(about.get("results") or {}) or "No results lie beside the checkpoint."}
"""


def _settings(settings: Mapping[str, Any]) -> str:
    return "\n".join(f"- {for_markdown(str(name))}: {_plain(value)}" for name, value in settings.items())


def _recipe(config: Mapping[str, Any]) -> str:
    lines = {
        group: ", ".join(f"{name} {_words(value)}" for name, value in config[group].items() if value is not None)
        for group in RECIPE
        if config.get(group)
    }
    return _settings(lines | {name: config[name] for name in ("start_epoch", "seed") if lines and name in config})


def _data(dataset: Mapping[str, Any] | None) -> str:
    if not dataset:
        return ""
    name = str(dataset.get("_target_")).rpartition(".")[2]
    settings = [
        f", {for_markdown(str(key))} {_plain(value)}"
        for key, value in dataset.items()
        if key != "_target_" and value is not None
    ]
    return f"{as_code(name)}{''.join(settings)}. The images' labels were used for the results below alone."


def _results(results: Mapping[str, Any]) -> str:
    probes = {name: title for name, title in PROBES.items() if results.get(name)}
    if not probes:
        return ""
    lines = ["As measured by the training run, on its own query images:\n"]
    lines += [f"| | {' | '.join(f'{title} top-1' for title in probes.values())} |", f"|---|{'---|' * len(probes)}"]
    for row, titles in reversed(ROWS.items()):
        if any(row in results[probe] for probe in probes):
            cells = (f"{100 * results[probe][row]:.1f} %" if row in results[probe] else "" for probe in probes)
            lines.append(f"| {titles.card} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return for_markdown(_words(value))


def _words(value: Any) -> str:
    return re.sub(r"[\[\]()'\"]", "", str(value)) if isinstance(value, Sequence) else str(value)
