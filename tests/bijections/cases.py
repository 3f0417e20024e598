"""Every bijection, with and without a context. A new bijection adds a line to `CASES`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from latentflows.bijections import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Bijection,
    Chain,
    Coupling,
    Elementwise,
    HeightAutoregressive,
    Inverse,
    InverseAutoregressive,
    LeakyReLU,
    LULinear,
    OrthogonalLinear,
    Permutation,
    Planar,
    Radial,
    Rescale,
    Reshape,
    Sigmoid,
    SplineCoupling,
    Split,
    Squeeze,
    Sylvester,
    TransformerAutoregressive,
    TriangularLinear,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
    half_mask,
)
from latentflows.models import presets
from latentflows.networks import (
    MLP,
    CouplingConvolution,
    GatedMLP,
    ResidualConvolution,
    ResidualMLP,
    WaveNet,
)
from latentflows.testing import Settings, Subject, randomize
from latentflows.transforms import Additive, Affine, CircularSpline, Leaky, RationalQuadraticSpline

FEATURES = 3  # of the context, where there is one


def mlp(in_shape, out_shape, context):
    return MLP(in_shape, out_shape, width=8, depth=2, activation_name="tanh", context=context, zero_last=True)


def gated(in_shape, out_shape, context):
    return GatedMLP(in_shape, out_shape, width=8, depth=2, context=context, zero_last=True)


def residual(in_shape, out_shape, context):
    return ResidualMLP(
        in_shape, out_shape, width=6, num_blocks=2, activation_name="silu", context=context, zero_last=True
    )


def convolution(in_shape, out_shape, context):
    return CouplingConvolution(in_shape, out_shape, width=4, activation_name="tanh", context=context)


def residual_convolution(in_shape, out_shape, context):
    return ResidualConvolution(
        in_shape, out_shape, width=4, num_blocks=1, activation_name="tanh", context=context
    )


def wavenet(in_shape, out_shape, context):
    return WaveNet(in_shape, out_shape, width=3, depth=2, context=context)


def transformer(event_shape, **settings):
    """A Transformer autoregressive layer that takes a vector context."""
    return lambda c: TransformerAutoregressive(
        event_shape, width=8, depth=1, heads=2, context_shape=c, **settings
    )


MIXED = torch.tensor([False, True, True, False, True])


@dataclass(frozen=True)
class Case:
    """How to make a bijection from a number of context features, and what it promises."""

    make: Callable[[int | None], Bijection]
    identity: bool = True  # as built, before training
    context: bool = True  # it can take one
    settings: Settings = field(default_factory=Settings)  # what else it promises, and how hard it is tried


def mixed(context):
    layers = [
        ActNorm(4),
        AffineCoupling(4, mask=half_mask(4, first=True), network=mlp, context_shape=context),
        Permutation.reversal(4),
        InverseAutoregressive(4, width=8, depth=1, context_shape=context, activation="tanh"),
    ]
    return Chain(layers)


def factored(context):
    """Half of the channels of four are noise given the rest, and a coupling moves them on; on a flat base."""
    kept = AffineCoupling(
        (2, 2, 1), mask=half_mask((2, 2, 1), first=True), network=mlp, context_shape=context
    )
    inner = Chain([Reshape(4, (2, 2, 1)), kept])
    split = Split((4, 2, 1), inner, network=convolution, context_shape=context)
    step = AffineCoupling(
        (4, 2, 1),
        mask=channel_mask((4, 2, 1), first=False),
        network=convolution,
        layout="channels",
        context_shape=context,
    )
    return Chain([split, step, Squeeze((1, 4, 2))])


def small(preset, **settings):
    return lambda c: preset(4, num_layers=3, context=c, **settings)


def steps(block):
    """Promise that no dependency between blocks of that many entries is lost."""
    return Settings(autoregressive_block=block)


CASES = {
    "permutation": Case(lambda c: Permutation.random(4, seed=1), identity=False, context=False),
    "permutation_image": Case(lambda c: Permutation.reversal((1, 2, 3)), identity=False, context=False),
    "permutation_channels": Case(
        lambda c: Permutation.random((3, 2, 2), seed=1, channels=True), identity=False, context=False
    ),
    "actnorm": Case(lambda c: ActNorm(4), context=False),
    "actnorm_sequence": Case(lambda c: ActNorm((2, 3)), context=False),
    "actnorm_image": Case(lambda c: ActNorm((2, 3, 2)), context=False),
    "additive": Case(
        lambda c: AdditiveCoupling(5, mask=half_mask(5, first=True), network=mlp, context_shape=c)
    ),
    "affine_first": Case(
        lambda c: AffineCoupling(5, mask=half_mask(5, first=True), network=mlp, context_shape=c)
    ),
    "affine_second": Case(
        lambda c: AffineCoupling(5, mask=half_mask(5, first=False), network=gated, context_shape=c)
    ),
    "affine_image": Case(
        lambda c: AffineCoupling(
            (2, 1, 3), mask=alternating_mask((2, 1, 3), even=True), network=mlp, context_shape=c
        )
    ),
    "affine_masked": Case(
        lambda c: AffineCoupling(5, mask=MIXED, network=residual, layout="masked", context_shape=c)
    ),
    "affine_residual": Case(lambda c: AffineCoupling(5, mask=MIXED, network=residual, context_shape=c)),
    "affine_channels": Case(
        lambda c: AffineCoupling(
            (3, 2, 2),
            mask=channel_mask((3, 2, 2), first=False),
            network=convolution,
            layout="channels",
            context_shape=c,
        )
    ),
    "affine_checkerboard": Case(
        lambda c: AffineCoupling(
            (2, 2, 3),
            mask=checkerboard_mask((2, 2, 3), even=True),
            network=residual_convolution,
            layout="masked",
            context_shape=c,
        )
    ),
    "affine_sequence": Case(
        lambda c: AffineCoupling(
            (4, 3), mask=channel_mask((4, 3), first=True), network=wavenet, layout="channels", context_shape=c
        )
    ),
    "affine_sequence_map": Case(
        lambda c: AffineCoupling(
            (4, 3),
            mask=channel_mask((4, 3), first=True),
            network=wavenet,
            layout="channels",
            context_shape=c and (2, 3),
        )
    ),
    "additive_sequence": Case(
        lambda c: AdditiveCoupling(
            (2, 4),
            mask=checkerboard_mask((2, 4), even=False),
            network=wavenet,
            layout="masked",
            context_shape=c,
        )
    ),
    "spline_coupling": Case(
        lambda c: SplineCoupling(5, mask=half_mask(5, first=True), network=mlp, num_bins=4, context_shape=c),
    ),
    "spline_channels": Case(
        lambda c: SplineCoupling(
            (2, 2, 2),
            mask=channel_mask((2, 2, 2), first=True),
            network=convolution,
            layout="channels",
            num_bins=3,
            context_shape=c,
        ),
    ),
    "spline_masked_sequence": Case(
        lambda c: SplineCoupling(
            (2, 3),
            mask=checkerboard_mask((2, 3), even=True),
            network=wavenet,
            layout="masked",
            num_bins=3,
            context_shape=c,
        ),
    ),
    "circular_coupling": Case(
        lambda c: Coupling(
            4, mask=half_mask(4, first=True), network=mlp, transform=CircularSpline(3), context_shape=c
        ),
    ),
    "circular_sequence": Case(
        lambda c: Coupling(
            (2, 3),
            mask=checkerboard_mask((2, 3), even=True),
            network=wavenet,
            transform=CircularSpline(3),
            layout="masked",
            context_shape=c,
        ),
    ),
    "elementwise_affine": Case(lambda c: Elementwise((2, 3), Affine(), context_shape=c)),
    "elementwise_spline": Case(lambda c: Elementwise(3, RationalQuadraticSpline(4), context_shape=c)),
    "elementwise_spline_channels": Case(
        lambda c: Elementwise((2, 3), RationalQuadraticSpline(3), context_shape=c, per_channel=True)
    ),
    "elementwise_circular": Case(lambda c: Elementwise(3, CircularSpline(3), context_shape=c)),
    "elementwise_leaky": Case(lambda c: Elementwise((2, 2, 2), Leaky(), context_shape=c, per_channel=True)),
    "sigmoid": Case(
        lambda c: Sigmoid((2, 3), lower=-2, upper=3),
        identity=False,
        context=False,
        settings=Settings(event_support=(-2, 3)),
    ),
    "logit": Case(
        lambda c: Inverse(Sigmoid(3)), identity=False, context=False, settings=Settings(base_support=(0, 1))
    ),
    "leaky_relu": Case(lambda c: LeakyReLU((2, 3), slope=0.2), identity=False, context=False),
    "iaf": Case(
        lambda c: InverseAutoregressive(4, width=8, depth=2, context_shape=c, activation="tanh"),
        settings=steps(1),
    ),
    "iaf_incremental": Case(
        lambda c: InverseAutoregressive(
            (1, 5),
            width=7,
            depth=2,
            context_shape=c,
            activation="tanh",
            order="reversed",
            inversion="incremental",
        ),
        settings=steps(1),
    ),
    "iaf_jacobi": Case(
        lambda c: InverseAutoregressive(
            5,
            width=7,
            depth=1,
            context_shape=c,
            activation="silu",
            order=torch.tensor([2, 0, 4, 1, 3]),
            inversion="jacobi",
        ),
        settings=steps(1),
    ),
    "maf_spline": Case(
        lambda c: Inverse(
            InverseAutoregressive(
                3, width=6, depth=2, context_shape=c, transform=RationalQuadraticSpline(3), activation="tanh"
            )
        ),
        settings=steps(1),
    ),
    "iaf_additive": Case(
        lambda c: InverseAutoregressive(
            4, width=4, depth=1, context_shape=c, transform=Additive(), activation="elu"
        ),
        settings=steps(1),
    ),
    "iaf_plane": Case(
        lambda c: InverseAutoregressive(2, width=8, depth=1, context_shape=c), settings=steps(1)
    ),
    "affine_plane": Case(
        lambda c: AffineCoupling(2, mask=half_mask(2, first=True), network=mlp, context_shape=c)
    ),
    "maf": Case(
        lambda c: Inverse(InverseAutoregressive(4, width=8, depth=2, context_shape=c, activation="tanh")),
        settings=steps(1),
    ),
    "transformer_vector": Case(transformer(4, patch=2), settings=steps(2)),
    "transformer_sequence": Case(transformer((2, 3)), settings=steps(2)),
    "transformer_image": Case(transformer((1, 2, 4), patch=2), settings=steps(4)),
    "transformer_reversed": Case(transformer((2, 2), reverse=True), settings=steps(2)),
    "transformer_jacobi": Case(transformer((2, 2), inversion="jacobi"), settings=steps(2)),
    "transformer_spline": Case(transformer((2, 2), transform=RationalQuadraticSpline(3)), settings=steps(2)),
    "transformer_inverse": Case(lambda c: Inverse(transformer(3)(c)), settings=steps(1)),
    "planar": Case(lambda c: Planar(4, context_shape=c)),
    "planar_3_layers": Case(lambda c: Planar(4, num_layers=3, context_shape=c)),
    "planar_inverse": Case(lambda c: Inverse(Planar(4, context_shape=c))),
    "radial": Case(lambda c: Radial(4, context_shape=c)),
    "radial_one_variable": Case(lambda c: Radial(1, context_shape=c)),
    "radial_3_layers": Case(lambda c: Radial(3, num_layers=3, context_shape=c)),
    "sylvester_orthogonal": Case(
        lambda c: Sylvester(5, kind="orthogonal", rank=3, num_layers=2, context_shape=c)
    ),
    "sylvester_full_rank": Case(lambda c: Sylvester(3, kind="orthogonal", rank=3, context_shape=c)),
    "sylvester_householder": Case(
        lambda c: Sylvester(4, kind="householder", num_householder=2, num_layers=2, context_shape=c)
    ),
    "sylvester_triangular": Case(lambda c: Sylvester(4, kind="triangular", num_layers=3, context_shape=c)),
    "lu": Case(lambda c: LULinear(4, context_shape=c)),
    "lu_rotation": Case(lambda c: LULinear(4, start="rotation", context_shape=c), identity=False),
    "lu_sequence": Case(lambda c: LULinear((3, 4), context_shape=c)),
    "lu_image": Case(lambda c: LULinear((3, 2, 2), start="rotation", context_shape=c), identity=False),
    "triangular": Case(lambda c: TriangularLinear(4, context_shape=c)),
    "triangular_sequence": Case(lambda c: TriangularLinear((3, 4), context_shape=c)),
    "orthogonal": Case(lambda c: OrthogonalLinear(5, context_shape=c)),
    "orthogonal_image": Case(
        lambda c: OrthogonalLinear((4, 2, 2), num_reflections=2, start="rotation", context_shape=c),
        identity=False,
    ),
    "height": Case(
        lambda c: HeightAutoregressive((2, 4), height=2, width=3, depth=1, context_shape=c),
    ),
    "height_reversed": Case(
        lambda c: HeightAutoregressive((1, 6), height=3, width=3, depth=2, reverse=True, context_shape=c),
    ),
    "height_map": Case(
        lambda c: HeightAutoregressive((2, 4), height=2, width=3, depth=1, context_shape=c and (2, 4)),
    ),
    "reshape": Case(lambda c: Reshape(6, (1, 2, 3)), identity=False, context=False),
    "rescale": Case(lambda c: Rescale((2, 3), scale=-2.5, shift=0.3), identity=False, context=False),
    "squeeze_image": Case(lambda c: Squeeze((2, 4, 2)), identity=False, context=False),
    "squeeze_sequence": Case(
        lambda c: Squeeze((2, 6), factor=3), identity=False, context=False, settings=Settings(frame_group=3)
    ),
    "unsqueeze": Case(lambda c: Inverse(Squeeze((1, 4, 2))), identity=False, context=False),
    "split": Case(
        lambda c: Split((4, 2, 1), Reshape(4, (2, 2, 1)), network=convolution, context_shape=c),
        identity=False,
    ),
    "split_vector": Case(
        lambda c: Split(
            5,
            AffineCoupling(3, mask=half_mask(3, first=True), network=mlp, context_shape=c),
            network=mlp,
            context_shape=c,
        )
    ),
    "split_sequence": Case(
        lambda c: Split((3, 2), LULinear((2, 2)), network=wavenet, context_shape=c and (2, 2)),
    ),
    "split_noise": Case(lambda c: Split(5, LULinear(3, context_shape=c), network=None)),
    "multiscale": Case(factored, identity=False),
    "chain": Case(mixed, identity=False),
    "preset_real_nvp": Case(small(presets.real_nvp, width=8), identity=False),
    "preset_nice": Case(small(presets.nice, width=8), identity=False),
    "preset_iaf": Case(small(presets.iaf, width=8), identity=False),
    "preset_maf": Case(small(presets.maf, width=8), identity=False),
    "preset_planar": Case(small(presets.planar)),
}


def build(name: str, context: bool, *, scale: float | None = 1.0, dtype=torch.float64) -> Bijection:
    """Make a case with parameters of that scale, or as they start with None."""
    bijection = CASES[name].make(FEATURES if context else None).to(dtype)
    if scale is not None:
        randomize(bijection, scale)
    return bijection


@lru_cache
def subject(name: str, context: bool) -> Subject:
    """Return what the property suite checks; one per case, so that its Jacobians are computed once."""
    case = CASES[name]
    settings = replace(case.settings, identity_at_start=case.identity)
    return Subject(lambda: case.make(FEATURES if context else None), settings)


INSTANCES = [(name, context) for name in CASES for context in (False, True)[: 1 + CASES[name].context]]
