from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
import toys

from esvit_pl.augment import EvaluationTransform, Recipe
from esvit_pl.callbacks import AttentionMaps, Correspondences, PCAMaps

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),
]
TRANSFORM = EvaluationTransform(Recipe(global_size=32, eval_resize=32, eval_crop=32))
IMAGE = torch.randint(0, 255, (3, 40, 60), generator=torch.Generator().manual_seed(0)).byte()


class Foreign(pl.LightningModule):
    """Somebody's training, with one of our backbones in it."""

    def __init__(self):
        super().__init__()
        self.net = toys.backbone()
        self.head = torch.nn.Linear(self.net.width, 2)

    def training_step(self, batch, batch_idx):
        return self.head(self.net(batch).pooled).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(tmp_path, *callbacks, epochs=2):
    torch.manual_seed(0)
    module = Foreign()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.rand(4, 3, 32, 32), batch_size=2))
    return module


def test_they_draw_in_a_foreign_project_and_change_nothing(tmp_path):
    how = {"features": "net", "transform": TRANSFORM}
    watched = train(
        tmp_path,
        AttentionMaps(IMAGE, query=[(10, 10), (50, 30)], **how),
        Correspondences([IMAGE, IMAGE], k=3, **how),
        PCAMaps([IMAGE, IMAGE], foreground=True, every_n_epochs=2, **how),
    )
    files = sorted(path.relative_to(tmp_path / "figures").as_posix() for path in tmp_path.rglob("*.png"))
    assert files == [
        "attention/step_000001.png",
        "attention/step_000003.png",
        "correspondence/1/step_000001.png",
        "correspondence/1/step_000003.png",
        "correspondence/2/step_000001.png",
        "correspondence/2/step_000003.png",
        "pca/step_000003.png",
    ]
    alone = train(tmp_path)
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, watched.state_dict()[name]), name


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(ValueError, match="AttentionMaps looks for features='encoder', and Foreign has no attribute"):
        train(tmp_path, AttentionMaps(IMAGE, (1, 1)))
    with pytest.raises(ValueError, match="nothing says how images are prepared"):
        train(tmp_path, PCAMaps(IMAGE, features="net"))
    with pytest.raises(ValueError, match="PCAMaps needs an image or more, got none"):
        PCAMaps([])
