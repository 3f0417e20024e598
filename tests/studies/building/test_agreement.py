"""What the settings of a kind say of it is what the object that is built from them does.

Settings refuse what does not fit before PyTorch is imported; objects refuse it for whoever builds them in Python.
"""

import pytest
import torch

from latentflows.models.vae import drawn_parts
from latentflows.studies.building.build import build_model
from latentflows.studies.building.parts import build_flow, build_objective, build_posterior
from latentflows.studies.building.priors import build_prior
from latentflows.studies.settings.configuration import RunConfiguration
from latentflows.studies.settings.flows import FlowSettings
from latentflows.studies.settings.options import parts
from latentflows.studies.settings.overrides import configuration_from
from tests.studies.matrix import LEVELS, SIZES

SHAPE = (1, 4, 4)
POSTERIORS = [name for name, kind in parts()["posterior"].items() if issubclass(kind, FlowSettings)]


def unchecked(embed: int | None = None, **kinds: str) -> RunConfiguration:
    """A small configuration of these kinds, whether they fit or not."""
    raw: dict = {"latent_dim": 4, "network": {"kind": "mlp", "width": 8, "depth": 1}}
    raw["condition"] = {"on": "labels", "embed": embed}
    for part, kind in kinds.items():
        fields = parts()[part][kind].model_fields
        raw[part] = {"kind": kind} | {key: value for key, value in SIZES.items() if key in fields}
    return RunConfiguration.model_validate(raw)


@pytest.mark.parametrize("kind", parts()["objective"])
def test_an_objective_needs_what_its_settings_say(kind):
    settings = parts()["objective"][kind]
    built = build_objective(settings(), build_model(configuration_from({}, []), SHAPE), 10)
    assert settings.needs == built.needs
    assert settings.without_prior == built.without_prior


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", parts()["prior"])
def test_a_prior_takes_a_label_and_learns_from_its_draws_where_its_settings_say_so(kind):
    c = unchecked(prior=kind, posterior=kind if kind in LEVELS else "gaussian")
    for given in ((3,), None):
        prior = build_prior(c, build_posterior(c, SHAPE, None), given, build_flow)
        assert (prior.context_shape is not None) == (c.prior.takes_label and given is not None)
        drawn = drawn_parts(prior)
        learns = [part.learns_from_draws and part.distribution_type.reparameterized for part in drawn]
        assert all(learns) == c.prior.learns_from_draws(labels=given is not None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [name for name, kind in parts()["prior"].items() if kind.takes_label])
def test_a_prior_learns_a_vector_for_each_class_where_its_settings_say_so(kind):
    c = unchecked(embed=5, prior=kind, posterior=kind if kind in LEVELS else "gaussian")
    prior = build_prior(c, build_posterior(c, SHAPE, None), (3,), build_flow)
    assert prior.context_shape == (3,)
    tables = [p for name, p in prior.named_parameters() if name.endswith("embed.weight")]
    assert [tuple(p.shape) for p in tables] == [(5, 3)] * c.prior.takes_embedding
    z = prior(torch.eye(3)[[0, 0, 1]]).sample()
    assert z.shape == (3, 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", POSTERIORS)
def test_a_flow_has_an_inverse_where_its_settings_say_so(kind):
    c = unchecked(posterior=kind)
    assert isinstance(c.posterior, FlowSettings)
    with torch.no_grad():
        assert build_posterior(c, SHAPE, None).has_density == c.posterior.has_inverse
