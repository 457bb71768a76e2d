"""Words as the shell or a web page hands them over, and what becomes of them."""

from __future__ import annotations

import pytest

from esvit_pl.configs import pasted


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("seed = 3", "seed = 3: the shell reads these as several words; write seed=3 without spaces"),
        ("seed == 3", "seed == 3: the shell reads these as several words; write seed=3 without spaces"),
        ("seed= 3", "seed= 3: the shell reads these as several words; write seed=3 without spaces"),
        ("seed =3", "seed =3: the shell reads these as several words; write seed=3 without spaces"),
        (
            "optimizer.lr: 0.1",
            "optimizer.lr: 0.1: the shell reads these as several words; write optimizer.lr=0.1 without spaces",
        ),
        ("–m seed=1,2", "–m: begins with a dash of printed text (U+2013); write -m"),
        ("—cfg job", "—cfg: begins with a dash of printed text (U+2014); write --cfg"),
        ("seed＝3", "seed＝3: holds a wide equals sign (U+FF1D); write seed=3"),
        ("\u00a0seed=3", "\u00a0seed=3: holds an invisible sign of printed text (U+00A0); write seed=3"),
        ("seed=3\u200b", "seed=3\u200b: holds an invisible sign of printed text (U+200B); write seed=3"),
        (
            "dataset.root=“photos”",
            "dataset.root=“photos”: “ is a quote of printed text (U+201C), which the shell does not know; write "
            "dataset.root=photos",
        ),
        (
            "dataset.root=“my photos”",
            "dataset.root=“my: “ is a quote of printed text (U+201C), which the shell does not know; write "
            '"dataset.root=my"',
        ),
        ("seed=−1", "seed=−1: − is a dash of printed text (U+2212); write seed=-1"),
    ],
)
def test_what_printed_text_has_spoilt_is_told(words, sentence):
    assert pasted.explain(words.split(" ")) == sentence


def test_spaces_in_one_word_are_told():
    assert pasted.explain(["seed = 3"]) == "seed = 3: has a space beside its name; write seed=3"


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1", "dataset.root=Anna’s photos"],
        ["dataset.root=Screenshot 2024\u202fPM.png"],
        ["dataset.root=a – b"],
        ["--cfg", "job", "seed=1"],
        ["out=", "seed=1"],
        ["logs/", "more/"],
        ["C:", "seed=1"],
        [],
    ],
)
def test_what_may_be_meant_is_left_alone(words):
    assert pasted.explain(words) is None


@pytest.mark.parametrize(
    ("words", "become"),
    [
        ("a=1 --cfg job b=2", "--cfg job a=1 b=2"),
        ("a=1 -m b=1,2", "-m a=1 b=1,2"),
        ("a=1 --config-dir DIR -c job b=2", "--config-dir DIR -c job a=1 b=2"),
        ("a=1 --info config b=2", "--info config a=1 b=2"),
        ("a=1 --info b=2", "--info a=1 b=2"),
        ("a=1 --cfg=job b=2", "--cfg=job a=1 b=2"),
        ("~a b=2", "~a b=2"),
    ],
)
def test_flags_may_stand_anywhere(words, become):
    assert pasted.flags_first(words.split()) == become.split()


def test_the_last_of_two_settings_counts_and_that_is_said():
    assert pasted.given_twice(["seed=1", "a.b=2", "seed=3", "+x=1", "+y=1"]) == ["seed is given twice; seed=3 counts"]


@pytest.mark.parametrize(
    ("words", "become"),
    [
        (["logs/", "sort=x"], ["sort=x", "folders=['logs/']"]),
        (["a b", "it's"], [r"folders=['a b','it\'s']"]),
        (["sort=x"], ["sort=x"]),
        (["--cfg", "job", "logs"], ["--cfg", "job", "folders=['logs']"]),
        (["--help"], ["--help"]),
    ],
)
def test_words_that_are_no_settings_become_one(words, become):
    assert pasted.bare_words_as_setting(words, "folders") == become


def test_a_bare_word_with_an_equals_sign_is_a_folder_if_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert pasted.bare_words_as_setting(["lr=0.1", "lr=0.2"], "folders") == ["lr=0.2", "folders=['lr=0.1']"]
