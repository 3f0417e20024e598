"""Our distributions inside torch.distributions, Pyro and zuko: shapes, densities, gradients, expansion, refusals."""

import pickle
import re

import pytest
import torch
from torch.distributions import Independent, Normal

from latentflows.bijections import InverseAutoregressive
from latentflows.core.errors import CombinationError, ConfigurationError, ShapeError
from latentflows.distributions import (
    Distribution,
    Flow,
    StandardGaussian,
    adapters,
    as_pyro,
    as_torch,
    as_zuko,
)
from latentflows.distributions.gaussian import DiagonalNormal, StandardNormal
from tests.distributions.cases import CASES, CONDITIONED, SCORED, build, context_of
from tests.peers import peer

scored = pytest.mark.parametrize("name", SCORED)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def distribution_of(name, *batch):
    conditional = build(name)
    return conditional(context_of(conditional, *batch))


@scored
@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)])
def test_shapes_and_densities_are_ours(name, sample_shape):
    ours = distribution_of(name, 5)
    theirs = as_torch(ours)
    assert (theirs.batch_shape, theirs.event_shape) == (ours.batch_shape, ours.event_shape)
    assert theirs.has_rsample == ours.reparameterized
    x = theirs.sample(sample_shape)
    assert x.shape == (*sample_shape, *ours.batch_shape, *ours.event_shape)
    assert not x.requires_grad
    close(theirs.log_prob(x), ours.log_prob(x))


@pytest.mark.parametrize("name", CASES)
def test_a_draw_comes_with_its_log_probability(name):
    ours = distribution_of(name, 5)
    theirs = as_torch(ours).expand((4, 5))
    x, log_p = theirs.rsample_and_log_prob((2,))
    assert log_p.shape == (2, 4, 5)
    assert x.shape == (2, 4, 5, *ours.event_shape)
    if name in SCORED:
        close(log_p, ours.log_prob(x), 1e-8)


@pytest.mark.parametrize(
    ("batch", "expanded"), [((), (3,)), ((2,), (3, 2)), ((1,), (3,)), ((2, 1), (4, 2, 3)), ((1, 1), (2, 3))]
)
def test_expanded_draws_are_independent_and_rightly_placed(batch, expanded):
    mean = 100 * torch.arange(1.0, 1 + torch.Size(batch).numel()).view(*batch, 1) * torch.ones(2)
    theirs = as_torch(DiagonalNormal(mean, torch.zeros(2))).expand(expanded)
    x = theirs.rsample((5,))
    assert theirs.batch_shape == expanded
    assert x.shape == (5, *expanded, 2)
    assert (x - mean).abs().max() < 10  # every draw is near the mean of its own row
    assert len(x.unique()) == x.numel()
    expected = Independent(Normal(mean, 1.0), 1).expand(expanded)
    close(theirs.log_prob(x), expected.log_prob(x), 1e-3)
    one = x[(0,) * (x.ndim - 1)].expand(2)
    close(theirs.log_prob(one), expected.log_prob(one), 1e-3)
    assert theirs.expand((2, *expanded)).batch_shape == (2, *expanded)


def test_a_batch_does_not_shrink():
    theirs = as_torch(DiagonalNormal(torch.zeros(3, 2), torch.zeros(2)))
    for wanted in [(2,), (), (3, 2)]:
        message = f"`batch_shape` must be one that (3,) broadcasts to; got {wanted}."
        with pytest.raises(ShapeError, match=re.escape(message)):
            theirs.expand(wanted)


@pytest.mark.parametrize("name", CONDITIONED)
def test_draws_carry_gradients_where_ours_do(name):
    conditional = build(name)
    theirs = as_torch(conditional(context_of(conditional, 5)))
    if theirs.has_rsample:
        theirs.rsample().sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in conditional.parameters())
    else:
        with pytest.raises(NotImplementedError, match=r"has no reparameterized draws\. Use `sample`"):
            theirs.rsample()


@scored
def test_the_support_is_checked(name, monkeypatch):
    monkeypatch.setattr(
        torch.distributions.Distribution, "_validate_args", True
    )  # torch.compile turns it off
    ours = distribution_of(name, 5)
    theirs = as_torch(ours)
    x = ours.sample((3,))
    assert theirs.support.event_dim == len(ours.event_shape)
    assert theirs.support.is_discrete == ours.discrete
    assert theirs.support.check(x).all()
    bad = x.clone()
    bad[(0,) * bad.ndim] = 0.5 if ours.discrete else torch.nan
    with pytest.raises(ValueError, match="to be within the support"):
        theirs.log_prob(bad)
    assert not ours.discrete or not theirs.support.check(bad).any()


def test_continuous_support_is_known_to_torch():
    theirs = as_torch(StandardGaussian((2, 3))())
    x = torch.randn(4, 2, 3)
    assert torch.equal(torch.distributions.biject_to(theirs.support)(x), x)


def test_mean_is_ours_or_not_implemented():
    ours = distribution_of("amortized", 5)
    close(as_torch(ours).expand((3, 5)).mean, ours.mean.expand(3, 5, 2))
    with pytest.raises(NotImplementedError, match="`Pushforward` has no mean in closed form"):
        _ = as_torch(distribution_of("flow")).mean


class Energy(StandardNormal):
    """A log-probability up to a constant."""

    normalized = False


@pytest.mark.parametrize("adapt", [as_torch, as_pyro])
def test_an_unnormalized_density_is_refused(adapt):
    with pytest.raises(CombinationError, match="`Energy` has an unnormalized log-probability"):
        adapt(Energy((2,), like=torch.zeros(())))


def test_torch_wraps_it():
    ours = distribution_of("flow_bijection_context", 4, 5)
    wrapped = Independent(as_torch(ours), 1)
    x = wrapped.rsample((2,))
    assert (wrapped.batch_shape, wrapped.event_shape) == ((4,), (5, 2))
    close(wrapped.log_prob(x), ours.log_prob(x).sum(-1), 1e-9)


def test_pyro_traces_it():
    pyro = peer("pyro")
    ours = distribution_of("flow_both_contexts", 5)
    theirs = as_pyro(ours)

    def model():
        with pyro.plate("data", 5):
            return pyro.sample("z", theirs)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].requires_grad
    close(site["log_prob"], ours.log_prob(site["value"]), 1e-9)
    wide = theirs.expand_by((3,))
    assert wide.shape() == (3, 5, 2)
    assert wide.to_event(1).event_shape == (5, 2)
    keep = torch.tensor([True, False, True, True, False])
    x = theirs()
    close(theirs.mask(keep).log_prob(x), ours.log_prob(x) * keep, 1e-9)


def test_pyro_fits_a_flow_as_a_guide():
    pyro = peer("pyro")
    pyro.clear_param_store()
    guide_flow = Flow(StandardGaussian(2), InverseAutoregressive(2, width=4, depth=1))

    def model():
        pyro.sample("z", pyro.distributions.Normal(torch.tensor([1.0, -2.0]), 0.5).to_event(1))

    def guide():
        pyro.module("flow", guide_flow)
        pyro.sample("z", as_pyro(guide_flow()))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    losses = [svi.step() for _ in range(250)]
    assert losses[0] > 5
    assert abs(sum(losses[-50:]) / 50) < 0.3  # the guide has reached the model, whose normalizer is 1
    draws = as_pyro(guide_flow()).sample((2000,))
    close(draws.mean(0), torch.tensor([1.0, -2.0]), 0.2)


def test_pyro_s_distribution_pickles_as_torch_s_does():
    peer("pyro")
    ours = distribution_of("flow", 5)
    for adapt in (as_torch, as_pyro):
        theirs = adapt(ours)
        other = pickle.loads(pickle.dumps(theirs))
        assert type(other) is type(theirs)
        x = theirs.sample()
        close(other.log_prob(x), theirs.log_prob(x), 0)
    with pytest.raises(AttributeError, match="has no attribute 'PyroDistributions'"):
        _ = adapters.PyroDistributions


def test_pyro_is_named_where_it_is_missing(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="pyro")

    adapters._pyro_class.cache_clear()
    monkeypatch.setattr("importlib.import_module", missing)
    message = "`pyro` is needed here and is not installed. Run: pip install 'pyro-ppl'"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        as_pyro(StandardGaussian(2)())


@pytest.mark.parametrize("name", CASES)
def test_a_conditional_is_a_lazy_distribution_of_zuko(name):
    conditional = build(name)
    lazy = as_zuko(conditional)
    context = context_of(conditional, 5)
    theirs = lazy(context)
    assert theirs.batch_shape == conditional(context).batch_shape
    assert set(lazy.parameters()) == set(conditional.parameters())
    x, log_p = theirs.rsample_and_log_prob((2,))
    assert log_p.shape == x.shape[: x.ndim - len(conditional.event_shape)]


@pytest.mark.parametrize("context", [False, True])
def test_it_is_the_base_of_a_flow_of_zuko(context):
    zuko = peer("zuko")
    base = build("amortized" if context else "flow")
    c = context_of(base, 5)
    flow = zuko.lazy.Flow(zuko.flows.MAF(2, 3 if context else 0).double().transform, as_zuko(base))
    x = flow(c).rsample((4,))
    u, log_det = flow.transform(c).call_and_ladj(x)
    close(flow(c).log_prob(x), base(c).log_prob(u) + log_det)


def test_zuko_ignores_a_context_that_nothing_takes():
    assert as_zuko(StandardGaussian(2))(torch.zeros(5, 3)).event_shape == (2,)


def test_the_interface_is_a_distribution_of_torch():
    theirs = as_torch(StandardGaussian(2)())
    assert isinstance(theirs, torch.distributions.Distribution)
    assert isinstance(theirs.distribution, Distribution)
    assert repr(theirs) == "TorchDistribution()"


def test_a_flow_is_called_first_and_a_distribution_is_no_conditional():
    flow = StandardGaussian(2)
    with pytest.raises(CombinationError, match=r"got `StandardGaussian`\. Call a flow .* as in `flow\(\)`"):
        as_torch(flow)
    with pytest.raises(
        CombinationError, match=r"got `StandardNormal`\. For one distribution take `as_torch`"
    ):
        as_zuko(flow())
