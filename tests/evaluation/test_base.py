"""What log p(x) is of which data, said in one place."""

import pytest
import torch
from torch import nn

from latentflows.data.base import ArraySplit, ImageSplit
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedCategorical,
    AmortizedContinuousBernoulli,
    AmortizedGaussian,
    Flow,
    StandardGaussian,
)
from latentflows.evaluation.base import likelihood_kind
from latentflows.models import VAE, DensityModel
from latentflows.models.presets import real_nvp

EVENT = (1, 2, 2)
PIXELS = torch.arange(12, dtype=torch.uint8).view(3, *EVENT) % 4


def drawn(how):
    return ImageSplit(PIXELS, how, levels=4)


def vae(likelihood):
    return VAE(AmortizedGaussian(2, EVENT, nn.Linear(4, 4)), StandardGaussian(2), likelihood)


def gaussian(**scale):
    return vae(AmortizedGaussian(EVENT, 2, nn.Linear(2, 4), **scale))


@pytest.mark.filterwarnings("ignore:A Bernoulli cross-entropy")
@pytest.mark.parametrize(
    ("model", "source", "kind"),
    [
        (lambda: vae(AmortizedBernoulli(EVENT, 2, nn.Linear(2, 4))), "dynamic_binary", "probability mass"),
        (lambda: vae(AmortizedBernoulli(EVENT, 2, nn.Linear(2, 4), gray=True)), "unit", "no likelihood"),
        (
            lambda: vae(AmortizedCategorical(EVENT, 2, nn.Linear(2, 16), levels=4)),
            "unit",
            "probability mass",
        ),
        (lambda: gaussian(scale=0.1), "unit", "density on gray levels without noise"),
        (
            lambda: vae(AmortizedContinuousBernoulli(EVENT, 2, nn.Linear(2, 4))),
            "unit",
            "density on gray levels without noise",
        ),
        (lambda: gaussian(scale="shared"), "dequantized", "density on dequantized data"),
        (lambda: gaussian(scale="shared"), "continuous", "density on real values"),
        (
            lambda: DensityModel(Flow(StandardGaussian(4), real_nvp(4, num_layers=2, width=4))),
            "continuous",
            "density on real values",
        ),
    ],
)
def test_log_p_is_a_mass_a_density_on_some_data_or_no_likelihood(model, source, kind):
    data = ArraySplit(PIXELS / 4, values="continuous") if source == "continuous" else drawn(source)
    assert likelihood_kind(model(), data) == kind
