"""How good a model is: start with `evaluate_bounds`."""

from latentflows.evaluation.bounds import Bounds, evaluate_bounds

__all__ = ["Bounds", "evaluate_bounds"]
