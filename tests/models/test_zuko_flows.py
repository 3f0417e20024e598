"""zuko's flows by name: shapes, passes, densities, use as prior and posterior, and what their import leaves alone."""

import math
import re
import subprocess
import sys

import pytest
import torch

from latentflows import (
    IWAE,
    VAE,
    AmortizedBernoulli,
    AmortizedGaussian,
    Chain,
    DensityModel,
    Flow,
    Inverse,
    StandardGaussian,
)
from latentflows.bijections import Permutation
from latentflows.core.errors import CombinationError, ConfigurationError
from latentflows.data.base import ArraySplit
from latentflows.evaluation import (
    evaluate_bounds,
    evaluate_holes,
    evaluate_likelihood,
)
from latentflows.models import zuko_flows
from latentflows.networks import MLP
from latentflows.objectives import ELBO
from tests.evaluation.test_prior_densities import check_weighed_nowhere
from tests.peers import peer

peer("zuko")
SMALL = {"width": 8, "depth": 1}
PASSES = {  # of three layers over two variables, forward and inverse; a verified draw applies the map once more
    "naf": (3 * (2 * 26 + 2) + 6, 6),
    "unaf": (3 * (2 * 26 + 3) + 9, 9),
    "sospf": (3 * (2 + 1) + 3, 3),
    "bpf": (3 * (2 + 1) + 3, 3),
}
NAMES = ["cnf", *PASSES]


def make(name, dim=2, **settings):
    sizes = {"width": 64, "depth": 2} if name == "naf" else SMALL  # a new narrow one does not reach all noise
    return getattr(zuko_flows, name)(dim, **sizes, **settings)


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("name", PASSES)
def test_passes(name, context):
    assert make(name, context=context).passes == PASSES[name]


def test_an_ode_takes_many_passes_both_ways():
    assert all(20 < passes < 200 for passes in make("cnf").passes)


@pytest.mark.parametrize("context", [None, 3])
@pytest.mark.parametrize("name", NAMES)
def test_both_directions_agree(name, context):
    flow = make(name, context=context).double()
    h = None if context is None else torch.randn(5, context).double()
    u = torch.randn(2, 5, 2).double().clamp(-2, 2)
    x, log_det = flow(u, h)
    back, opposite = flow.inverse(x, h)
    tolerance = 3e-4 if name == "cnf" else 1e-5
    torch.testing.assert_close(back, u, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(opposite, -log_det, rtol=3 * tolerance, atol=3 * tolerance)
    assert flow.context_shape == (None if context is None else (context,))


@pytest.mark.parametrize("name", NAMES)
def test_the_density_integrates_to_one(name):
    flow = Flow(StandardGaussian(2), make(name)).double()
    axis = torch.linspace(-12, 12, 121).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow().log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_as_prior_and_as_posterior_of_a_vae(name):
    """Both places score or draw in the cheap direction alone, and every parameter learns."""
    prior = Flow(StandardGaussian(2), make(name))
    posterior = Flow(
        StandardGaussian(2),
        Inverse(make(name, context=4)),
        embed=MLP(3, 4, width=4, depth=1),
        context_shape=3,
    )
    likelihood = AmortizedGaussian(3, 2, MLP(2, 6, width=4, depth=1))
    vae = VAE(posterior, prior, likelihood)
    value = ELBO()(vae.trace(torch.randn(6, 3)))
    value.loss.backward()
    assert value.loss.isfinite()
    without = [key for key, parameter in vae.named_parameters() if parameter.grad is None]
    assert not without
    assert vae.sample(4).isfinite().all()


def test_an_estimated_trace_is_unbiased():
    torch.manual_seed(0)
    exact = make("cnf")
    estimated = make("cnf", exact=False)
    estimated.load_state_dict(exact.state_dict())
    x = torch.randn(2).expand(4000, 2)
    log_det = exact.inverse(x)[1][0]
    draws = estimated.inverse(x)[1]
    assert draws.std() > 1e-3
    assert abs(draws.mean() - log_det) < 5 * draws.std() / 4000**0.5 + 1e-4


def test_noise_that_leaves_the_range_is_told():
    flow = zuko_flows.unaf(2, num_layers=5, **SMALL)
    with pytest.warns(UserWarning, match=r"numeric inverse failed in \d+ of 200 rows"):
        flow(torch.randn(200, 2))


def test_one_variable_needs_no_autoregression():
    assert zuko_flows.cnf(1, **SMALL).event_shape == (1,)
    with pytest.raises(CombinationError, match=r"needs two or more variables; got 1\. Use `cnf`"):
        make("naf", dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_positive(name):
    with pytest.raises(ConfigurationError, match="`width` must be a positive integer; got 0"):
        getattr(zuko_flows, name)(2, width=0)
    with pytest.raises(ConfigurationError, match="`dim` must be a positive integer; got 0"):
        getattr(zuko_flows, name)(0)


def test_tolerances_are_positive():
    with pytest.raises(ConfigurationError, match="`relative_tolerance` must be positive and finite; got 0"):
        zuko_flows.cnf(2, relative_tolerance=0)


def test_building_one_leaves_the_checks_of_torch_on():
    code = (
        "import warnings; warnings.simplefilter('error'); "
        "from latentflows.models import zuko_flows; zuko_flows.cnf(2); "
        "from torch.distributions import Normal; Normal(0.0, -1.0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: Expected parameter scale" in result.stderr


def test_the_likelihood_of_a_solved_density_is_said_to_be_approximate():
    points = ArraySplit(torch.zeros(1, 2), values="continuous")
    for name, density in (("cnf", "approximate"), ("naf", "exact")):
        model = DensityModel(Flow(StandardGaussian(2), Inverse(make(name))))
        assert evaluate_likelihood(model, points).density == density


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)  # an import of it then fails as if it were not there
    message = "`zuko` is needed here and is not installed. Run: pip install 'latentflows[zuko]'"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        zuko_flows.cnf(2)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("place", ["prior", "posterior"])
def test_a_solved_density_is_said_to_be_approximate_and_an_estimate_is_not_weighed(place, exact):
    flow = make("cnf", exact=exact)
    gaussian = AmortizedGaussian(2, 3, MLP(3, 4, width=4, depth=1))
    prior = Flow(StandardGaussian(2), Chain([Permutation(2, torch.tensor([1, 0])), flow]))
    assert prior().density == prior().tempered(0.5).density == "approximate"
    assert prior().weighable is prior.weighable is prior().detached().weighable is exact
    parts = (gaussian, prior) if place == "prior" else (Flow(gaussian, Inverse(flow)), StandardGaussian(2))
    model = VAE(*parts, AmortizedBernoulli(3, 2, MLP(2, 3, width=4, depth=1)))
    data = ArraySplit(torch.tensor([[0.0, 1.0, 1.0]]), values="binary")
    assert math.isfinite(float(evaluate_bounds(model, data, num_importance_samples=1).nll))
    if exact:
        IWAE().check(model)
        holes = evaluate_holes(model, ArraySplit(data.x.repeat(4, 1), values="binary"), num_permutations=1)
        assert holes.protocol["prior_density"] == ("approximate" if place == "prior" else "exact")
        bounds = evaluate_bounds(model, data, num_importance_samples=3)
        assert bounds.prior_density == ("approximate" if place == "prior" else "exact")
        return
    check_weighed_nowhere(model, data, place)
    with pytest.raises(CombinationError, match="biased upward"):
        IWAE().check(model)
