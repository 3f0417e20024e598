"""A density of data as a model: it scores, draws and counts, and says what does not fit."""

import pytest
import torch

from latentflows.core.errors import ConfigurationError, DataError, ShapeError
from latentflows.distributions import StandardGaussian
from latentflows.models import DensityModel
from tests.distributions.cases import gaussian
from tests.models.parts import LATENT
from tests.objectives.cases import density_model


def test_a_trace_holds_log_p_as_its_weight_and_nothing_of_a_latent():
    model, x = density_model(), torch.randn(5, LATENT).double()
    trace = model.trace(x)
    assert trace.z.shape == (1, 5, 0)
    torch.testing.assert_close(trace.log_weight[0], model.density().log_prob(x))


def test_draws_come_with_their_log_density():
    model = density_model("real_nvp")
    trace = model.draw(3, 5)
    assert trace.z.shape == (3, 5, LATENT)
    torch.testing.assert_close(trace.log_posterior, model.density().log_prob(trace.z))
    with pytest.raises(ConfigurationError, match="Numbers of draws must be at least 1; got 0, 4"):
        model.draw(0, 4)


def test_temperature_scales_the_noise():
    model = DensityModel(StandardGaussian(2))
    assert model.sample(2_000, temperature=0.5).std() == pytest.approx(0.5, rel=0.1)
    assert model.sample(2_000).std() == pytest.approx(1, rel=0.1)
    assert not model.sample(3).requires_grad


def test_a_context_is_used_where_the_density_takes_one_and_left_out_where_not():
    model = DensityModel(gaussian((2,), (3,)))
    x, context = torch.randn(5, 2), torch.randn(5, 3)
    torch.testing.assert_close(
        model.trace(x, context=context).log_weight[0], model.density(context).log_prob(x)
    )
    assert model.draw(4, 5, context=context).z.shape == (4, 5, 2)
    plain = DensityModel(StandardGaussian(2))
    torch.testing.assert_close(plain.trace(x, context=context).log_weight, plain.trace(x).log_weight)
    with pytest.raises(ShapeError, match=r"must hold one row per sample, 4; got batch shape \(5,\)"):
        model.sample(4, context=context)


def test_its_numbers_are_counted():
    model = density_model("maf")
    counts = model.num_parameters()
    assert (
        counts["density"] == counts["total"] < sum(p.numel() for p in model.parameters())
    )  # masks remove some


def test_data_of_another_shape_or_not_finite_are_refused():
    model = DensityModel(StandardGaussian(2))
    with pytest.raises(ShapeError, match=r"`x` must end in \(2,\)"):
        model.check_data(torch.zeros(4, 3))
    with pytest.raises(DataError, match="must be finite"):
        model.check_data(torch.full((4, 2), torch.nan))
