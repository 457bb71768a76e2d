"""How much memory a device has left."""

from __future__ import annotations

from collections.abc import Iterator
from os import sysconf
from pathlib import Path

import torch


def available_bytes(device: torch.device | str = "cpu", *, root: Path = Path("/")) -> int:
    """What a device has left: on CUDA the driver's count, on a CPU the system's or the control group's limit.

    Args:
        device: of the training.
        root: where /proc and /sys are.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = root / "proc/meminfo"
    if not info.is_file():  # no Linux
        return int(sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE"))
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines())
    left = 1024 * int(lines["MemAvailable"].split()[0])  # "kB" there is KiB
    return min([left, *_group_limits(root)])


def total_bytes(device: torch.device | str = "cpu", *, root: Path = Path("/")) -> int:
    """What a device has, used or not; on a CPU the control group's limit counts.

    Args:
        device, root: as in `available_bytes`.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = _group_limits(root) if (root / "proc/meminfo").is_file() else ()
    return int(min([sysconf("SC_PHYS_PAGES") * sysconf("SC_PAGE_SIZE"), *limits]))


def _group_limits(root: Path) -> Iterator[int]:
    """Limits of this process's control group and those above it, of both versions of Linux's interface."""
    membership = root / "proc/self/cgroup"
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("sys/fs/cgroup", "memory.max")
        )
        inside = Path(place.strip("/"))
        for folder in (inside, *inside.parents):
            limit = root / top / folder / name
            words = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
            if words != "max":
                yield int(words)
