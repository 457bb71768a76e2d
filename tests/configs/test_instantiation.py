from __future__ import annotations

import inspect
import re

import hydra
import pytest
from omegaconf import OmegaConf

from esvit_pl.configs import command_line, instantiation
from esvit_pl.configs.instantiation import allow, build, check


@pytest.fixture(autouse=True)
def _trust_nothing_more(monkeypatch):
    monkeypatch.setattr(instantiation, "_allowed", [])
    monkeypatch.delenv("ESVIT_TRUSTED_TARGETS", raising=False)


@pytest.mark.parametrize(
    "target",
    [
        "builtins.open",
        "builtins.eval",
        "os.system",
        "shutil.rmtree",
        "pickle.loads",
        "torch.load",
        "torch.hub.load",
        "hydra.utils.get_method",
        "hydra.utils.instantiate",
        "esvit_pl.commands.pretrain.main",
        "esvit_pl_evil.thing",
        "esvit_pl",
        "torch.optimx.SGD",
        "pytorch_lightning.Trainer.fit",
        "pytorch_lightning.callbacks.LambdaCallback",
        "pytorch_lightning.callbacks.lambda_function.LambdaCallback",
    ],
)
def test_a_target_that_is_not_trusted_is_refused_wherever_it_stands(target):
    tree = {"model": {"parts": [{"_target_": "torch.optim.SGD"}, {"inner": {"_target_": target}}]}}
    with pytest.raises(
        ValueError, match=rf"^model\.parts\[1\]\.inner: _target_ '{re.escape(target)}' is not on the list"
    ):
        check(tree)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.optim.adam.torch.load", "there is no module 'torch.optim.adam.torch'"),
        ("torch.optim.adam.torch", "leads to something \\(module\\)"),
        ("torch.optim.adam.cast", "leads to something \\(function\\) that is not defined in a trusted package"),
        ("pytorch_lightning.loggers.csv_logs.save_hparams_to_yaml", "leads to .* not defined in a trusted package"),
        ("torch.optim.SGD.step", "there is no module 'torch.optim.SGD'"),
        ("torch.optim.lr_schedulr.LambdaLR", "there is no module 'torch.optim.lr_schedulr'"),
        ("torch.optim.Adammw", "has no 'Adammw'; did you mean .*AdamW"),
        ("esvit_pl.backbones.biuld", "has no 'biuld'; did you mean build"),
    ],
)
def test_a_trusted_prefix_leads_nowhere_else(target, message):
    with pytest.raises(ValueError, match=message):
        check({"_target_": target}, "optimizer")


def test_a_target_behind_an_interpolation_is_seen():
    tree = OmegaConf.create({"name": "os.system", "part": {"_target_": "${name}"}})
    with pytest.raises(ValueError, match=r"^part: _target_ 'os\.system'"):
        check(tree)
    with pytest.raises(ValueError, match=r"^part: _target_ 'os\.system'"):
        build(tree.part)


def test_configs_among_the_arguments_are_looked_at_too():
    with pytest.raises(ValueError, match=r"^optimizer\.params: _target_ 'os\.getcwd'"):
        build({"_target_": "torch.optim.SGD"}, key="optimizer", params={"_target_": "os.getcwd"})


def test_own_code_is_trusted_by_code_or_environment(monkeypatch):
    tree = {"_target_": "fractions.Fraction", "_args_": [1, 3]}
    with pytest.raises(ValueError, match="ESVIT_TRUSTED_TARGETS=fractions.Fraction"):
        build(tree)
    monkeypatch.setenv("ESVIT_TRUSTED_TARGETS", "decimal., fractions.Fraction")
    assert str(build(tree)) == "1/3"
    monkeypatch.delenv("ESVIT_TRUSTED_TARGETS")
    allow("fractions.")
    assert str(build(tree)) == "1/3"
    with pytest.raises(ValueError, match="allow wants a dotted name"):
        allow(".")


def test_packages_named_in_the_environment_are_imported_and_may_allow(tmp_path, monkeypatch):
    (tmp_path / "plugged.py").write_text("from esvit_pl.configs.instantiation import allow\nallow('fractions.')\n")
    (tmp_path / "broken.py").write_text("import plugged.missing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ESVIT_PLUGINS", " plugged, ")
    instantiation.import_plugins()
    assert str(build({"_target_": "fractions.Fraction", "_args_": [1, 3]})) == "1/3"
    monkeypatch.setenv("ESVIT_PLUGINS", "pluged")
    with pytest.raises(ValueError, match="ESVIT_PLUGINS names 'pluged', and there is no such package"):
        instantiation.import_plugins()
    monkeypatch.setenv("ESVIT_PLUGINS", "broken")
    with pytest.raises(ModuleNotFoundError, match="plugged.missing"):
        instantiation.import_plugins()


def test_an_error_of_the_target_carries_the_config_key():
    tree = OmegaConf.create({"backbone": {"_target_": "esvit_pl.backbones.build", "name": "swim"}})
    with pytest.raises(ValueError, match=r"^backbone: unknown backbone family 'swim'; did you mean swin"):
        build(tree.backbone)


def test_hydra_1_4_spells_the_list_with_stars():
    assert "esvit_pl.backbones.*" in instantiation.trusted_patterns()
    assert "pytorch_lightning.Trainer" in instantiation.trusted_patterns()


def test_what_hydra_names_for_itself_is_on_its_list_and_not_on_ours():
    with hydra.initialize_config_module("esvit_pl.conf", **command_line.version_base()):
        callbacks = hydra.compose("pretrain", return_hydra_config=True).hydra.callbacks
    targets = [node._target_ for node in callbacks.values()]
    assert targets == ["esvit_pl.configs.run_folder.RunFolders", "esvit_pl.configs.sweep.SweepTable"]
    assert set(targets) <= set(instantiation.trusted_patterns())
    with pytest.raises(ValueError, match="is not on the list"):
        check({"_target_": targets[0]})


@pytest.mark.parametrize("name", ["default", "cpu", "gpu", "ddp", "ddp_cpu", "slurm"])
def test_the_trainer_configs_hold_only_what_the_trainer_knows(name, monkeypatch):
    from pytorch_lightning import Trainer

    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    with hydra.initialize_config_module("esvit_pl.conf", **command_line.version_base()):
        trainer = hydra.compose(f"trainer/{name}").trainer
    check(trainer)
    assert set(trainer) - {"_target_"} <= set(inspect.signature(Trainer).parameters)
    assert trainer.use_distributed_sampler is False
    if "strategy" in trainer and OmegaConf.is_config(trainer.strategy):
        assert trainer.strategy.broadcast_buffers is False
    if name == "slurm":
        assert (trainer.devices, trainer.num_nodes) == (4, 1)


@pytest.mark.parametrize(("name", "devices"), [("cpu", 1), ("ddp_cpu", 2)])
def test_a_trainer_is_built(name, devices, tmp_path):
    with hydra.initialize_config_module("esvit_pl.conf", **command_line.version_base()):
        node = hydra.compose(f"trainer/{name}").trainer
    trainer = build(node, default_root_dir=str(tmp_path), logger=False, callbacks=[])
    assert (trainer.max_epochs, trainer.num_devices) == (300, devices)
