from __future__ import annotations

import shutil

import pytest


def test_a_sound_folder_has_nothing_to_say(commands, pictures, tmp_path):
    words = ["dataset=folder", f"dataset.root={pictures}", "smallest=40", f"out={tmp_path}", "workers=0"]
    outcome = commands.run("data", "check", *words)
    assert outcome.code == 0, outcome.err
    assert "data: 36 images to train on, 3 classes" in outcome.out
    assert "36 images, and nothing to say about any of them" in outcome.out
    (file,) = tmp_path.glob("check_*.csv")
    assert file.read_text() == "split,image,kind,detail,run\n"
    assert str(file) in outcome.out


def test_a_folder_that_would_end_a_run_is_an_error(commands, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "photos")
    (tmp_path / "photos" / "red" / "03.jpg").write_bytes(b"broken")
    words = ["dataset=folder", f"dataset.root={tmp_path / 'photos'}", f"out={tmp_path}", "workers=0"]
    outcome = commands.run("data", "check", *words)
    assert outcome.code == 1
    assert "broken   1  files that cannot be decoded: red/03.jpg" in outcome.out
    assert "would end at the first bad one" in outcome.out
    assert "tiny    35  shorter side below 96 px: blue/00.jpg" in outcome.out
    assert commands.run("data", "check", *words, "dataset.on_bad_image=skip").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "esvit-data needs a word that says what to do: check"),
        (["chek"], "esvit-data does not know chek; it knows check"),
        (["check"], "esvit-data check needs images: dataset=folder dataset.root=FOLDER"),
        (["check", "dataset=folder", "dataset.root=/nowhere"], "dataset.root=/nowhere: there is no such folder"),
    ],
)
def test_what_is_missing_is_said(commands, tmp_path, words, message):
    outcome = commands.run("data", *words, f"out={tmp_path}")
    assert outcome.code == 1
    assert message in outcome.err
