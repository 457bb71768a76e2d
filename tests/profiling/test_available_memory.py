from __future__ import annotations

from typing import Any

import pytest

from esvit_pl.profiling.available_memory import available_bytes, total_bytes


def system(root: Any, available: int, files: dict[str, str]) -> Any:
    """/proc/meminfo with so many KiB, and files."""
    files = {"proc/meminfo": f"MemTotal: 999999 kB\nMemAvailable:   {available} kB\n", **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 5000 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "4096\n"}, 4096),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 5000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": "8192",
            },
            8192,
        ),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096),  # inside a container
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4096\n",
                "sys/fs/cgroup/cpu/x/memory.limit_in_bytes": "1\n",
            },
            4096,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{2**63 - 4096}\n",  # no limit
            },
            5000 * 1024,
        ),
    ],
    ids=["no group", "group", "no limit", "group above", "container", "version 1", "version 1, no limit"],
)
def test_the_smaller_of_what_the_system_has_and_the_group_may_have(tmp_path, files, available):
    assert available_bytes("cpu", root=system(tmp_path, 5000, files)) == available


def test_this_machine_has_memory():
    assert 2**20 < available_bytes() < 2**50


def test_what_there_is_in_all_does_not_depend_on_what_is_used(tmp_path):
    limit = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "4096\n"}
    assert {total_bytes(root=system(tmp_path, available, limit)) for available in (1, 5000)} == {4096}
    assert total_bytes() >= available_bytes() > 0
