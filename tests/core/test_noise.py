"""Counter-based noise: a pure function of the key, and no trace left behind."""

import pytest
import torch

from latentflows.core import noise
from latentflows.core.errors import CombinationError


def draw():
    return torch.cat(
        [noise.standard_normal((4,), like=torch.zeros(())), noise.uniform((4,), like=torch.zeros(()))]
    )


def test_a_stream_is_a_function_of_its_key():
    with noise.stream(1, 2):
        first = draw()
    torch.manual_seed(99)
    with noise.stream(1, 2):
        assert torch.equal(draw(), first)


@pytest.mark.parametrize("key", [(1, 3), (2, 1), (1,), (1, 2, 0), (-1, 2)])
def test_another_key_gives_another_stream(key):
    with noise.stream(1, 2):
        first = draw()
    with noise.stream(*key):
        assert (draw() != first).all()


def test_a_stream_gives_the_generator_back():
    state = torch.get_rng_state()
    with noise.stream(5):
        draw()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_gives_the_generator_back_after_an_error():
    state = torch.get_rng_state()

    def fail():
        with noise.stream(5):
            draw()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_nest():
    with noise.stream(1):
        whole = torch.stack([draw(), draw()])
    with noise.stream(1):
        first = draw()
        with noise.stream(2):
            draw()
        assert torch.equal(torch.stack([first, draw()]), whole)


def test_reseed_starts_the_stream_of_the_key():
    with noise.stream(3, 4):
        expected = draw()
    with noise.preserved():
        noise.reseed(3, 4)
        assert torch.equal(draw(), expected)


def test_mix_gives_63_bits_and_spreads_neighbors():
    values = {noise.mix(seed, step) for seed in range(30) for step in range(30)}
    assert len(values) == 900
    assert all(0 <= value < 2**63 for value in values)
    bits = [bin(noise.mix(seed) ^ noise.mix(seed + 1)).count("1") for seed in range(200)]
    assert 28 < sum(bits) / len(bits) < 35


def test_moments_of_the_draws():
    like = torch.zeros((), dtype=torch.float64)
    normal, uniform = noise.standard_normal((40_000,), like=like), noise.uniform((40_000,), like=like)
    assert abs(normal.mean()) < 5 / 200
    assert abs(normal.var() - 1) < 5 * 2**0.5 / 200
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 200


@pytest.mark.parametrize("function", [noise.standard_normal, noise.uniform])
@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_dtype_is_that_of_like_and_at_least_float32(function, given, expected):
    assert function((2, 3), like=torch.zeros((), dtype=given)).dtype == expected


def test_random_uint16_covers_its_range_evenly():
    values = noise.random_uint16((301, 133))
    assert values.shape == (301, 133)
    assert values.dtype == torch.int32
    assert values.min() >= 0
    assert values.max() <= 65535
    count = values.numel()
    assert abs(values.double().mean() - 32767.5) < 5 * 65536 / (12 * count) ** 0.5
    lower = values.view(-1).bitwise_and(255).double()
    assert abs(lower.mean() - 127.5) < 5 * 256 / (12 * count) ** 0.5
    top = (values >= 32768).double().mean()
    assert abs(top - 0.5) < 5 * 0.5 / count**0.5


def test_permutation_holds_every_number_once():
    drawn = noise.permutation(50)
    assert torch.equal(drawn.sort().values, torch.arange(50))
    assert not torch.equal(drawn, torch.arange(50))


def draws_of_all_kinds():
    like = torch.zeros((), dtype=torch.float16)
    return [
        noise.standard_normal((2, 3), like=like),
        noise.uniform((4,), like=like.double()),
        noise.random_uint16((5,)),
        noise.permutation(6),
    ]


def test_recorded_draws_can_be_taken_again():
    with noise.stream(3), noise.recorded() as draws:
        first = draws_of_all_kinds()
    with noise.stream(3):
        again = [draw.take() for draw in draws]
    assert [draw.kind for draw in draws] == ["normal", "uniform", "uint16", "permutation"]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_given_draws_stand_in_for_fresh_ones():
    with noise.stream(3), noise.recorded() as draws:
        first = draws_of_all_kinds()
    with noise.given(draws, first):
        handed_out = draws_of_all_kinds()
    assert all(one is other for one, other in zip(first, handed_out, strict=True))
    assert not torch.equal(draws_of_all_kinds()[0], first[0])


def test_other_draws_than_those_given_are_refused():
    with noise.recorded() as draws:
        values = draws_of_all_kinds()
    like = torch.zeros(())
    with pytest.raises(CombinationError, match="a uniform draw of shape"), noise.given(draws, values):
        noise.uniform((2, 3), like=like)
    with pytest.raises(CombinationError, match="a normal draw of shape"), noise.given(draws, values):
        noise.standard_normal((3, 2), like=like)
    with pytest.raises(CombinationError, match="fewer draws"), noise.given(draws, values):
        noise.standard_normal((2, 3), like=like)
    with pytest.raises(CombinationError, match="where none was to come"), noise.given([], []):
        noise.permutation(3)
    assert noise.permutation(3).shape == (3,)
