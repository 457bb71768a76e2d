from __future__ import annotations

import re
import subprocess
import sys
from random import Random

import pytest
import torch

from esvit_pl.whole import damage, replacing


def same(mine, other) -> bool:
    return mine["step"] == other["step"] and all(torch.equal(mine[key], other[key]) for key in "ab")


def test_every_bit_that_counts_is_watched(tmp_path):
    """Of 300 changed bits none is read as another number; where a file passes, it reads as it was written."""
    path, random = tmp_path / "a.ckpt", Random(0)
    torch.save({"a": torch.arange(300.0), "b": torch.ones(5, dtype=torch.int8), "step": 7}, path)
    whole, content = torch.load(path, weights_only=True), path.read_bytes()
    assert damage(path) is None
    passed = 0
    for _ in range(300):
        bit = random.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        if damage(path) is None and changed[:2] == b"PK":
            try:
                again = torch.load(path, weights_only=True)
            except Exception:  # torch has noticed
                continue
            passed += 1
            assert same(again, whole)
    assert 0 < passed < 200  # names, dates and padding


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: b"", r"is empty \(0 bytes\)"),
        (lambda content: content[:-1000], "is cut short"),
        (lambda content: content.replace(bytes(400), bytes(200) + b"\1" + bytes(199)), "is damaged: .*/data/0 is not"),
    ],
    ids=["empty", "cut", "changed"],
)
def test_what_has_happened_is_said(tmp_path, change, said):
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(change(path.read_bytes()))
    assert re.match(said, str(damage(path)))


def test_files_without_checksums_pass(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert damage(tmp_path / "a.ckpt") is None
    assert damage(tmp_path / "old.ckpt") is None


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as draft:
        draft.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as draft:
        (draft.parent / "gone").rename(draft)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import sys
from pathlib import Path
from esvit_pl.whole import replacing
path = Path(sys.argv[1])
for number in range(10**9):
    with replacing(path) as draft:
        draft.write_bytes(number.to_bytes(8, "big") * 100_000)
    if number == 3:
        print("go", flush=True)
"""


def test_a_real_kill_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.bin"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
        content = path.read_bytes()
        assert content == content[:8] * 100_000
        assert {left.name for left in tmp_path.iterdir()} <= {"a.bin", ".a.bin.tmp"}
    with replacing(path) as draft:
        draft.write_bytes(b"")
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_has_left_is_begun_anew_even_if_it_is_another_name_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    (tmp_path / ".a.txt.tmp").hardlink_to(path)
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
