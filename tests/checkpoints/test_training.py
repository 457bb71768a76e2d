from __future__ import annotations

import pickle

import pytest
import torch
import toys
from pytorch_lightning.callbacks import ModelCheckpoint

from esvit_pl.checkpoints import load_backbone, load_training_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = toys.pretrainer(config={"note": "plain"})
    saver = ModelCheckpoint(folder, save_last=True)
    toys.trainer(folder, callbacks=[saver], enable_checkpointing=True).fit(module, toys.loader(16, 8))
    return module, folder / "last.ckpt"


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_the_backbone_comes_back_from_the_checkpoint_alone(trained, network):
    module, path = trained
    backbone = load_backbone(path, network=network)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(x).pooled, getattr(module, network).backbone(x).pooled)
    assert not backbone.training
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_checkpoint_says_what_it_is(trained):
    module, path = trained
    saved = load_training_checkpoint(path)["esvit_pl"]
    assert saved["format"] == 1
    assert saved["backbone"] == module.student.backbone.spec
    assert saved["loss"]["num_prototypes"] == 12
    assert saved["config"] == {"note": "plain"}


def test_broken_files_are_named(tmp_path, trained):
    with pytest.raises(ValueError, match="none.ckpt is no file"):
        load_training_checkpoint(tmp_path / "none.ckpt")
    for content in (b"", b"hello", trained[1].read_bytes()[:1000]):
        path = tmp_path / "broken.ckpt"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="broken.ckpt cannot be read as a checkpoint"):
            load_training_checkpoint(path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt is no checkpoint of esvit-pretrain"):
        load_training_checkpoint(tmp_path / "other.ckpt")


class Malicious:
    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_code_inside_a_checkpoint_does_not_run(tmp_path):
    path, marker = tmp_path / "bad.ckpt", tmp_path / "marker"
    torch.save({"esvit_pl": {}, "state_dict": Malicious(marker)}, path)
    with pytest.raises(ValueError, match="bad.ckpt cannot be read"):
        load_training_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker))).close()
    assert marker.exists()  # it would have
