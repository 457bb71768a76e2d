# %% [markdown]
# # Features of your images, and what to do with them
#
# A backbone makes a row of numbers of each image. With these rows in a file, much is a matter of seconds: find what
# is alike, find copies, draw a map of a folder, learn classes from a few labels. No download and no GPU is needed;
# the pictures ship inside scikit-image (`pip install 'esvit_pl[embedded]'`).

# %%
import os
import subprocess
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage
import torch
from PIL import Image, ImageEnhance

import esvit_pl
from esvit_pl.datasets import FREE_TO_SHOW
from esvit_pl.datasets.photographs import PHOTOGRAPHS
from esvit_pl.evaluation import load_features
from esvit_pl.metrics import nearest
from esvit_pl.visualize.pca import components

SHORT = os.environ.get("ESVIT_SHORT") == "1"  # the size of a test
work = Path(os.environ.get("ESVIT_LOG_DIR", "logs")) / "notebooks" / f"search_{os.getpid()}"

# %% [markdown]
# ## The images
#
# `photos/` is our collection: tiles of 96 pixels of fourteen photographs, in one folder for each photograph.
# `incoming/` holds new files. Half of them are new tiles. The other half are *copies* of tiles in the collection, as
# the internet makes them: cut by three pixels at each side, lighter, and saved again as poor JPEGs.

# %%
photos, incoming, side = work / "photos", work / "incoming", 96
incoming.mkdir(parents=True)
for name in sorted(FREE_TO_SHOW):
    picture = Image.open(Path(skimage.data_dir).parent / PHOTOGRAPHS[name][1]).convert("RGB")
    picture.thumbnail((640, 640))
    down, along = (range(0, length - side + 1, side) for length in (picture.height, picture.width))
    tiles = [picture.crop((x, y, x + side, y + side)) for y in down for x in along]
    tiles = [tile for tile in tiles if np.asarray(tile.convert("L")).std() >= 8][: 4 if SHORT else None]
    (photos / name).mkdir(parents=True)
    middle = len(tiles) // 2
    for number, tile in enumerate(tiles):
        folder, file = (incoming, f"{name}_new") if number == middle else (photos / name, f"{name}_{number:02d}")
        tile.save(folder / f"{file}.jpg", quality=90)
    copied = middle - 1
    copy = ImageEnhance.Brightness(tiles[copied].crop((3, 3, side - 3, side - 3))).enhance(1.2)
    copy.save(incoming / f"{name}_{copied:02d}_copy.jpg", quality=30)
print(len(list(photos.rglob("*.jpg"))), "in the collection,", len(list(incoming.iterdir())), "new files")

# %% [markdown]
# ## A backbone
#
# We train a small one for a minute or two, on grey patches of 32 pixels of photographs that ship with Python
# packages, because this notebook downloads nothing. (Trained on the 261 tiles below `photos/` instead,
# `experiment=own_images` with 30 epochs or 120 steps, it was no better than before: k-NN 70 %, untrained 74 %. That
# is too few steps.) Take any other in its place: a run of yours, a released checkpoint, or the name of one of timm's
# (`"vit_small_patch16_224.dino"`).

# %%
settings = {"epochs": 3, "optimizer.warmup_epochs": 0.5, "evaluation.probes": []}
if SHORT:
    settings |= {"epochs": 1, "dataset.train_patches": 8, "dataset.test_patches": 4}
run = esvit_pl.pretrain("photographs", work / "run", experiment="embedded", **settings)

# %% [markdown]
# ## Features in a file
#
# `regions=True` keeps the region maps beside the pooled features: larger, and needed only for the search by region.

# %%
on = {"trainer": "cpu", "datamodule.num_workers": 0}
file = esvit_pl.embed(run.checkpoint, photos, work / "photos.npz", regions=True, **on)
names, labels, features, about = load_features(file)
print(f"{file.stat().st_size / 1e6:.1f} MB", {kind: array.shape for kind, array in features.items()})
print(names[0], labels[0], about["classes"][labels[0]])

# %% [markdown]
# ## Search by an image
#
# `esvit-neighbours` prints and draws the nearest images of the collection. It refuses a file of features that came
# from other weights, another preparation or other images. Above each picture stands its cosine.


# %%
def neighbours(query: list[Path], *words: str) -> Image.Image:
    settings = [f"ckpt_path={run.checkpoint}", f"embedded={file}", "dataset=folder", f"dataset.root={photos}"]
    settings += [f"query=[{','.join(map(str, query))}]", f"out={work}/neighbours.png", "trainer=cpu", *words]
    done = subprocess.run(["esvit-neighbours", *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Image.open(work / "neighbours.png").convert("RGB").quantize(128)  # a notebook should stay small


asked = ["coins", "rocket", "coffee", "chelsea"]
neighbours([incoming / f"{name}_new.jpg" for name in asked], "k=6")

# %% [markdown]
# The same for all new tiles in Python, counted. `nearest` is the function behind the command.

# %%
new_names, _, new, _ = load_features(esvit_pl.embed(run.checkpoint, incoming, work / "incoming.npz", **on))
bank, query = torch.from_numpy(features["pooled"]), torch.from_numpy(new["pooled"])
cosines, places = nearest(bank, query, k=5)
tiles = [row for row, name in enumerate(new_names) if name.endswith("_new.jpg")]
hits = [sum(names[place].split("/")[0] == new_names[row].split("_")[0] for place in places[row]) for row in tiles]
share = np.mean(labels[:, None] == labels[None])
print(f"{sum(hits)} of {5 * len(tiles)} neighbours of new tiles come from the same photograph; by chance {share:.0%}")

# %% [markdown]
# ## Search by a region
#
# `place=[x,y]` names a place of the query in pixels. The answer is the most similar region of each image, outlined.
# The place here is the dark ground beside a coin.

# %%
neighbours([incoming / "coins_new.jpg"], "k=6", "regions=true", "place=[48,40]")

# %% [markdown]
# It finds edges of round things: coins, but also a cup and a collar. The map of this backbone has 4 x 4 regions.
#
# ## Copies
#
# A copy should have a larger cosine to its original than any new tile has to anything. Where one threshold parts
# both, copies can be sorted out; where both overlap, somebody has to look.

# %%
copies = [row for row, name in enumerate(new_names) if name.endswith("_copy.jpg")]
original = [names[places[row, 0]].split("/")[1] == new_names[row].replace("_copy", "") for row in copies]
first = cosines[:, 0]
print(f"the original comes first for {sum(original)} of {len(copies)} copies")
print(f"largest cosine of a copy: {first[copies].min():.3f} to {first[copies].max():.3f}")
print(f"largest cosine of a new tile: {first[tiles].min():.3f} to {first[tiles].max():.3f}")
print(f"{int((first[copies] > first[tiles].max()).sum())} of {len(copies)} copies lie above all new tiles")

# %% [markdown]
# This backbone does not part them: 8 of the 14 originals come first, and only two copies lie above all new tiles. It
# was trained to see through cuts and changes of light, but for minutes, and at 32 pixels one piece of skin or wood is
# like the next. With a backbone of yours look at these four lines first, and choose a threshold, if there is one,
# from them.
#
# The same question within the collection: which pairs are most alike?

# %%
cosines, places = nearest(bank, bank, k=2)  # the first one is the image itself
best = cosines[:, 1].argsort(descending=True)
pairs = list({tuple(sorted((row, int(places[row, 1])))): float(cosines[row, 1]) for row in best.tolist()}.items())
for (one, other), cosine in pairs[:5]:
    print(f"{cosine:.3f}  {names[one]}  {names[other]}")

# %% [markdown]
# ## A map of the folder
#
# The first two principal components of the features: images that are alike lie near each other, as far as two of so
# many dimensions can show it. The names stand at the middle of their photographs. Textures (grass, gravel), smooth
# things and dark things lie apart, more than photographs do.

# %%
x, y = components(features["pooled"], 2).T
figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
axes.scatter(x, y, c=labels, cmap="tab20", s=14)
for number, name in enumerate(about["classes"]):
    axes.annotate(name, (x[labels == number].mean(), y[labels == number].mean()), ha="center", fontsize=8)
axes.set(xlabel="first component", ylabel="second component")
plt.show()

# %% [markdown]
# ## Classes in seconds
#
# The folders are labels. k-NN and a logistic regression on the frozen features, with three tenths of the images held
# out; `cache=` keeps features, so that further probes read no image.

# %%
start = time.perf_counter()
again = esvit_pl.evaluate(
    run.checkpoint,
    photos,
    work / "evaluation",
    probes=["knn", "logistic"],
    knn={"k": [5]},
    cache=work / "cache",
    **{"dataset.val_fraction": 0.3},
    **on,
)
print(f"{time.perf_counter() - start:.0f} seconds")

# %% [markdown]
# With k-NN the pretrained backbone is ahead of the pixels, of grey levels and of itself before the training; 84
# images are few, and its range overlaps with that of the untrained one. Pictures are shown to it at 32 pixels, as in
# its training.

# %% [markdown]
# ## What next
#
# - Your own folder: `esvit-embed ckpt_path=RUN dataset=folder dataset.root=photos/ out=photos.npz`, then
#   `esvit-neighbours ckpt_path=RUN embedded=photos.npz dataset=folder dataset.root=photos/ query=new/
#   table=near.csv`. All settings: [features in a file](../docs/features.md).
# - Other probes, with few labels or none: [evaluation](../docs/evaluation.md).
# - A backbone of your own: [pretrain on your own photographs](01_pretrain_and_look.ipynb); released ones and timm's:
#   [checkpoints](../docs/checkpoints.md).
# - See why two images are alike: [look into a backbone](05_look_into_a_backbone.ipynb).
