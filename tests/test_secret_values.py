"""Tokens do not leave the machine in what a run or an export shows."""

from __future__ import annotations

import json
import sys

import pytest
from omegaconf import OmegaConf

from esvit_pl.checkpoints.model_card import model_card, shareable
from esvit_pl.runs.folder import RunFolder
from esvit_pl.secret_values import starred

TOKENS = ["hf_" + "a1B2" * 8, "ghp_" + "a1B2" * 9, "sk-" + "a1B2" * 6, "0123456789abcdef" * 2 + "01234567"]
TOKENS += ["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.c2lnbmF0dXJl", "AKIA" + "A1B2" * 4]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_starred_wherever_it_stands(token):
    for value in ({"a": [token]}, f"logger.x={token}", f"https://{token}:x@a.example", [{"b": f"Bearer {token}"}]):
        assert token not in json.dumps(starred(value))


def test_other_settings_stay():
    config = {
        "lr": 0.1,
        "name": "swin_tiny_w7",
        "tokens_per_image": 49,
        "root": "/a/token/b",
        "pool": "token",
        "x": None,
    }
    assert starred(config) == config
    words = ["optimizer.lr=0.1", "backbone.pool=token", "dataset.root=/data/a=b", "logger.wandb.api_key=${oc.env:KEY}"]
    assert starred(words) == words


def test_a_run_folder_names_what_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "open sesame")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setattr(sys, "argv", ["esvit-pretrain", "seed=1", f"logger.x={TOKENS[0]}", "logger.password=sesame"])
    env = "${oc.env:MY_SECRET}"
    settings = {"a": env, "b": ["x ${a}"], "n": "${oc.decode:${oc.env:SLURM_NTASKS}}", "c": "${d}", "d": 2}
    RunFolder(tmp_path).describe(OmegaConf.create(settings))
    written = (tmp_path / "config.yaml").read_text() + (tmp_path / "environment.json").read_text()
    assert "sesame" not in written
    assert TOKENS[0] not in written
    kept = OmegaConf.load(tmp_path / "config.yaml")
    assert (kept.a, kept.b[0], kept.n, kept.c) == ("open sesame", "x open sesame", 4, 2)  # it can be run again
    command = json.loads((tmp_path / "environment.json").read_text())["command"]
    assert command == ["esvit-pretrain", "seed=1", "logger.x=***", "logger.password=***"]


def test_an_export_and_its_card_hold_no_token():
    config = {"loss": {"note": TOKENS[0]}, "dataset": {"_target_": "a.B", "api_key": "sesame"}}
    about = {"config": config, "source": "a.ckpt"}
    assert "sesame" not in json.dumps(shareable(config))
    card = model_card("a/b", {"backbone": {"name": "resnet18"}, "about": about}, architecture="resnet18")
    assert TOKENS[0] not in card
    assert "sesame" not in card
