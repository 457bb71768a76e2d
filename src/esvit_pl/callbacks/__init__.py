"""Thin hooks for any Lightning trainer over pure functions of lower rooms."""

from esvit_pl.callbacks.collapse_monitor import CollapseMonitor
from esvit_pl.callbacks.figures import LearningCurve, LogFigures
from esvit_pl.callbacks.harm import HarmMonitor
from esvit_pl.callbacks.online_correspondence import CorrespondenceAccuracy
from esvit_pl.callbacks.online_knn import OnlineKNN
from esvit_pl.callbacks.online_linear import OnlineLinear
from esvit_pl.callbacks.pictures import AttentionMaps, Correspondences, PCAMaps
from esvit_pl.callbacks.progress import PlainProgress, TerminalProgress, progress_bar
from esvit_pl.callbacks.throughput import Throughput
from esvit_pl.callbacks.training_checkpoints import TrainingCheckpoints

__all__ = [
    "AttentionMaps",
    "CollapseMonitor",
    "CorrespondenceAccuracy",
    "Correspondences",
    "HarmMonitor",
    "LearningCurve",
    "LogFigures",
    "OnlineKNN",
    "OnlineLinear",
    "PCAMaps",
    "PlainProgress",
    "TerminalProgress",
    "Throughput",
    "TrainingCheckpoints",
    "progress_bar",
]
