"""Tokens do not leave the machine in what a run or an export shows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from esvit_pl.checkpoints.model_card import model_card
from esvit_pl.checkpoints.shareable import shareable
from esvit_pl.configs.kept_config import DIGESTS, kept, recovered
from esvit_pl.runs.folder import RunFolder
from esvit_pl.secret_values import named, starred

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


FROM_ENVIRONMENT, LITERAL, EXPANDED = "wb-4f9a11c0-secret", "sesame-open-1234", "from-the-shell-77"
SECRETS = ["tags=[${oc.env:MY_TOKEN}]", f"+paths.api_key={LITERAL}", f"+paths.note={EXPANDED}"]


@pytest.fixture(scope="module")
def run(commands, pictures):
    """A run with a token from the environment, one under a name that tells it, and one that the shell has put in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_TOKEN", FROM_ENVIRONMENT)
        patch.setenv("SERVICE_API_KEY", EXPANDED)
        patch.setenv("WAY", "cosine")
        patch.setenv("MY_PICTURES", str(pictures))
        words = ["trainer.max_epochs=1", "optimizer.warmup_epochs=0", "optimizer.lr_schedule=${oc.env:WAY}", *SECRETS]
        outcome = commands.pretrain(
            "${oc.env:MY_PICTURES}", *words, "evaluation.probes=[knn]", "callbacks.checkpoint.every=1steps"
        )
    assert outcome.code == 0, outcome.err
    return outcome, words


def holding(folder: Path, *secrets: str) -> set[str]:
    """The files of a folder in whose bytes one of the secrets stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]
    return {path.relative_to(folder).as_posix() for path in found}


def test_no_file_of_a_run_but_hydras_own_notes_holds_a_secret(run, pictures):
    outcome, _ = run
    assert (outcome.folder / "checkpoints" / "last.ckpt").is_file()
    assert not holding(outcome.folder, FROM_ENVIRONMENT, str(pictures))
    held = holding(outcome.folder, LITERAL, EXPANDED)
    assert held  # the search finds what is there
    assert {name.partition("/")[0] for name in held} == {".hydra"}
    written = (outcome.folder / "config.yaml").read_text()
    for name in ("${oc.env:MY_TOKEN}", "${oc.env:PATHS_API_KEY}", "${oc.env:SERVICE_API_KEY}"):
        assert name in written


@pytest.mark.parametrize("form", ["timm", "safetensors"])
def test_no_export_of_a_run_holds_a_secret(run, form, commands, tmp_path):
    outcome, _ = run
    name = "out.safetensors" if form == "safetensors" else "out"
    done = commands.run("convert", f"ckpt_path={outcome.folder}", f"to={form}", f"out={tmp_path / name}")
    assert done.code == 0, done.err
    assert not holding(tmp_path, FROM_ENVIRONMENT, LITERAL, EXPANDED, "oc.env", str(Path.home()), str(outcome.folder))
    assert holding(tmp_path, "num_prototypes")


def test_a_run_goes_on_with_the_same_variables_and_not_with_others(run, commands, pictures, monkeypatch):
    outcome, words = run
    words = [*words, f"ckpt_path={outcome.folder}", "dry_run=true"]
    for name, value in {"MY_TOKEN": "another", "SERVICE_API_KEY": "another one", "WAY": "cosine"}.items():
        monkeypatch.setenv(name, value)
    assert (again := commands.pretrain(pictures, *words)).code == 0, again.err
    assert (again := commands.pretrain(pictures, *words, "optimizer.lr_schedule=cosine")).code == 0, again.err
    monkeypatch.setenv("WAY", "linear")
    refused = commands.pretrain(pictures, *words)
    assert refused.code == 1
    assert "optimizer.lr_schedule: ${oc.env:WAY} in the checkpoint, linear now" in refused.err


def test_a_kept_config_has_the_numbers_of_the_environment_and_recovers_its_texts(monkeypatch):
    for name, value in {"LR": "0.1", "WAY": "cosine", "MY_PASSWORD": "sesame", "SIDES": "[1,2]"}.items():
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.create(
        {
            "optimizer": {"lr": "${oc.decode:${oc.env:LR}}", "way": "${oc.env:WAY}"},
            "callbacks": {"mine": {"_target_": "a.B", "api_key": "abc"}},
            "backbone": {"mask_token": "zeros"},
            "augment": {
                "sides": "${oc.decode:${oc.env:SIDES}}",
                "note": "${optimizer.way} x",
                "p": "${oc.env:MY_PASSWORD}",
            },
            "paths": {"log_dir": "${oc.env:WAY}"},
        }
    )
    config = kept(cfg)
    assert (config["optimizer"]["lr"], config["augment"]["sides"]) == (0.1, [1, 2])
    assert config["callbacks"]["mine"]["api_key"] == "${oc.env:CALLBACKS_MINE_API_KEY}"
    assert config["augment"]["note"] == "${oc.env:WAY} x"
    # no secrets, and what enters the training alone
    assert set(config[DIGESTS]) == {"optimizer.way", "augment.note", "backbone.mask_token"}
    assert not re.search("cosine|sesame|abc", json.dumps(config))
    values = OmegaConf.to_container(cfg, resolve=True)
    assert recovered(config, values, config) == values
    other = {**values, "optimizer": {**values["optimizer"], "way": "linear"}, "backbone": {"mask_token": "mean"}}
    assert recovered(config, other, config)["optimizer"]["way"] == "${oc.env:WAY}"
    assert recovered(config, other, config)["backbone"]["mask_token"] != "mean"
    assert recovered(values, values, config) == values  # of an older checkpoint


def test_the_environment_is_asked_for_what_opens_an_account():
    config = {"a": {"api_key": "abc", "password": 1234, "num_tokens": 49, "url": "https://me:abc@a.example"}}
    config["b"] = ["logger={wandb:{api_key:abc,project:x}}", "x?token=abc&y=1", f"v {TOKENS[0]}"]
    config["c"] = {"secret": "${oc.env:KEY}", "token": "${oc.env:KEY,abc}", "path": "/hub/" + TOKENS[3] + "/x"}
    assert named(config) == {
        "a": {
            "api_key": "${oc.env:A_API_KEY}",
            "password": "${oc.env:A_PASSWORD}",
            "num_tokens": 49,
            "url": "https://${oc.env:A_URL}@a.example",
        },
        "b": [
            "logger={wandb:{api_key:${oc.env:B_API_KEY},project:x}}",
            "x?token=${oc.env:B_TOKEN}&y=1",
            "v ${oc.env:B}",
        ],
        "c": {"secret": "${oc.env:KEY}", "token": "${oc.env:C_TOKEN}", "path": config["c"]["path"]},
    }


def test_errors_in_results_are_starred(tmp_path):
    RunFolder(tmp_path).update(status="failed", error=f"ValueError: {TOKENS[0]} and api_key: abc")
    assert json.loads((tmp_path / "results.json").read_text())["error"] == "ValueError: *** and api_key: ***"
