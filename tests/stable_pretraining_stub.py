"""Stands in for stable-pretraining where it is not installed: the part of its contract that docs/interop.md relies on.

Its Module runs ``forward(self, batch, stage)``, optimises by hand, and hands the returned dict on to callbacks
(stable-pretraining 0.1.8; docs/interop.md was run with the real one, too).
"""

from __future__ import annotations

from typing import Any

import lightning
import torch


class Module(lightning.LightningModule):
    def __init__(self, forward: Any, optim: dict[str, Any], **parts: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optim = optim
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
        return self._forward(self, batch, stage)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        state = self(batch, stage="fit")
        optimizer = self.optimizers()
        self.manual_backward(state["loss"])
        optimizer.step()
        optimizer.zero_grad()
        return state

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = dict(self.optim["optimizer"])
        return getattr(torch.optim, settings.pop("type"))([p for p in self.parameters() if p.requires_grad], **settings)
