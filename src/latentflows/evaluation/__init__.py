"""How good a model is: start with `evaluate_bounds`."""

from latentflows.evaluation.ais import (
    AnnealedEvidence,
    BidirectionalEvidence,
    evaluate_annealed,
    evaluate_bidirectional,
)
from latentflows.evaluation.annealing import Annealing
from latentflows.evaluation.base import DrawnOnce, draw_once
from latentflows.evaluation.bounds import Bounds, evaluate_bounds
from latentflows.evaluation.classifier import Classifier, load_classifier, save_classifier, train_classifier
from latentflows.evaluation.codes import CodeBound, evaluate_codes
from latentflows.evaluation.disentanglement import (
    Disentanglement,
    dci,
    evaluate_disentanglement,
    mutual_information,
    mutual_information_gap,
    sap,
    score_disentanglement,
)
from latentflows.evaluation.distances import (
    ManifoldFigures,
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    manifold_figures,
)
from latentflows.evaluation.exact import Likelihood, evaluate_likelihood
from latentflows.evaluation.features import FeatureExtractor, ModuleFeatures, Pixels
from latentflows.evaluation.gaps import Gaps, evaluate_gaps
from latentflows.evaluation.holes import (
    ClassifierTest,
    Holes,
    KernelTest,
    classifier_test,
    evaluate_holes,
    kernel_test,
)
from latentflows.evaluation.information import Information, Units, evaluate_information, evaluate_units
from latentflows.evaluation.intervals import Estimate
from latentflows.evaluation.neighbors import Neighborhood, Neighbors, evaluate_neighbors
from latentflows.evaluation.protocol import SampleProtocol, check_same_protocol, comparable
from latentflows.evaluation.samples import SampleQuality, compare_features, evaluate_samples
from latentflows.evaluation.segmentation import Segmentation, compare_masks, evaluate_segmentation
from latentflows.evaluation.target import TargetDivergence, evaluate_target

__all__ = [
    "AnnealedEvidence",
    "Annealing",
    "BidirectionalEvidence",
    "Bounds",
    "Classifier",
    "ClassifierTest",
    "CodeBound",
    "Disentanglement",
    "DrawnOnce",
    "Estimate",
    "FeatureExtractor",
    "Gaps",
    "Holes",
    "Information",
    "KernelTest",
    "Likelihood",
    "ManifoldFigures",
    "ModuleFeatures",
    "Neighborhood",
    "Neighbors",
    "Pixels",
    "SampleProtocol",
    "SampleQuality",
    "Segmentation",
    "TargetDivergence",
    "Units",
    "check_same_protocol",
    "classifier_test",
    "comparable",
    "compare_features",
    "compare_masks",
    "dci",
    "draw_once",
    "evaluate_annealed",
    "evaluate_bidirectional",
    "evaluate_bounds",
    "evaluate_codes",
    "evaluate_disentanglement",
    "evaluate_gaps",
    "evaluate_holes",
    "evaluate_information",
    "evaluate_likelihood",
    "evaluate_neighbors",
    "evaluate_samples",
    "evaluate_segmentation",
    "evaluate_target",
    "evaluate_units",
    "frechet_distance",
    "frechet_distance_infinity",
    "kernel_distance",
    "kernel_test",
    "load_classifier",
    "manifold_figures",
    "mutual_information",
    "mutual_information_gap",
    "sap",
    "save_classifier",
    "score_disentanglement",
    "train_classifier",
]
