"""conf/callbacks and conf/logger: what they build, and that their numbers are those of the signatures."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import toys
from hydra import compose, initialize_config_module
from hydra.utils import get_method, get_object, instantiate
from omegaconf import OmegaConf

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]


def group(*overrides: str, folder: Any = "out") -> dict[str, Any]:
    with initialize_config_module("esvit_pl.conf", version_base="1.3"):
        cfg = compose(overrides=[*overrides, f"+paths.output_dir={folder}"])
    cfg = OmegaConf.to_container(cfg, resolve=True)
    return {name: node for key in ("callbacks", "logger") for name, node in (cfg.get(key) or {}).items()}


def test_default_is_all_of_them_with_progress_after_the_measures() -> None:
    names = list(group("+callbacks=default"))
    assert names == ["knn", "throughput", "collapse", "progress", "checkpoint"]


@pytest.mark.parametrize("name", ["knn", "linear", "learning_curve", "collapse", "throughput", "progress"])
def test_a_number_has_one_home(name) -> None:
    (node,) = group(f"+callbacks={name}").values()
    instantiate(node)
    target = node.pop("_target_")
    node.pop("folder", None)  # where the run is: no signature knows
    found = get_object(target)
    parameters = inspect.signature(found if inspect.isclass(found) else get_method(target)).parameters
    defaults = {key: parameters[key].default for key in node}
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()} == node


def test_what_is_named_before_the_default_is_measured_before_the_line_of_the_epoch() -> None:
    names = list(group("+callbacks=[linear,default,learning_curve]"))
    assert names.index("linear") < names.index("progress") < names.index("learning_curve")


def test_loggers() -> None:
    assert list(group("+logger=csv")) == ["csv"]
    assert list(group("+logger=tensorboard")) == ["csv", "tensorboard"]
    assert list(group("+logger=wandb")) == ["csv", "wandb"]
    assert group("+logger=none") == group("+callbacks=none") == {}


def test_tensorboard_writes_into_the_run_folder(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    logger = instantiate(group("+logger=tensorboard", folder=tmp_path)["tensorboard"])
    assert logger.log_dir == str(tmp_path / "tensorboard")


def test_last_checkpoint_is_of_the_last_epoch_and_the_numbered_ones_stay(tmp_path) -> None:
    nodes = group("+callbacks=checkpoint", "callbacks.checkpoint.every_n_epochs=2", folder=tmp_path)
    trainer = toys.trainer(
        tmp_path, callbacks=[instantiate(node) for node in nodes.values()], enable_checkpointing=True, max_epochs=5
    )
    trainer.fit(toys.pretrainer(), toys.loader(16, 8))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("epoch_001.ckpt", "epoch_003.ckpt", "last.ckpt", "previous.ckpt")
    ]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 10
    assert torch.load(folder / "epoch_003.ckpt", weights_only=True)["global_step"] == 8
    every = group("+callbacks=checkpoint", "callbacks.checkpoint.every_n_epochs=1", folder=tmp_path)
    toys.trainer(tmp_path, callbacks=[instantiate(node) for node in every.values()], enable_checkpointing=True)
