# %% [markdown]
# # Our callbacks in your own Lightning project
#
# The module below knows nothing of this library: a small convolutional network that learns without labels by
# predicting one noisy crop of an image from another (SimSiam, Chen and He, arXiv 2011.10566). We look at it with four
# callbacks, none of which changes a bit of its training:
#
# - `OnlineKNN`: k-NN accuracy of a feature after every epoch;
# - `OnlineLinear`: linear classifiers that learn beside the network, with an optimizer of their own;
# - `CollapseMonitor`: says when all images begin to get the same feature;
# - `LearningCurve`: a picture that is drawn again after every epoch.

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esvit_pl.callbacks import CollapseMonitor, LearningCurve, OnlineKNN, OnlineLinear
from esvit_pl.datasets import photographs

SHORT = os.environ.get("ESVIT_SHORT") == "1"  # the size of a test
EPOCHS = 2 if SHORT else 6
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")

# %% [markdown]
# ## The foreign project
#
# Plain tensors in plain loaders: patches of 19 photographs, (image, label).

# %%
splits = photographs(train_patches=20 if SHORT else 150, test_patches=10 if SHORT else 60)


def tensors(images) -> TensorDataset:
    pixels = torch.stack([images[i][0] for i in range(len(images))]).float() / 127.5 - 1
    return TensorDataset(pixels, torch.tensor(images.labels))


train = DataLoader(tensors(splits.train), batch_size=64, shuffle=True, drop_last=True)
bank, query = DataLoader(tensors(splits.bank), batch_size=256), DataLoader(tensors(splits.query), batch_size=256)


# %%
class SimSiam(pl.LightningModule):
    """`stop_gradient=False` leaves out the one thing that keeps it from collapsing."""

    def __init__(self, stop_gradient: bool = True) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient
        widths = [3, 32, 64, 128]
        layers = []
        for width, following in zip(widths, widths[1:]):
            layers += [nn.Conv2d(width, following, 3, stride=2, padding=1), nn.BatchNorm2d(following), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projector = nn.Linear(128, 128)
        self.predictor = nn.Sequential(nn.Linear(128, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 128))

    def view(self, images: torch.Tensor) -> torch.Tensor:
        """A crop of 24 px of each image, mirrored or not, lighter or darker, with noise."""
        y, x = torch.randint(0, 9, (2,)).tolist()
        crops = images[:, :, y : y + 24, x : x + 24]
        crops = crops.flip(-1) if torch.rand(()) < 0.5 else crops
        light = 1 + 0.4 * torch.randn(len(crops), 1, 1, 1)
        return light * crops + 0.1 * torch.randn_like(crops)

    def training_step(self, batch, batch_idx):
        images, _ = batch
        features = [self.trunk(self.view(images)) for _ in range(2)]
        targets = [self.projector(feature) for feature in features]
        predictions = [self.predictor(target) for target in targets]
        if self.stop_gradient:
            targets = [target.detach() for target in targets]
        one = F.cosine_similarity(predictions[0], targets[1]).mean()
        loss = -(one + F.cosine_similarity(predictions[1], targets[0]).mean()) / 2
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


# %% [markdown]
# ## Looking at it
#
# A feature is named by its path in the module, or given as a function of images. A bank and a query are loaders, or
# the names of loaders. The module returns only a loss, so `CollapseMonitor` and `OnlineLinear` are told where
# features come from.


# %%
def look(folder: Path) -> list[pl.Callback]:
    return [
        OnlineKNN({"trunk": "trunk", "raw": lambda images: images.flatten(1)}, bank=bank, query=query, k=[20, 5]),
        OnlineLinear("trunk", query=query, num_classes=19, lr=[0.03, 0.3, 3.0]),
        CollapseMonitor(embedding="trunk", every_n_steps=2, start_epoch=0.5),
        LearningCurve(folder, losses=["loss"]),
    ]


def fit(module: pl.LightningModule, callbacks: list[pl.Callback], epochs: int = EPOCHS) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train)
    return trainer


folder = Path(tempfile.mkdtemp())
pl.seed_everything(0, verbose=False)
module = SimSiam()
trainer = fit(module, look(folder))
for name, value in sorted(trainer.callback_metrics.items()):
    print(f"{name:<28} {value:.3f}")

# %% [markdown]
# Fractions of 1; `knn/top1` and `linear/top1` are the names for `ModelCheckpoint(monitor=...)` and `EarlyStopping`.
# The picture:

# %%
try:
    from IPython.display import Image, display

    display(Image(str(folder / "learning_curve.png"), width=480))
except ImportError:
    print(folder / "learning_curve.png")

# %% [markdown]
# ## Nobody was disturbed
#
# The same training without any callback ends with the same weights, to the last bit.

# %%
pl.seed_everything(0, verbose=False)
alone = SimSiam()
fit(alone, [])
same = all(torch.equal(value, alone.state_dict()[name]) for name, value in module.state_dict().items())
print("equal:", same)
assert same

# %% [markdown]
# ## An alarm
#
# Without the stop-gradient all images can get the same projection, and the loss reaches its minimum of -1 without
# anything learnt. The loss looks better than ever; the monitor knows better. It watches the projections here, where
# the collapse is.

# %%
collapsing = SimSiam(stop_gradient=False)
monitor = CollapseMonitor(embedding="projector", every_n_steps=2, start_epoch=0.5, stop=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    trainer = fit(collapsing, [monitor], epochs=3 * EPOCHS)
for warning in caught:
    if "CollapseMonitor" in str(warning.message):
        print(warning.message)
print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})

# %% [markdown]
# ## What next
#
# - In a project of yours: `pip install esvit_pl`, and `callbacks=[OnlineKNN("encoder", bank=loader, query=loader)]` in
#   your `Trainer`; more of them, and parts to take, in [interop](../docs/interop.md).
# - What the curves and alarms mean: [is it learning?](../docs/learning.md)
# - All probes, with and without labels: [evaluation](../docs/evaluation.md).
# - Train with this library instead: [pretrain on your own photographs](01_pretrain_and_look.ipynb).
