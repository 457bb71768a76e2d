"""What Hydra reads of a path that a user types: the path itself."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from esvit_pl.configs.compose import compose
from esvit_pl.configs.quoting import quote_paths

NAMES = [
    "epoch=3-step=100.ckpt",
    "my photos",
    "photos (2)",
    "a,b",
    "[a]",
    "a[1]",
    "{a}",
    "f(1)",
    "2024",
    "1e5",
    "true",
    "photös",
    "日本",
    "a#b",
    "a'b",
    'a"b',
    "a&b;c!",
    "a$b",
    "$b",
    "a\\,b",
    "back\\",
    "lr=0.1,wd=0",
    "100%",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exists", [True, False], ids=["exists", "does not exist"])
def test_a_path_of_any_characters_is_read_as_it_is_typed(tmp_path, name, exists, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if exists:
        (tmp_path / name).mkdir()
    elif name in ("a,b", "[a]", "{a}", "a\\,b"):
        pytest.skip("a sweep, a list, a dict and an escape, as long as no file has this name")
    for key in ("ckpt_path", "dataset.root", "out", "++hydra.run.dir"):
        (word,) = quote_paths([f"{key}={name}"])
        assert OverridesParser.create().parse_override(word).value() == name
        assert quote_paths([word]) == [word]  # a process that starts others hands it on


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert quote_paths(["dataset.root=~/photos=1"]) == ["dataset.root='/home/ada/photos=1'"]


@pytest.mark.parametrize(
    "word",
    [
        "seed=1,2",
        "seed=range(1,4)",
        "tags=[a,b]",
        "module={k:1}",
        "backbone=swin_tiny_w7,swin_small_w7",
        "init_from=null",
        "init_from=a.ckpt,b.ckpt",
        "ckpt_path=choice(a,b)",
        "ckpt_path='a,b=c'",
        'ckpt_path="a=b"',
        "ckpt_path=${paths.log_dir}/last.ckpt",
        "dataset.root=",
        "dataset.root=???",
        "init_from=hf-hub:me/mine",
        "~callbacks.knn",
        "--config-dir=a=b",
        "-m",
        "tags=[a=b]",
        "optimizer.lr=1)",
    ],
)
def test_what_is_no_path_stays_as_it_is(word):
    assert quote_paths([word]) == [word]


def test_an_equals_sign_in_the_value_of_any_setting():
    assert quote_paths(["logger.wandb.name=lr=0.1"]) == ["logger.wandb.name='lr=0.1'"]


def test_a_sweep_over_paths():
    assert quote_paths(["-m", "init_from=a/epoch=1.ckpt,b.ckpt,null"]) == [
        "-m",
        "init_from='a/epoch=1.ckpt',b.ckpt,null",
    ]


def test_commands_and_python_read_them():
    assert compose("knn", "ckpt_path=runs/epoch=3-step=100.ckpt").ckpt_path == "runs/epoch=3-step=100.ckpt"
