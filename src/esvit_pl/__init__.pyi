# The public names of the package. `__init__.py` reads this file and loads each name when it is first used.
# ruff: noqa: I001

from esvit_pl.api import compose as compose
from esvit_pl.api import embed as embed
from esvit_pl.api import evaluate as evaluate
from esvit_pl.api import list_backbones as list_backbones
from esvit_pl.api import plan as plan
from esvit_pl.api import pretrain as pretrain
from esvit_pl.backbones import Backbone as Backbone
from esvit_pl.backbones import Features as Features
from esvit_pl.backbones import build as build
from esvit_pl.callbacks import CollapseMonitor as CollapseMonitor
from esvit_pl.callbacks import LearningCurve as LearningCurve
from esvit_pl.callbacks import LogFigures as LogFigures
from esvit_pl.callbacks import OnlineKNN as OnlineKNN
from esvit_pl.callbacks import OnlineLinear as OnlineLinear
from esvit_pl.checkpoints import load_backbone as load_backbone
from esvit_pl.data import ImageDataModule as ImageDataModule
from esvit_pl.modules import KNNEvaluator as KNNEvaluator
from esvit_pl.modules import LinearProbe as LinearProbe
from esvit_pl.modules import Pretrainer as Pretrainer
from esvit_pl.objectives import EsViTObjective as EsViTObjective

# Rooms that answer to `esvit_pl.<room>` without an import of their own.
from esvit_pl import augment as augment
from esvit_pl import backbones as backbones
from esvit_pl import callbacks as callbacks
from esvit_pl import checkpoints as checkpoints
from esvit_pl import datasets as datasets
from esvit_pl import evaluation as evaluation
from esvit_pl import losses as losses
from esvit_pl import metrics as metrics
from esvit_pl import modules as modules
from esvit_pl import objectives as objectives
from esvit_pl import visualize as visualize

__version__: str
