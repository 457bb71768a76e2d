# %% [markdown]
# # Pretrain on a folder of your own photographs, and look at what was learnt
#
# All you need is a folder of images, without labels. Everything here runs on a laptop's CPU in some minutes and needs
# no download: the folder is made of pictures that ship inside scikit-image (`pip install 'esvit_pl[embedded]'`). With
# photographs of yours leave the first step out.

# %%
import os
from collections import Counter
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image

import esvit_pl
from esvit_pl.datasets import FREE_TO_SHOW, Splits, splits_of
from esvit_pl.datasets.photographs import PHOTOGRAPHS
from esvit_pl.evaluation import GreyHistogram, RawPixels, extract_features, load_features
from esvit_pl.metrics import nearest
from esvit_pl.visualize import neighbours

SHORT = os.environ.get("ESVIT_SHORT") == "1"  # the size of a test
EPOCHS = 1 if SHORT else 30
work = Path(os.environ.get("ESVIT_LOG_DIR", "logs")) / "notebooks" / f"look_{os.getpid()}"

# %% [markdown]
# ## A folder
#
# Fourteen photographs are cut into tiles of 48 pixels that share no pixel; tiles that show next to nothing are left
# out. All lie in one folder, and no subfolder says what is what. Only the names of the files tell from which
# photograph a tile comes: the training never uses them, and we use them at the end to judge.

# %%
photos, side = work / "photos", 48
photos.mkdir(parents=True)
for name in sorted(FREE_TO_SHOW):
    picture = Image.open(Path(skimage.data_dir).parent / PHOTOGRAPHS[name][1]).convert("RGB")
    picture.thumbnail((640, 640))
    corners = [
        (x, y) for y in range(0, picture.height - side + 1, side) for x in range(0, picture.width - side + 1, side)
    ]
    tiles = [picture.crop((x, y, x + side, y + side)) for x, y in corners[:: 8 if SHORT else 1]]
    for number, tile in enumerate(tile for tile in tiles if np.asarray(tile.convert("L")).std() >= 8):
        tile.save(photos / f"{name}_{number:03d}.jpg", quality=90)
print(len(list(photos.iterdir())), "files, such as", *sorted(path.name for path in photos.iterdir())[:3])

# %% [markdown]
# ## A plan
#
# `experiment="own_images"` chooses backbone, crops, batch and all the rest from the number and the size of the images
# and from the machine, and gives its reasons. `plan` shows this and starts nothing. Left alone it would train longer;
# what you set yourself, here `epochs`, wins. (On a machine without a GPU `trainer="cpu"` is what it chooses anyway.)

# %%
settings = {"experiment": "own_images", "epochs": EPOCHS, "trainer": "cpu", "datamodule.num_workers": 0}
plan = esvit_pl.plan(photos, **settings)
print(plan)

# %% [markdown]
# ## Training
#
# The same arguments, and a folder for the run. In a terminal this is `esvit-pretrain experiment=own_images
# dataset.root=photos/ trainer.max_epochs=30`.

# %%
run = esvit_pl.pretrain(photos, work / "run", **settings)

# %% [markdown]
# Without labels there is no accuracy. In its place the run ends with ranks of the features: near 1 means that all
# images got the same feature, a collapse. What ranks and losses mean: [is it learning?](../docs/learning.md) Here the
# losses still went up and down at the end, and the ranks were half of what they had been before the training.
# `run` as the last line of a cell shows all pictures of the run; this one
# shows what the training sees of an image.

# %%
Image.open(run.figures["crops"])

# %% [markdown]
# ## Features of all images
#
# One row for each image, in a file. [Features and search](04_features_and_search.ipynb) does more with it.

# %%
names, _, features, _ = load_features(esvit_pl.embed(run.checkpoint, photos, work / "photos.npz", trainer="cpu"))
print(features["pooled"].shape, names[0])

# %% [markdown]
# ## Nearest neighbours, judged
#
# For each tile: of its five nearest other tiles, how many come from the same photograph? A number means little alone,
# so the same is asked of four features that nobody trained: the same backbone with random weights, the pixels, a
# histogram of grey levels, and neighbours drawn by chance.

# %%
source = [Path(name).stem.rsplit("_", 1)[0] for name in names]
kinds = sorted(set(source))
label = torch.tensor([kinds.index(each) for each in source])
tiles = splits_of(photos).train
loader = esvit_pl.ImageDataModule(Splits(tiles, tiles), run.backbone.transform.recipe, num_workers=0).query_dataloader()
torch.manual_seed(0)
untrained = esvit_pl.build(**run.backbone.spec).eval()
rows = {"pretrained backbone": torch.from_numpy(features["pooled"])}
for row, encoder in {
    "untrained backbone": untrained,
    "raw pixels": RawPixels(),
    "grey-level histogram": GreyHistogram(),
}.items():
    rows[row] = extract_features(encoder, loader).features
assert [tiles.name(index) for index in range(len(tiles))] == list(names)  # the same order in all rows

found = {}
print("from the same photograph     nearest   first five")
for row, feature in rows.items():
    cosines, places = nearest(feature, feature, k=6)  # the first one is the tile itself
    right = label[places[:, 1:]] == label[:, None]
    found[row] = cosines[:, 1:], places[:, 1:], right
    print(f"{row:26} {right[:, 0].float().mean():9.1%} {right.float().mean():12.1%}")
counts = torch.tensor([Counter(source)[kind] for kind in kinds])
chance = (counts * (counts - 1)).sum().item() / (len(names) * (len(names) - 1))
print(f"{'chance':26} {chance:9.1%} {chance:12.1%}")

# %% [markdown]
# After 30 epochs the pretrained backbone is far ahead of pixels and grey levels, but mostly because of its
# architecture: with random weights it is nearly as far. The training adds four points for the nearest tile and three
# and a half for the first five. More steps add more: the same with `epochs=50` reached 83 % and 77 %, in 7 minutes on
# two busy cores. With tiles of 64 pixels, fewer of them, 25 epochs added two points and one. Tiles of one photograph
# also resemble each other in colour and texture, which random weights see, too. So the table shows that the training
# does something, and no more. For your photographs the same table will tell.

# %%
cosines, places, right = found["pretrained backbone"]
shown = ["astronaut", "camera", "chelsea", "coffee", "coins", "rocket"]
asked = [index for kind in shown for index in [i for i, each in enumerate(source) if each == kind][3:4]] or [0]
neighbours(
    [tiles[index][0] for index in asked],
    [[tiles[place][0] for place in places[index].tolist()] for index in asked],
    cosines[asked].tolist(),
    names=[[source[place] for place in places[index].tolist()] for index in asked],
    titles=[source[index] for index in asked],
    right=right[asked].tolist(),
)

# %% [markdown]
# Left: the tile that is asked about, always the fourth of its photograph. Then its nearest tiles with their cosines:
# green from the same photograph, red and dashed from another one. A red frame is no mistake of the training: nobody
# told it that photographs are what should be told apart.
#
# Photograph by photograph, the first five neighbours:

# %%
print(f"{'':12} tiles  pretrained  untrained")
for number, kind in enumerate(kinds):
    mine = label == number
    shares = [found[row][2][mine].float().mean() for row in ("pretrained backbone", "untrained backbone")]
    print(f"{kind:12} {int(mine.sum()):5}  {shares[0]:10.0%}  {shares[1]:9.0%}")

# %% [markdown]
# ## What next
#
# - Your own folder: `esvit-pretrain experiment=own_images dataset.root=photos/`. Which layouts it reads: [your own
#   images](../docs/data.md); what it chooses, and why: [experiments](../docs/experiments.md).
# - Look at one photograph, or at one place in it: `esvit-neighbours ckpt_path=RUN embedded=photos.npz
#   query=photo.jpg`, in [features and search](04_features_and_search.ipynb).
# - See what the backbone attends to: [look into a backbone](05_look_into_a_backbone.ipynb).
# - Try several settings: [sweep and compare](03_sweep_and_compare.ipynb).
# - Few photographs? Weights to start from help more than any setting: [experiments](../docs/experiments.md).
