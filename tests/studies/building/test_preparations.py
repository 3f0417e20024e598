"""Every likelihood on data prepared in every way that is declared to fit it, loaded as a run loads them."""

import numpy as np
import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import CombinationError
from latentflows.evaluation.base import check_values
from latentflows.studies.building.build import build_data
from latentflows.studies.running.run import prepare
from latentflows.studies.settings.combinations import LIKELIHOODS_OF
from latentflows.studies.settings.configuration import USUAL_PREPARATION
from latentflows.studies.settings.overrides import configuration_from

DECLARED = [(kind, way) for kind, ways in LIKELIHOODS_OF.items() for way in ways]
FIXED = [(kind, "unit") for kind in ("gaussian", "laplace", "student_t")]
SIZES = [
    "latent_dim=2",
    "network.width=4",
    "network.depth=1",
    "evaluation.information=0",
    "evaluation.holes=0",
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Overrides that name arrays of pixels, or of real numbers, which alone can be left as they are."""
    folder, random = tmp_path_factory.mktemp("arrays"), np.random.RandomState(0)
    np.save(folder / "pixels.npy", random.randint(0, 256, (40, 4, 4)).astype(np.uint8))
    np.save(folder / "numbers.npy", random.randn(40, 6).astype(np.float32))
    return lambda real: ["data=arrays", f"data.root={folder / ('numbers.npy' if real else 'pixels.npy')}"]


@pytest.mark.filterwarnings("ignore:A Bernoulli cross-entropy on gray")
@pytest.mark.parametrize(("kind", "way"), DECLARED + FIXED)
def test_every_declared_pair_is_trained_and_measured(stored, kind, way):
    chosen = [f"likelihood={kind}", f"data.preparation={way}"]
    chosen += ["likelihood.variance=fixed", "likelihood.scale=0.5"] if (kind, way) in FIXED else []
    configuration = configuration_from({}, [*SIZES, *stored(way == "continuous"), *chosen])
    data, model, (stage,) = prepare(configuration, build_data(configuration))
    with noise.stream(0):
        loss = stage.objective(stage.objective.trace(model, data.train.batch(torch.arange(8)).x)).loss
    assert torch.isfinite(loss)
    if kind != "gray_bernoulli":  # no likelihood, as its refusal says
        check_values(model, data.test)


@pytest.mark.parametrize(
    ("kind", "way"), [("continuous_bernoulli", "dequantized"), ("gaussian", "continuous")]
)
def test_a_preparation_that_nobody_named_is_told_by_the_values(stored, kind, way):
    """Arrays of pixels are dequantized, arrays of real numbers left as they are."""
    assert "arrays" not in USUAL_PREPARATION
    chosen = [*SIZES, *stored(way == "continuous"), f"likelihood={kind}"]
    data = build_data(configuration_from({}, chosen))
    assert data.train.values == "continuous"
    assert (data.train.bits_offset is None) == (way == "continuous")


def test_real_values_of_no_known_range_have_no_continuous_bernoulli(stored):
    configuration = configuration_from({}, [*SIZES, *stored(True), "likelihood=continuous_bernoulli"])
    with pytest.raises(
        CombinationError, match=r"does not fit data with continuous values\. Use likelihood=gaussian"
    ):
        build_data(configuration)
