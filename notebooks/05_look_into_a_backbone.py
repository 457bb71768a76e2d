# %% [markdown]
# # Look into a backbone
#
# What does it attend to? Which regions of two views does it take for the same? Is it right? This needs no download (the
# images ship inside scikit-image), and no GPU. In place of the small backbone that is trained here, take any:
# `esvit_pl.load_backbone("swin_tiny_w7_released.pth")` reads a released checkpoint, `esvit_pl.load_backbone(
# "vit_small_patch16_224.dino")` one of timm's.

# %%
import os
from pathlib import Path

import skimage
import torch

import esvit_pl
from esvit_pl import visualize
from esvit_pl.evaluation import EvaluationData, RegionCorrespondence

SHORT = os.environ.get("ESVIT_SHORT") == "1"  # the size of a test
settings = {"epochs": 6, "optimizer.warmup_epochs": 1, "evaluation.probes": []}
if SHORT:
    settings |= {"epochs": 1, "optimizer.warmup_epochs": 0.5, "dataset.train_patches": 8, "dataset.test_patches": 4}
out = Path(os.environ.get("ESVIT_LOG_DIR", "logs")) / "notebooks" / f"looking_{os.getpid()}"
run = esvit_pl.pretrain("photographs", out, experiment="embedded", **settings)
backbone = run.backbone
cat, coffee = (Path(skimage.data_dir) / name for name in ("chelsea.png", "coffee.png"))

# %% [markdown]
# ## Attention
#
# `attention_maps` gives an array: what each head of a block attends to from one place of the image, over the whole
# image; windows, shifts and padding are undone. The place is `x, y` in pixels. With `side=` the backbone sees a larger
# image than in its training, and the map is finer.

# %%
query = (200, 120)
maps = visualize.attention_maps(backbone, cat, query, side=96)
print(maps.shape, "heads, rows, columns; a map sums to", maps[0].sum().round(3))
picture = torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)
visualize.draw_attention(picture, maps, query)

# %% [markdown]
# A line goes round the places that hold 60 % of a head's attention. The sharpest heads come first; the bars show the
# entropy of all.
#
# ## Correspondence
#
# Two views of one picture are cut, as in training. Each region of the first is matched to the most similar region of
# the second; where both boxes lie is known, so the picture can tell right from wrong.

# %%
matched = visualize.matched_views(backbone, cat, color=False, seed=1)
print(int((matched.steps == 0).sum()), "of", len(matched.steps), "of the most similar pairs are right")
visualize.draw_correspondence(matched)

# %% [markdown]
# A picture is no measure. The number for many images, beside what chance and the same backbone before its training
# would give:

# %%
data = EvaluationData(
    pairs=esvit_pl.data.ImageDataModule(
        esvit_pl.datasets.photographs(train_patches=8, test_patches=8 if SHORT else 60),
        backbone.transform.recipe,
        num_workers=0,
    ).pairs_dataloader
)
torch.manual_seed(0)
untrained = esvit_pl.backbones.build(**backbone.spec).eval()
for name, each in {"untrained": untrained, "trained": backbone}.items():
    answer = RegionCorrespondence(color=False).run(each, data)
    print(f"{name:9}  exact {answer['correspondence/exact']:.3f}  near {answer['correspondence/near']:.3f}")
print(f"chance     exact {answer['correspondence/exact_chance']:.3f}  near {answer['correspondence/near_chance']:.3f}")

# %% [markdown]
# ## Principal components as colours
#
# Regions that the backbone calls similar get similar colours, in all pictures.

# %%
pictures = [torch.from_numpy(image).permute(2, 0, 1) for image in (skimage.data.chelsea(), skimage.data.coffee())]
visualize.draw_pca(pictures, {"trained": visualize.pca_maps(backbone, [cat, coffee], side=160)})

# %% [markdown]
# ## What next
#
# - The same of your own photograph, from a terminal:
#   `esvit-visualize draw=attention image=photo.jpg query=[200,120] ckpt_path=RUN`; all pictures in
#   [looking](../docs/looking.md).
# - While a training runs: `callbacks=[default,attention] callbacks.attention_maps.images=[photo.jpg]`
#   `callbacks.attention_maps.query=[200,120]`.
# - Released weights, timm's, and your own: [checkpoints](../docs/checkpoints.md), [backbones](../docs/backbones.md).
# - Find images that are alike: [features and search](04_features_and_search.ipynb).
# - Train on your own photographs: [pretrain and look](01_pretrain_and_look.ipynb).
