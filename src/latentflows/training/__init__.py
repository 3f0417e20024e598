"""Training: stages, the loop, checkpoints and callbacks."""

from latentflows.training.base import Callback, History, Options, Stage
from latentflows.training.callbacks import MLflowLog, ProgressBar, TensorBoardLog, Tracker, WandbLog
from latentflows.training.checkpoint import load_weights, save_weights
from latentflows.training.loop import fit

__all__ = [
    "Callback",
    "History",
    "MLflowLog",
    "Options",
    "ProgressBar",
    "Stage",
    "TensorBoardLog",
    "Tracker",
    "WandbLog",
    "fit",
    "load_weights",
    "save_weights",
]
