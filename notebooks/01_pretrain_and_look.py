# %% [markdown]
# # Pretrain a backbone, and look at what it has learnt
#
# Everything here runs on a laptop's CPU and needs no download: the images are patches of 19 photographs that ship
# inside scikit-image and scikit-learn (`pip install 'esvit_pl[embedded]'`). The question asked of the features at the
# end is which photograph a held-out patch comes from; no label is seen in training.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import esvit_pl
from esvit_pl.augment import Recipe
from esvit_pl.datasets import FREE_TO_SHOW, photographs
from esvit_pl.evaluation import extract_features
from esvit_pl.metrics import knn_accuracy

SHORT = os.environ.get("ESVIT_SHORT") == "1"  # the size of a test
EPOCHS = 1 if SHORT else 4

# %% [markdown]
# ## The configuration
#
# `compose` gives what a command would run with, and runs nothing. `list_backbones` names what `backbone=` can be.

# %%
print(esvit_pl.list_backbones("swin_*"))
cfg = esvit_pl.compose("pretrain", "experiment=embedded")
print(cfg.backbone)
print(cfg.loss)

# %% [markdown]
# ## Training
#
# One call does what `esvit-pretrain experiment=embedded trainer.max_epochs=4` does: train, measure with k-NN, draw.
# The recipe is made for 12 epochs (`make run`); a third of it is enough to see something. Every setting of the
# command is an argument: an option by name (`loss="view"`), a value by its dotted name.

# %%
run = esvit_pl.pretrain(
    experiment="embedded",
    out=Path(os.environ.get("ESVIT_LOG_DIR", "logs")) / "notebooks" / f"look_{torch.randint(10**9, ()).item()}",
    epochs=EPOCHS,
    **{"evaluation.probes": ["knn"]},
    **({"dataset.train_patches": 20, "dataset.test_patches": 10, "optimizer.warmup_epochs": 0.5} if SHORT else {}),
)

# %% [markdown]
# The run shows itself: where its files are, its pictures, the last value of everything that was logged.

# %%
run

# %% [markdown]
# ## The backbone
#
# A plain `nn.Module`: one pooled feature for an image, one for each region, and the grid of the regions.

# %%
images = torch.randn(2, 3, 32, 32)
features = run.backbone(images)
print(features.pooled.shape, features.regions.shape, features.grid)

# %% [markdown]
# ## Nearest neighbours
#
# Features of all patches: the training patches are the bank, the held-out ones ask. The same loaders serve k-NN, the
# linear probe and whatever you have in mind.

# %%
splits = photographs(**({"train_patches": 20, "test_patches": 10} if SHORT else {}))
recipe = Recipe(
    global_size=32, local_size=16, eval_resize=32, eval_crop=32, mean=[0.5, 0.5, 0.5], std=[0.157, 0.157, 0.157]
)
data = esvit_pl.ImageDataModule(splits, recipe, num_workers=0)
bank = extract_features(run.backbone, data.bank_dataloader())
query = extract_features(run.backbone, data.query_dataloader())
accuracy = knn_accuracy(bank.features, bank.labels, query.features, query.labels, k=[1, 20])
print({k: f"{100 * top.top1:.1f} %" for k, top in accuracy.items()})


# %%
def free(images) -> list[int]:
    """Patches of photographs that may be shown in a published notebook."""
    return [index for index in range(len(images)) if images.name(index).split("/")[0] in FREE_TO_SHOW]


shown = free(splits.bank)
asked = free(splits.query)[:: len(free(splits.query)) // 6][:6]
cosine = F.normalize(query.features[asked], dim=1) @ F.normalize(bank.features[shown], dim=1).T
nearest = [[shown[column] for column in row] for row in cosine.topk(6, dim=1).indices.tolist()]
figure, cells = plt.subplots(len(asked), 7, figsize=(7, 1.05 * len(asked)), layout="constrained")
figure.suptitle("left: asked; then the nearest in the bank, green if from the same photograph", fontsize=10)
for row, index, neighbours in zip(cells, asked, nearest):
    patch, label = splits.query[index]
    row[0].imshow(patch.permute(1, 2, 0))
    for cell, neighbour in zip(row[1:], neighbours):
        found, its_label = splits.bank[neighbour]
        cell.imshow(found.permute(1, 2, 0))
        cell.spines[:].set(color="#009E73" if its_label == label else "#D55E00", linewidth=3)
    for cell in row:
        cell.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Later
#
# The checkpoint holds everything: go on training with `ckpt_path=`, measure with `evaluate`, or take the backbone
# elsewhere.

# %%
print(run.checkpoint)
again = esvit_pl.evaluate(
    run.checkpoint,
    "photographs",
    run.folder / "evaluation",
    knn={"k": [20, 5]},
    augment="embedded",
    trainer="cpu",
    **{"datamodule.num_workers": 0},
    **({"dataset.train_patches": 20, "dataset.test_patches": 10} if SHORT else {}),
)
print(again.metrics)
