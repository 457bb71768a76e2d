"""What `esvit_pl.pretrain` and `esvit_pl.evaluate` return."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esvit_pl.backbones import Backbone
from esvit_pl.checkpoints import last_checkpoint


@dataclass(frozen=True)
class Result:
    """A finished pretraining or evaluation. As the last line of a notebook's cell it shows its numbers and pictures.

    >>> from esvit_pl.backbones import build
    >>> swin = build("swin", embed_dim=8, depths=[1], num_heads=[1], window=4, img_size=32)
    >>> Result(Path("logs/run"), swin, checkpoint=None, metrics={"knn/top1": 0.591, "train/lr": 0.001})
    Result('logs/run', checkpoint='None', knn/top1=0.591)
    """

    folder: Path
    """The run folder, with config.yaml, environment.json, results.json, metrics.csv, report.html, checkpoints and
    figures."""
    backbone: Backbone
    """The encoder (or the network that was asked for), on the CPU, in eval mode, without gradients."""
    checkpoint: Path | None
    """The newest checkpoint of a pretraining, or the checkpoint that was evaluated; None if none was kept."""
    metrics: dict[str, float]
    """The last value of everything that was logged, e.g. ``metrics["knn/top1"]``; accuracies are fractions in 0-1."""

    @property
    def results(self) -> dict[str, Any]:
        """What ``results.json`` holds: the probes' tables, the metrics, the status."""
        results: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return results

    @property
    def figures(self) -> dict[str, Path]:
        """{name: picture}, e.g. ``figures["learning_curve"]``."""
        return {path.stem: path for path in sorted((self.folder / "figures").glob("*.png"))}

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value:.4g}" for name, value in self.metrics.items() if _is_main(name))
        return f"Result({str(self.folder)!r}, checkpoint={str(self.checkpoint)!r}{shown})"

    def _repr_html_(self) -> str:
        main = {name: value for name, value in self.metrics.items() if _is_main(name)}
        pictures = "".join(
            f'<p><img alt="{html.escape(name)}" style="max-width:100%" '
            f'src="data:image/png;base64,{b64encode(path.read_bytes()).decode()}"></p>'
            for name, path in self.figures.items()
        )
        rest = f"<details><summary>all metrics</summary>{_table(self.metrics)}</details>"
        return f"<p><code>{html.escape(str(self.folder))}</code></p>{_table(main)}{pictures}{rest}"


def _is_main(name: str) -> bool:
    return name.endswith(("_loss", "/top1")) and name.count("/") == 1


def _table(metrics: Mapping[str, float]) -> str:
    rows = (f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in metrics.items())
    return f"<table>{''.join(rows)}</table>"


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a run, if it has kept any."""
    try:
        return last_checkpoint(folder)
    except ValueError:
        return None
