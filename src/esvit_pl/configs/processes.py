"""How many processes a config asks for, and which of them this one is, without building a Trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf


def processes(cfg: DictConfig) -> int:
    """Devices times nodes of ``trainer``; 1 without a trainer."""
    devices, nodes = OmegaConf.select(cfg, "trainer.devices"), OmegaConf.select(cfg, "trainer.num_nodes")
    return _devices(devices, str(OmegaConf.select(cfg, "trainer.accelerator"))) * (nodes or 1)


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its training: the one that prints and writes files.

    Lightning, torchrun, srun and jsrun number the others in their environment.
    """
    if "RANK" in environment:
        return environment["RANK"] == "0"
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return all(environment.get(name, "0") == "0" for name in names)


def _devices(devices: object, accelerator: str) -> int:
    """The number of devices in a setting as Lightning reads it: ``auto`` and -1 mean all, ``0,1`` means two."""
    if OmegaConf.is_list(devices) or isinstance(devices, list | tuple):
        if not devices:
            raise ValueError("trainer.devices=[] leaves no device; give 1 or more, or auto for all")
        return len(devices)  # type: ignore[arg-type]
    text = "auto" if devices is None else str(devices).strip()
    if text in ("auto", "-1"):
        return 1 if accelerator in ("cpu", "mps") else _visible_gpus()
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text.startswith("-") or text == "0":
        raise ValueError(f"trainer.devices={text} is not a number of devices; give 1 or more, or auto for all")
    return int(text) if text.isdecimal() else 1


def _visible_gpus() -> int:
    import torch

    return max(torch.cuda.device_count(), 1)
