"""The wrapper round hydra.main, on a config package made here; conf/hydra and conf/paths are the shipped ones."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pytest

import esvit_pl
from esvit_pl.configs import command_line, instantiation

FILES = {
    "__init__.py": "",
    "backbone/swin_tiny_w7.yaml": "name: swin_tiny_w7",
    "backbone/swin_small_w7.yaml": "name: swin_small_w7",
    "dataset/folder.yaml": "root: ???",
    "dataset/photographs.yaml": "root: none",
    "trainer/default.yaml": "max_epochs: 3",
    "experiment/embedded.yaml": "# @package _global_\ndefaults: [override /dataset: photographs]",
    "toy.yaml": """
defaults: [_self_, backbone: swin_tiny_w7, dataset: null, trainer: default, paths: default, hydra: default,
           experiment: null]
seed: 0
fault: null
""",
}


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


def needs(cfg):
    return "toy needs images: choose a dataset" if cfg.get("dataset") is None else None


@pytest.fixture
def toy(tmp_path, monkeypatch, capsys):
    """A function that runs the toy command with words of a command line and gives (exit code, stdout, stderr)."""
    package = tmp_path / "toy_conf"
    for name, text in FILES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    for room in ("hydra", "paths"):
        shutil.copytree(str(resources.files("esvit_pl.conf") / room), package / room)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_conf", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESVIT_LOG_DIR", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    seen: list[dict] = []

    @command_line.command(
        "toy",
        summary="Play.",
        examples=["esvit-toy experiment=embedded", "esvit-toy dataset=folder dataset.root=$HOME/images"],
        needs=needs,
        config_package="toy_conf",
    )
    def main(cfg):
        seen.append({"seed": cfg.seed, "output_dir": cfg.paths.output_dir})
        if cfg.fault == "ours":
            instantiation.allow("")
        if cfg.fault == "foreign":
            raise ValueError("from another library")
        if cfg.fault == "signal":
            sys.exit(143)
        if cfg.fault == "ctrl-c":
            raise KeyboardInterrupt
        if cfg.fault == "warning":  # pytest keeps warnings from the terminal: what would stand there
            sys.stderr.write(warnings.formatwarning("k-NN falls", UserWarning, command_line.__file__, 1))

    def run(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["esvit-toy", *words])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    run.seen = seen  # type: ignore[attr-defined]
    yield run
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


def test_the_task_gets_the_config_and_a_run_folder_of_its_own(toy, tmp_path):
    assert toy("experiment=embedded", "seed=3").code == 0
    (seen,) = toy.seen
    folder = Path(seen["output_dir"])
    assert seen["seed"] == 3
    assert folder.parent == tmp_path / "logs" / __name__.rpartition(".")[2] / "runs"
    assert (folder / ".hydra" / "config.yaml").is_file()


def test_log_dir_comes_from_the_environment(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("ESVIT_LOG_DIR", str(tmp_path / "elsewhere"))
    toy("experiment=embedded")
    assert Path(toy.seen[0]["output_dir"]).is_relative_to(tmp_path / "elsewhere")


def test_multirun_runs_each_value_in_a_numbered_folder(toy):
    assert toy("-m", "experiment=embedded", "seed=4,5").code == 0
    assert [seen["seed"] for seen in toy.seen] == [4, 5]
    assert [Path(seen["output_dir"]).name for seen in toy.seen] == ["0", "1"]
    assert Path(toy.seen[0]["output_dir"]).parents[1].name == "multiruns"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["backbone=swin_tinny_w7"], "did you mean backbone=swin_tiny_w7?"),
        (["bakcbone=swin_tiny_w7"], "bakcbone=swin_tiny_w7: write backbone=swin_tiny_w7"),
        (["trainer.max_epoch=3"], "trainer.max_epoch=3: did you mean trainer.max_epochs=3?"),
        (["max_epochs=3"], "did you mean trainer.max_epochs=3?"),
        (["dataset=folder", "dataset.rot=x"], "did you mean dataset.root=x?"),
        (["dataset.root=x"], "nothing is chosen for dataset yet; write dataset=folder dataset.root=x"),
        (
            ["experiment=embedded", "trainer.max_epochs=abc"],
            "=abc is no number; write one such as trainer.max_epochs=3",
        ),
        (["experiment=embedded", "trainer=null"], "trainer=null: there is no such option; trainer= takes default"),
        (["seed=1,2"], "wants -m before them; a list is seed=[1,2], a number with decimals seed=1.2"),
        (["seed=[1,2"], "stands in two kinds of quotes: \"seed='[1,2'\""),
        (["-m", "seed=[1,2"], "stands in two kinds of quotes: \"seed='[1,2'\""),
        (["seed=range(1,3)"], "seed=range(1,3): several values are a sweep, which wants -m before them"),
        (["experiment=embedded", "seed", "=", "3"], "write seed=3 without spaces"),
        (["experiment=embedded", "seed=${oc.env:NO_SUCH}"], "export NO_SUCH=..., or give seed=..."),
        (
            ["experiment=embedded", "seed=${no.such}"],
            "seed refers to ${no.such}, and there is no such setting; --cfg job shows all settings",
        ),
        (
            ["experiment=embedded", "~seed"],
            "~seed takes away a setting that the command reads; leave it, or set it: seed=0",
        ),
        (
            ["experiment=embedded", "~fault"],
            "~fault: there is nothing to take away; fault is null, or not there at all",
        ),
        (
            ["experiment=embedded", "~paths"],
            "hydra.run.dir refers to ${paths.log_dir}, and there is no such setting; --cfg job shows all settings",
        ),
        (["--config-name", "nosuch"], "there is no such config; name a file of --config-dir without its .yaml"),
        (
            ["--config-name", "nosuch", "seed=1"],
            "there is no such config; name a file of --config-dir without its .yaml",
        ),
        (["--config-dir", "nosuch", "seed=1"], "nosuch: there is no such folder"),
        (
            ["--cfg", "jbo"],
            "argument --cfg/-c: invalid choice: 'jbo' (choose from 'job', 'hydra', 'all'); --help lists the flags",
        ),
        (["-zz"], "-zz: there is no such flag; --help lists flags and choices, --cfg job every setting"),
        (["-z"], "esvit-toy: unrecognized arguments: -z; --help lists the flags"),
        (["-max_epochs", "3"], "-max_epochs 3: settings have no dashes; write trainer.max_epochs=3"),
        (["--epochs", "3"], "--epochs 3: settings have no dashes; write trainer.max_epochs=3"),
        (["embedded"], "write experiment=embedded"),
        (["--config-dir", ".", "experiment=embeded"], "did you mean experiment=embedded?"),
        (["--multirunn"], "did you mean --multirun?"),
        (["--experiment=embedded"], "settings have no dashes; write experiment=embedded"),
    ],
)
def test_a_mistyped_word_fails_with_the_near_match_before_the_task_runs(toy, tmp_path, words, line):
    outcome = toy(*words)
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1  # nothing before it, nothing after it
    assert outcome.err.strip().endswith(line)
    assert toy.seen == []
    assert not (tmp_path / "logs").exists()


def test_a_mistyped_option_of_a_sweep_stops_the_whole_sweep_and_leaves_nothing_behind(toy, tmp_path):
    outcome = toy("-m", "experiment=embedded", "backbone=swin_tiny_w7,swin_smal_w7")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("did you mean backbone=swin_small_w7?")
    assert toy.seen == []
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("words", [["seed=1,2"], ["dataset=folder", "seed=1,2"]])
def test_a_sweep_that_misses_something_leaves_nothing_behind(toy, tmp_path, words):
    outcome = toy("-m", *words)
    assert outcome.code == 1
    assert "toy needs images" in outcome.err or "no value for dataset.root" in outcome.err
    assert not (tmp_path / "logs").exists()


def test_a_sweep_shows_its_jobs_though_one_of_them_failed(toy):
    outcome = toy("-m", "experiment=embedded", "fault=null,ours,foreign")
    assert outcome.code == 1
    assert [line.split() for line in outcome.out.splitlines() if line.startswith("  ") and "sweep" not in line] == [
        ["0", "null", "no", "results", "-", "-"],
        ["1", "ours", "failed", "-", "-"],
        ["2", "foreign", "failed", "-", "-"],
    ]
    assert "\n1: allow wants a dotted name such as 'my_project.callbacks.', got ''\n" in outcome.out
    assert "\n2: ValueError: from another library\n" in outcome.out


def test_ctrl_c_shows_what_a_sweep_has_done(toy):
    outcome = toy("-m", "experiment=embedded", "fault=ours,ctrl-c,null")
    assert outcome.code == 130
    assert [seen["output_dir"][-1] for seen in toy.seen] == ["0", "1"]
    assert outcome.out.count("failed") == 1


def test_a_single_run_that_fails_says_so_in_its_folder_and_one_that_is_refused_leaves_none(toy, tmp_path):
    toy("experiment=embedded", "fault=ours")
    assert not (tmp_path / "logs").exists()
    toy("experiment=embedded", "fault=foreign")
    results = json.loads((Path(toy.seen[-1]["output_dir"]) / "results.json").read_text())
    assert results["status"] == "failed"


def test_without_arguments_it_says_what_it_needs_and_leaves_nothing_behind(toy, tmp_path):
    outcome = toy()
    assert outcome.code == 1
    assert "toy needs images: choose a dataset\n\nFor example:\n  esvit-toy experiment=embedded\n" in outcome.err
    assert "Traceback" not in outcome.err
    assert toy.seen == []
    assert not (tmp_path / "logs").exists()


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_written_there(toy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text("{}")
    outcome = toy("experiment=embedded", "hydra.run.dir=mine")
    assert outcome.code == 1
    assert "mine already holds a run (without results); nothing in it was changed" in outcome.err
    assert toy.seen == []
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["results.json"]


def test_a_setting_without_a_value_is_named(toy):
    outcome = toy("dataset=folder")
    assert outcome.code == 1
    assert "no value for dataset.root; give dataset.root=..." in outcome.err
    assert toy.seen == []


def test_an_error_of_ours_is_one_paragraph(toy):
    outcome = toy("experiment=embedded", "fault=ours")
    assert outcome.code == 1
    assert outcome.err == "allow wants a dotted name such as 'my_project.callbacks.', got ''\n"


def test_an_error_from_elsewhere_keeps_its_traceback(toy):
    outcome = toy("experiment=embedded", "fault=foreign")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "ValueError: from another library" in outcome.err


def test_everything_is_shown_on_request(toy, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(command_line.UserError, match="allow wants") as caught:
        toy("experiment=embedded", "fault=ours")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_warning_of_ours_is_a_line_of_terminal_and_log(toy):
    usual = warnings.formatwarning
    said = toy("experiment=embedded", "fault=warning")
    assert "warning: k-NN falls\n" in said.err
    assert command_line.__file__ not in said.err
    (log,) = Path(toy.seen[0]["output_dir"]).glob("*.log")
    assert "warning: k-NN falls\n" in log.read_text()
    assert warnings.formatwarning is usual


def test_the_version_is_ours(toy):
    outcome = toy("seed=1", "--version")
    assert outcome.code == 0
    assert outcome.out.startswith(f"esvit_pl {esvit_pl.__version__}, Hydra 1.")


def test_the_task_may_choose_its_exit_code(toy):
    assert toy("experiment=embedded", "fault=signal").code == 143


def test_flags_that_exclude_one_another_are_no_traceback(toy, monkeypatch):
    outcome = toy("--cfg", "hydra", "-m", "experiment=embedded")
    said = "esvit-toy: Only one of --run, --multirun, --cfg, --info and --shell_completion can be specified\n"
    assert (outcome.code, outcome.err) == (1, said)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="Only one of --run"):
        toy("--cfg", "hydra", "-m")


def test_ctrl_c_is_no_traceback(toy):
    outcome = toy("experiment=embedded", "fault=ctrl-c")
    assert (outcome.code, outcome.err) == (130, "\ninterrupted\n")


def test_help_shows_examples_and_choices(toy):
    outcome = toy("--help")
    assert outcome.code == 0
    assert outcome.out.startswith("esvit-toy: Play.\n\nFor example:\n  esvit-toy experiment=embedded\n")
    assert "dataset.root=$HOME/images" in outcome.out
    assert "backbone: swin_small_w7, swin_tiny_w7" in outcome.out
    assert 'eval "$(esvit-toy -sc install=bash)"' in outcome.out
    assert toy.seen == []


def test_a_past_run_again(toy):
    toy("experiment=embedded", "seed=1")
    past = Path(toy.seen[0]["output_dir"])
    again = ["--config-dir", str(past / ".hydra"), "--config-name", "config", "+hydra=default"]
    assert toy(*again, "seed=9", "hydra.run.dir=again").code == 0
    assert toy.seen[1]["seed"] == 9
    assert toy(*again, "sede=9").err.splitlines()[-1] == "sede=9: did you mean seed=9?"


@pytest.mark.parametrize(("typed", "offered"), [("back", "backbone="), ("backbone=swin_s", "backbone=swin_small_w7")])
def test_tab_completes(toy, monkeypatch, typed, offered):
    monkeypatch.setenv("COMP_LINE", f"esvit-toy {typed}")
    assert offered in toy("-sc", "query=bash").out.split()


def test_hydra_1_4_gets_the_trusted_targets_and_no_version_base(monkeypatch):
    def newer_main(config_path, config_name, execution_whitelist=None):
        return config_path, config_name, execution_whitelist

    monkeypatch.setattr(command_line.hydra, "main", newer_main)
    assert command_line._hydra_main("a.conf", "b") == ("pkg://a.conf", "b", instantiation.trusted_patterns())


def test_errors_for_people():
    class MisconfigurationException(Exception):
        """Lightning's has this name."""

    assert command_line.is_for_people(MisconfigurationException())
    assert command_line.is_for_people(FileNotFoundError("images"))
    assert command_line.is_for_people(command_line.UserError())
    assert not command_line.is_for_people(ValueError("raised by nobody"))
    assert not command_line.is_for_people(RuntimeError("shape"))
