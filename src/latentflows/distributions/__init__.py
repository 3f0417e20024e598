"""Distributions as values, conditionals as modules, and the closed-form KL between them."""

from latentflows.distributions.adapters import as_pyro, as_torch, as_zuko
from latentflows.distributions.amortized_mixture import AmortizedMixture, mixture_raw_shape
from latentflows.distributions.base import Conditional, Distribution
from latentflows.distributions.codes import AutoregressiveCodes, CodeSequence
from latentflows.distributions.continuous_bernoulli import (
    AmortizedContinuousBernoulli,
    ContinuousBernoulliValues,
)
from latentflows.distributions.continuous_likelihoods import (
    AmortizedLaplace,
    AmortizedStudentT,
    BatchOptimalGaussian,
    FittedNormal,
    LaplaceValues,
    StudentTValues,
)
from latentflows.distributions.data_dependent import DataDependentPrior
from latentflows.distributions.delta import AmortizedDelta, Delta
from latentflows.distributions.discretized import (
    AmortizedCategorical,
    AmortizedLogisticMixture,
    CategoricalValues,
    CoupledLogisticValues,
    LogisticMixtureValues,
    categorical_raw_shape,
    logistic_raw_shape,
)
from latentflows.distributions.energy import AdversarialPrior, EnergyPrior, TiltedDistribution
from latentflows.distributions.flow import Flow, Pushforward
from latentflows.distributions.flow_matching import ContinuousPushforward, FlowMatchingPrior, Velocity
from latentflows.distributions.gaussian import (
    AmortizedGaussian,
    DiagonalNormal,
    FullNormal,
    LearnedGaussian,
    StandardGaussian,
    StandardNormal,
    gaussian_raw_shape,
)
from latentflows.distributions.hierarchical import Ancestral, Hierarchical
from latentflows.distributions.kl import has_closed_form_kl, kl_divergence, register_kl
from latentflows.distributions.likelihoods import AmortizedBernoulli, BernoulliValues, GrayBernoulliValues
from latentflows.distributions.low_rank import AmortizedLowRankGaussian, LowRankNormal, low_rank_raw_shape
from latentflows.distributions.mixture import GaussianMixture, Mixture
from latentflows.distributions.normalizer import EstimatedNormalizer, NormalizerEstimate
from latentflows.distributions.ode import OdeSolver
from latentflows.distributions.resampled import ResampledPrior, TruncatedRejection
from latentflows.distributions.sampling import ImportanceResampling, Langevin
from latentflows.distributions.vamp import ExemplarPrior, VampPrior

__all__ = [
    "AdversarialPrior",
    "AmortizedBernoulli",
    "AmortizedCategorical",
    "AmortizedContinuousBernoulli",
    "AmortizedDelta",
    "AmortizedGaussian",
    "AmortizedLaplace",
    "AmortizedLogisticMixture",
    "AmortizedLowRankGaussian",
    "AmortizedMixture",
    "AmortizedStudentT",
    "Ancestral",
    "AutoregressiveCodes",
    "BatchOptimalGaussian",
    "BernoulliValues",
    "CategoricalValues",
    "CodeSequence",
    "Conditional",
    "ContinuousBernoulliValues",
    "ContinuousPushforward",
    "CoupledLogisticValues",
    "DataDependentPrior",
    "Delta",
    "DiagonalNormal",
    "Distribution",
    "EnergyPrior",
    "EstimatedNormalizer",
    "ExemplarPrior",
    "FittedNormal",
    "Flow",
    "FlowMatchingPrior",
    "FullNormal",
    "GaussianMixture",
    "GrayBernoulliValues",
    "Hierarchical",
    "ImportanceResampling",
    "Langevin",
    "LaplaceValues",
    "LearnedGaussian",
    "LogisticMixtureValues",
    "LowRankNormal",
    "Mixture",
    "NormalizerEstimate",
    "OdeSolver",
    "Pushforward",
    "ResampledPrior",
    "StandardGaussian",
    "StandardNormal",
    "StudentTValues",
    "TiltedDistribution",
    "TruncatedRejection",
    "VampPrior",
    "Velocity",
    "as_pyro",
    "as_torch",
    "as_zuko",
    "categorical_raw_shape",
    "gaussian_raw_shape",
    "has_closed_form_kl",
    "kl_divergence",
    "logistic_raw_shape",
    "low_rank_raw_shape",
    "mixture_raw_shape",
    "register_kl",
]
