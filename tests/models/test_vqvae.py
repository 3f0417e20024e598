"""A model of codes: its levels stand where they should, and what does not fit is refused."""

import itertools

import pytest
import torch

from latentflows.core.errors import CombinationError, DataError, ShapeError
from latentflows.distributions import (
    AmortizedBernoulli,
    AmortizedGaussian,
    AutoregressiveCodes,
    StandardGaussian,
)
from latentflows.evaluation import evaluate_codes
from latentflows.generation import interpolate, reconstruct, sample, write_pictures
from latentflows.models import VQVAE, Quantizer, vq_vae
from latentflows.models.quantization import CodeFeatures
from latentflows.networks import MLP, ResidualMapDecoder, ResidualMapEncoder
from tests.models.codes import DATA, SMALL, Points, binary, two_levels


def test_the_levels_of_a_vq_vae_2_are_those_of_the_algorithm():
    model, x = two_levels(), binary()
    found = model.quantize(x)
    (top_encoder, bottom_encoder), (top, bottom) = model.encoder, model.levels
    e_top = top(top_encoder(x)).z
    wide = e_top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    e_bottom = bottom(bottom_encoder(x, wide)).z
    torch.testing.assert_close(found.z, torch.cat([wide, e_bottom], 1))
    assert torch.equal(model.embed(found.indices), found.z)
    assert torch.equal(model.codes(x), found.indices)
    assert torch.equal(model.embed(found.indices.view(2, 3, -1)), found.z.view(2, 3, *model.latent_shape))
    assert not torch.equal(e_bottom, bottom(bottom_encoder(x, torch.zeros_like(wide))).z)
    assert found.indices.shape == (6, 20)


def test_the_bottom_prior_reads_the_top_codes_at_their_place():
    features = CodeFeatures((2, 2), 6, (4, 4), 3, num_blocks=1, beside=2)
    context = torch.tensor([[1.0, 0.0, 0, 1, 2, 3]])
    out = features(context).view(4, 4, 3)  # its blocks start as the identity
    place = features.embedding.weight + features.linear(context[:, :2])
    for row, column in itertools.product(range(4), repeat=2):
        torch.testing.assert_close(out[row, column], place[2 * (row // 2) + column // 2])


def test_a_label_reaches_both_levels():
    model = two_levels(context_shape=2)
    x, labels = binary(4), torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    log_prior = model.trace(x, context=labels, with_likelihood=False).log_prior
    other = model.trace(x, context=labels.flip(1), with_likelihood=False).log_prior
    assert (log_prior != other).all()
    codes = model.codes(x)
    below = [
        model.prior.members[1](torch.cat([c, codes[:, :4].float()], 1)).log_prob(codes[:, 4:])
        for c in (labels, labels.flip(1))
    ]
    assert (below[0] != below[1]).all()
    assert sample(model, 4, context=labels).shape == (4, *DATA)
    assert evaluate_codes(model, Points(x, context=labels)).code_nll.shape == (4,)
    with pytest.raises(ShapeError, match="one row per sample, 3"):
        model.sample(3, context=labels)


def test_samples_and_reconstructions(tmp_path):
    model, x = two_levels(), binary()
    drawn = sample(model, 5, seed=3, temperature=0.5)
    assert torch.equal(drawn, sample(model, 5, seed=3, temperature=0.5))
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    means = sample(model, 5, seed=3, mean=True)
    assert ((means > 0) & (means < 1)).all()
    torch.testing.assert_close(reconstruct(model, x), model.decode_mean(model.embed(model.codes(x))))
    torch.testing.assert_close(model.encode(x).sample(), model.embed(model.codes(x)))
    cold = model.sample_codes(20, temperature=1e-7)
    assert len(cold.unique(dim=0)) == 1
    assert len(model.sample_codes(20).unique(dim=0)) == 20
    with pytest.raises(CombinationError, match="no code stands for"):
        interpolate(model, x[:1], x[1:2], 3)
    captions = {entry.file: entry.caption for entry in write_pictures(model, Points(x), tmp_path)}
    for file in ("samples.png", "reconstructions.png", "sample_means.png"):
        assert (tmp_path / file).is_file(), captions[file]
    assert "nothing to walk through" in captions["traversals.png"]
    assert "no code stands for" in captions["interpolations.png"]


def test_parts_and_their_numbers():
    model = vq_vae(DATA, (4, 4), likelihood=AmortizedBernoulli, codebook="moving_average", **SMALL)
    by_gradient = vq_vae(DATA, (4, 4), likelihood=AmortizedBernoulli, codebook="gradient", **SMALL)
    counts = model.num_parameters()
    assert counts["quantizer"] == by_gradient.num_parameters()["quantizer"] == 18
    assert counts["total"] == sum(counts[part] for part in model.parts)
    assert counts["encoder"] == sum(p.numel() for p in model.encoder.parameters())


def test_data_are_checked():
    model = two_levels()
    model.check_data(binary())
    with pytest.raises(DataError, match="needs binary data"):
        model.check_data(torch.rand(2, *DATA))
    with pytest.raises(ShapeError, match="`x` must end in"):
        model.check_data(binary(2, (1, 4, 4)))


def parts(**changes):
    made = {
        "encoder": MLP((5,), (4,), width=8, depth=1),
        "quantizer": Quantizer((4,), 3, num_tokens=2),
        "likelihood": AmortizedBernoulli((5,), (4,), MLP((4,), (5,), width=8, depth=1)),
        "prior": AutoregressiveCodes(2, 3, width=8, depth=1, heads=2),
    }
    return made | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"likelihood": AmortizedBernoulli((5,), (3,), MLP((3,), (5,), width=8, depth=1))},
            r"must read latents of shape \(4,\), all levels joined; it reads \(3,\)",
        ),
        ({"prior": AutoregressiveCodes(3, 3, width=8, depth=1, heads=2)}, "must be over the codes"),
        ({"prior": StandardGaussian(2)}, "must be over the codes"),
        ({"prior": AutoregressiveCodes(2, 4, width=8, depth=1, heads=2)}, r"got \[4\] and \[3\]"),
        ({"encoder": []}, "Each level needs an encoder and a quantizer; got 0 and 1"),
        (
            {
                "encoder": [MLP((5,), (4,), width=8, depth=1)] * 2,
                "quantizer": [Quantizer((4, 4, 4), 3), Quantizer((4, 6, 6), 3)],
            },
            r"coarser than the next by whole factors; got spaces \(4, 4\) above \(6, 6\)",
        ),
        (
            {
                "encoder": [MLP((5,), (4,), width=8, depth=1)] * 2,
                "quantizer": [Quantizer((4, 2), 3), Quantizer((4, 6, 6), 3)],
            },
            "coarser than the next",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(CombinationError, match=message):
        VQVAE(**parts(**changes))


def test_an_encoder_of_another_shape_is_refused_at_its_first_use():
    model = VQVAE(**parts(encoder=MLP((5,), (6,), width=8, depth=1)))
    with pytest.raises(ShapeError, match=r"`z` must end in \(4,\)"):
        model.codes(binary(2, (5,)))


def test_a_gaussian_likelihood_reads_codes_as_well():
    network = ResidualMapDecoder((3, 2, 2), (2, 8, 8), width=4, num_blocks=1)
    model = VQVAE(
        ResidualMapEncoder(DATA, (3, 2, 2), width=4, num_blocks=1),
        Quantizer((3, 2, 2), 6),
        AmortizedGaussian(DATA, (3, 2, 2), network),
        AutoregressiveCodes(4, 6, width=8, depth=1, heads=2),
    )
    assert model.trace(torch.randn(3, *DATA)).log_weight.isfinite().all()
