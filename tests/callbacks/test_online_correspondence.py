from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
import toys

from esvit_pl.augment import Recipe
from esvit_pl.callbacks import CorrespondenceAccuracy
from esvit_pl.data import ImageDataModule
from esvit_pl.datasets import ArrayDataset, Splits
from esvit_pl.evaluation import EvaluationData, RegionCorrespondence, RegionRetrieval

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),
    pytest.mark.filterwarnings("ignore:.*no `validation_step`"),
]


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = toys.backbone()

    def training_step(self, batch, batch_idx):
        return self.encoder(batch["views"][0]).pooled.square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images():
    pixels = torch.randint(0, 255, (8, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()
    data = ArrayDataset(pixels, [f"{number}.png" for number in range(8)])
    return ImageDataModule(Splits(data, data), Recipe(global_size=32, num_local=0), batch_size=4, num_workers=0)


def trainer(*callbacks):
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), use_distributed_sampler=False,
    )  # fmt: skip


def test_it_logs_what_the_evaluators_say_of_the_finished_epoch():
    torch.manual_seed(0)
    module, data = Module(), images()
    fit = trainer(CorrespondenceAccuracy(seed=3, retrieval=6))
    fit.fit(module, data)
    pairs = EvaluationData(pairs=images().pairs_dataloader)
    encoder = module.encoder.eval()
    expected = RegionCorrespondence(seed=3).run(encoder, pairs) | RegionRetrieval(6, seed=3).run(encoder, pairs)
    logged = {name: float(value) for name, value in fit.callback_metrics.items() if "/" in name}
    assert logged == pytest.approx(expected, rel=1e-5)
    assert logged["retrieval/image_chance"] == pytest.approx(1 / 6)


def test_a_project_without_pairs_is_told_what_is_missing():
    loader = torch.utils.data.DataLoader(images().dataset.train, batch_size=4)
    with pytest.raises(ValueError, match="needs pairs of views: a datamodule with pairs_dataloader, or pairs="):
        trainer(CorrespondenceAccuracy()).fit(Module(), loader)
