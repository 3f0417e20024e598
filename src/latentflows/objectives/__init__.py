"""What training minimizes: frozen settings and a pure function of a `Trace`."""

from latentflows.objectives.base import Objective, Value, elbo_parts, warm_up
from latentflows.objectives.elbo import ELBO
from latentflows.objectives.iwae import IWAE
from latentflows.objectives.prior import PriorLikelihood

__all__ = ["ELBO", "IWAE", "Objective", "PriorLikelihood", "Value", "elbo_parts", "warm_up"]
