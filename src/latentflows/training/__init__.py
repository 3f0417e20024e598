"""Training: stages, the loop, checkpoints and callbacks."""

from latentflows.training.base import Callback, History, Job, Options, Stage
from latentflows.training.callbacks import MLflowLog, ProgressBar, TensorBoardLog, Tracker, WandbLog
from latentflows.training.checkpoint import load_weights, save_weights
from latentflows.training.loop import fit
from latentflows.training.stacked import fit_together

__all__ = [
    "Callback",
    "History",
    "Job",
    "MLflowLog",
    "Options",
    "ProgressBar",
    "Stage",
    "TensorBoardLog",
    "Tracker",
    "WandbLog",
    "fit",
    "fit_together",
    "load_weights",
    "save_weights",
]
