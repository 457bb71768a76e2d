"""Every fenced block of README and docs runs, at the size of a test (documents.py says how)."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import documents
import pytest
import timm
import yaml
from commandline import as_in_a_new_process, write_pictures  # the commands as a user types them
from documents import ROOT, Block

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*have no `validation_step`"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*declarative_base"),  # Optuna 2 on SQLAlchemy 2
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]

SWIN = {"embed_dim": "4", "depths": "[1,1]", "num_heads": "[1,2]", "window": "2", "img_size": "16"}
VIEWS = {"global_size": "16", "local_size": "8", "eval_resize": "16", "eval_crop": "16", "supervised_size": "16"}
LOSS = {"num_prototypes": "16", "hidden_dim": "16", "out_dim": "8", "teacher_temp_warmup_epochs": "0"}
SHORT = {"warmup_epochs": "0"}


def reduced(command: str, words: list[str]) -> list[str]:
    """The same command line on a tiny model, tiny views and a CPU, for an epoch; our value of a key wins."""
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    ours = {"datamodule.batch_size": "8", "datamodule.num_workers": "0", "trainer.devices": "1"}
    if "trainer" not in chosen or chosen["trainer"] in ("gpu", "ddp", "slurm", "default"):
        ours["trainer"] = "cpu"
    if command in ("pretrain", "linear", "finetune"):
        ours["trainer.max_epochs"] = "1"
    if chosen.get("dataset") == "photographs" or chosen.get("experiment") == "embedded":
        ours |= {"dataset.train_patches": "3", "dataset.test_patches": "2"}
    if chosen.get("augment") not in ("cifar",) and chosen.get("experiment") != "squares":
        crops = () if command in ("pretrain", "bench") else ("global_size", "local_size")  # evaluation has none
        ours |= {f"augment.{key}": value for key, value in VIEWS.items() if key not in crops}
    if command == "knn" and chosen.get("evaluator@module", "knn") == "knn":
        ours["module.k"] = "3" if not chosen.get("module.k", "").startswith("[") else "[3,2]"
    if command == "linear":
        ours["module.last_blocks"] = "2"
    if command == "pretrain":
        ours |= {f"optimizer.{key}": value for key, value in SHORT.items()}
        ours |= {"evaluation.probes": "[]", "module.freeze_prototypes_epochs": "0"}
        if chosen.get("callbacks", "default") in ("default", "knn"):
            ours["callbacks.knn.k"] = "3"
        if chosen.get("experiment") != "squares":
            if chosen.get("backbone") == "timm":
                ours |= {f"augment.{key}": str(4 * int(value)) for key, value in VIEWS.items()}  # a patch at least
            else:
                ours |= {f"backbone.{key}": value for key, value in SWIN.items()}
            ours |= {f"loss.{key}": value for key, value in LOSS.items()}
    merged = {word.split("=", 1)[0]: word for word in words if "=" in word}
    merged |= {key: f"{key}={value}" for key, value in ours.items()}
    return [*(word for word in words if "=" not in word), *merged.values()]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with photos/ and, on demand, a past run in RUN/; afterwards the modules of blocks are forgotten."""
    import esvit_pl.api as api
    from esvit_pl.backbones import FAMILIES
    from esvit_pl.configs import instantiation
    from esvit_pl.schedules import SHAPES

    for hue, name in enumerate(("red", "green", "blue")):
        write_pictures(tmp_path / "photos" / name, 12, hue)
        for part, number in (("train", 10), ("val", 4)):
            write_pictures(tmp_path / "imagenet" / part / f"n0000000{hue}", number, hue)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ESVIT_LOG_DIR", "logs")
    if find_spec("stable_pretraining") is None:
        monkeypatch.setitem(sys.modules, "stable_pretraining", import_module("stable_pretraining_stub"))
    monkeypatch.setattr(timm, "create_model", partial(random_weights, timm.create_model))
    composed = api.composed
    monkeypatch.setattr(api, "composed", lambda command, words: composed(command, reduced(command, list(words))))
    shapes = dict(SHAPES)
    families, allowed, modules = dict(FAMILIES), list(instantiation._allowed), set(sys.modules)
    environment = dict(os.environ)
    yield tmp_path
    FAMILIES.clear()
    FAMILIES.update(families)
    SHAPES.clear()
    SHAPES.update(shapes)
    instantiation._allowed[:] = allowed
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    os.environ.clear()
    os.environ.update(environment)


def random_weights(create: Callable[..., Any], name: str, pretrained: bool = False, **settings: Any) -> Any:
    """``timm.create_model`` without a download: random weights, and a Swin as small as `reduced` makes it."""
    if pretrained and name.startswith("swin_"):
        settings |= {key: yaml.safe_load(value) for key, value in SWIN.items() if key != "window"}
        settings["window_size"] = int(SWIN["window"])
    return create(name, pretrained=pretrained and name.startswith("local-dir:"), **settings)


def run_block(block: Block, names: dict[str, Any]) -> None:
    if block.title is not None:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.body, encoding="utf-8")
    elif block.language == "python":
        if '"RUN/' in block.body and 'pretrain("photos", "RUN"' not in block.body:
            make_past_run()
        code = "\n" * block.line + block.body  # so that a traceback names the line of the document
        exec(compile(code, block.document, "exec"), names)
    elif block.language == "bash":
        for line in documents.commands(block.body):
            run_line(line)
    elif block.language == "yaml":
        yaml.safe_load(block.body)


def run_line(line: str) -> None:
    words = [word.replace("=/data/imagenet", "=imagenet") for word in shlex.split(line)]
    program = words[0]
    if program == "export":
        os.environ.update(word.split("=", 1) for word in words[1:])
    elif program.startswith("esvit-"):
        run_command(program.removeprefix("esvit-"), words[1:])
    elif program == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif program == "eval":
        subprocess.run(["bash", "-euc", line], check=True, capture_output=True, env=with_commands())
    elif words[:2] == ["pip", "install"]:
        asked = set(",".join(re.findall(r"\[(.*?)\]", line)).split(",")) - {""}
        assert asked <= set(re.findall(r"^(\w+) =", (ROOT / "setup.cfg").read_text(), re.MULTILINE)), line
    elif program == "python":
        subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, timeout=300)
    else:
        raise AssertionError(f"no test knows how to run {line!r}")


def with_commands() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run_command(name: str, words: list[str]) -> None:
    out, err, code = io.StringIO(), io.StringIO(), 0
    if any(word.startswith(("ckpt_path=RUN/", "init_from=RUN/")) for word in words):
        make_past_run()
    if name in ("pretrain", "linear", "finetune", "knn") and not any(word.startswith("--") for word in words):
        words = reduced(name, words)
    with as_in_a_new_process(f"esvit-{name}", words), redirect_stdout(out), redirect_stderr(err):
        try:
            import_module(f"esvit_pl.commands.{name}").main()
        except SystemExit as stop:
            code = stop.code or 0
    assert code == 0, f"esvit-{name} {shlex.join(words)}\n{out.getvalue()}\n{err.getvalue()}"


def make_past_run() -> None:
    import esvit_pl

    if not Path("RUN").exists():
        esvit_pl.pretrain("photos", "RUN")


LONG = {"experiments.md", "backbones.md", "interop.md", "checkpoints.md"}  # whose blocks take most of the time


def cases() -> Iterator[Any]:
    """Every document, and once more, slow, those with slow blocks."""
    for path in documents.documents():
        yield pytest.param(path, False, id=path.name, marks=[pytest.mark.slow] if path.name in LONG else [])
        if any(block.slow for block in documents.blocks(path)):
            yield pytest.param(path, True, id=f"{path.name}-slow", marks=pytest.mark.slow)


@pytest.mark.parametrize(("path", "slow"), list(cases()))
def test_every_block_runs(path: Path, slow: bool, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in documents.blocks(path):
        if block.slow and not slow:
            continue
        assert block.language in documents.LANGUAGES, f"{block.document}:{block.line} is in no known language"
        try:
            run_block(block, names)
        except BaseException as error:
            raise AssertionError(f"{block.document}:{block.line} does not run") from error


def test_a_block_that_is_wrong_is_found(desk: Path) -> None:
    for language, body in (("python", "1 / 0"), ("bash", "esvit-knn ckpt_path=none.ckpt dataset=photographs")):
        with pytest.raises((ZeroDivisionError, AssertionError)):
            run_block(Block("x.md", 1, language, None, False, body), {})
    with pytest.raises(AssertionError, match="no test knows how to run 'rm -rf /'"):
        run_line("rm -rf /")
    with pytest.raises(AssertionError):
        run_line("pip install 'esvit_pl[nothing]'")


def test_a_foreign_package_is_used_by_code_that_trusts_it_and_by_no_config_alone(desk: Path) -> None:
    for block in documents.blocks(ROOT / "docs" / "extending.md"):
        if block.title is not None:
            run_block(block, {})
    (desk / "theirs" / "__init__.py").write_text(
        "open('marker', 'w').close()\n" + (desk / "theirs/__init__.py").read_text()
    )
    words = ["--config-dir", str(desk / "theirs" / "conf"), "experiment=squares"]
    with pytest.raises(AssertionError, match=r"_target_ 'theirs\.[.\w]+' is not on the list .*ESVIT_PLUGINS"):
        run_command("pretrain", words)
    assert not (desk / "marker").exists()  # nothing of it has run
    os.environ["ESVIT_PLUGINS"] = "theirs"
    run_command("pretrain", words)
    assert (desk / "marker").exists()


def test_links_lead_somewhere() -> None:
    for path in documents.documents():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
