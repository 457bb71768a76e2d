# %% [markdown]
# # Sweep, and compare
#
# Does the region loss help? Two losses times two seeds, trained by one command; every run of a sweep is an ordinary
# run with a folder of its own. This needs no download (the images ship inside scikit-image and scikit-learn), and no
# GPU.

# %%
import csv
import os
import subprocess
from pathlib import Path

SHORT = os.environ.get("ESVIT_SHORT") == "1"  # the size of a test
sweep = Path(os.environ.get("ESVIT_LOG_DIR", "logs")) / "notebooks" / f"sweep_{os.getpid()}"
settings = ["trainer.max_epochs=3", "evaluation.probes=[knn]", "evaluation.baselines=false"]
if SHORT:
    settings = ["trainer.max_epochs=1", "optimizer.warmup_epochs=0.5", *settings[1:]]
    settings += ["dataset.train_patches=8", "dataset.test_patches=4"]

# %% [markdown]
# ## The sweep
#
# In a terminal this is `esvit-pretrain -m experiment=embedded loss=view,view_region seed=0,1`. Commas make the sweep;
# other launchers run the jobs side by side (`hydra/launcher=joblib`) or on a cluster
# (`hydra/launcher=submitit_slurm`), and `hparams_search=optuna` chooses the values itself (`pip install
# 'esvit_pl[sweep]'`).

# %%
command = ["esvit-pretrain", "-m", "experiment=embedded", "loss=view,view_region", "seed=0,1", *settings]
done = subprocess.run([*command, f"hydra.sweep.dir={sweep}"], capture_output=True, text=True, check=False)
assert done.returncode == 0, done.stderr
print(done.stdout[done.stdout.rindex("run ") :])

# %% [markdown]
# It ends with the table above, with the same numbers in `sweep.csv` and with a picture:

# %%
try:
    from IPython.display import Image, display

    display(Image(str(sweep / "sweep.png"), width=560))
except ImportError:
    print(sweep / "sweep.png")

# %% [markdown]
# Two seeds, a few minutes of training, some twenty test patches for each class: differences of a few points are noise
# here. That is what the spread over seeds is for.

# %%
with (sweep / "sweep.csv").open() as file:
    for row in csv.DictReader(file):
        print(row["loss"], row["seed"], row["status"], f"{float(row['knn/top1']):.3f}")

# %% [markdown]
# ## Any runs, any time
#
# `esvit-table` makes the same table of whatever lies below a folder: finished, stopped, failed and running jobs.

# %%
table = subprocess.run(
    ["esvit-table", str(sweep), "sort=train/view_loss", "columns=[train/*_loss,knn/top5]"],
    capture_output=True,
    text=True,
    check=True,
)
print(table.stdout)

# %% [markdown]
# ## The best one
#
# The folder of a run holds its config, its metrics and its checkpoints, so that anything can be done with it
# afterwards.

# %%
import esvit_pl  # noqa: E402

with (sweep / "sweep.csv").open() as file:
    best = max(csv.DictReader(file), key=lambda row: float(row["knn/top1"]))
backbone = esvit_pl.checkpoints.load_backbone(sweep / best["run"] / "checkpoints" / "last.ckpt")
print(best["loss"], best["seed"], type(backbone).__name__, backbone.width)

# %% [markdown]
# ## What next
#
# - On your own images: `esvit-pretrain -m experiment=own_images dataset.root=photos/ loss=view,view_region seed=0,1`,
#   then `esvit-table` on the folder of the sweep.
# - Folders of runs, going on, sweeps on clusters: [runs](../docs/runs.md).
# - Other losses to compare: [methods](../docs/methods.md). What we measured: [results](../docs/results.md).
# - Look at the winner: [look into a backbone](05_look_into_a_backbone.ipynb),
#   [features and search](04_features_and_search.ipynb).
