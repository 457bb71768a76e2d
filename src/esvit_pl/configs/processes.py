"""How many processes a config asks for, without building a Trainer."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def processes(cfg: DictConfig) -> int:
    """Devices times nodes of ``trainer``; 1 without a trainer."""
    devices, nodes = OmegaConf.select(cfg, "trainer.devices"), OmegaConf.select(cfg, "trainer.num_nodes")
    return _devices(devices, str(OmegaConf.select(cfg, "trainer.accelerator"))) * (nodes or 1)


def _devices(devices: object, accelerator: str) -> int:
    """The number of devices in a setting as Lightning reads it: ``auto`` and -1 mean all, ``0,1`` means two."""
    if OmegaConf.is_list(devices) or isinstance(devices, list | tuple):
        return len(devices)  # type: ignore[arg-type]
    text = "auto" if devices is None else str(devices).strip()
    if text in ("auto", "-1"):
        return 1 if accelerator in ("cpu", "mps") else _visible_gpus()
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isdecimal() else 1


def _visible_gpus() -> int:
    import torch

    return max(torch.cuda.device_count(), 1)
