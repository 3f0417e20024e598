"""The nearest code, its gradient, and a codebook that follows the data."""

import math

import pytest
import torch

from latentflows.core.errors import ConfigurationError, ShapeError
from latentflows.core.noise import stream
from latentflows.models import Quantizer, code_usage


def quantizer(shape=(3, 2, 2), codes=5, **settings) -> Quantizer:
    """One with codes apart from each other."""
    made = Quantizer(shape, codes, **settings)
    made.begin()  # what is gathered waits for the test
    with torch.no_grad():
        made.codebook.copy_(torch.randn(made.codebook.shape))
    return made


def tokens_of(z):
    return z.flatten(2).transpose(1, 2) if z.ndim > 2 else z


@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_the_nearest_code_is_that_of_brute_force(offset):
    """Also far from the origin, where |z|^2 - 2 z e + |e|^2 has no digit left in float32."""
    book = quantizer(codes=50)
    z = torch.randn(40, 3, 2, 2)
    with torch.no_grad():
        book.codebook += offset
        z = z + offset
    found = book(z)
    exact = (tokens_of(z).double()[:, :, None] - book.codebook.double()).square().sum(-1)
    assert torch.equal(found.codes, exact.argmin(-1))
    torch.testing.assert_close(found.commitment.double(), exact.amin(-1).sum(1), rtol=1e-3, atol=1e-3)
    assert torch.equal(found.z, book.embed(found.codes))  # to the last bit


def test_places_are_in_raster_order_and_a_vector_is_cut_in_tokens():
    book = quantizer((3, 2, 2))
    codes = torch.tensor([[0, 1, 2, 3]])
    z = book.embed(codes)
    assert torch.equal(z[0, :, 1, 0], book.codebook[2])
    assert torch.equal(book(z).codes, codes)
    vector = quantizer((6,), num_tokens=2)
    assert torch.equal(
        vector.embed(torch.tensor([4, 1])), torch.cat([vector.codebook[4], vector.codebook[1]])
    )
    assert torch.equal(vector(vector.embed(torch.tensor([[4, 1]]))).codes, torch.tensor([[4, 1]]))


@pytest.mark.parametrize("codebook", ["moving_average", "gradient"])
def test_the_gradient_passes_as_if_nothing_was_replaced(codebook):
    book = quantizer(codebook=codebook).double()
    z = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    found = book(z)
    ((found.z**2) * weight).sum().backward()
    torch.testing.assert_close(z.grad, 2 * found.z.detach() * weight)
    assert book.codebook.grad is None


def test_the_two_squares_pull_one_side_each():
    book = quantizer(codebook="gradient").double()
    z = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    found = book(z)
    torch.testing.assert_close(found.codebook_loss, found.commitment)
    to_z, to_book = torch.autograd.grad(
        found.commitment.sum(), [z, book.codebook], retain_graph=True, allow_unused=True
    )
    torch.testing.assert_close(to_z, 2 * (z - found.z).detach())
    assert to_book is None
    to_z, to_book = torch.autograd.grad(found.codebook_loss.sum(), [z, book.codebook], allow_unused=True)
    assert to_z is None
    tokens, chosen = tokens_of(z).flatten(0, 1), found.codes.flatten()
    expected = torch.zeros_like(book.codebook).index_add(0, chosen, 2 * (book.codebook[chosen] - tokens))
    torch.testing.assert_close(to_book, expected.detach())


def test_moving_averages_are_the_closed_form_for_fixed_assignments():
    """Three clusters far apart keep their codes; after n steps e = sum g^(n-s) sum(z) / sum g^(n-s) count."""
    centers = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    book = Quantizer((2,), 3, decay=0.7, restart_below=0).double()
    book.codebook.copy_(centers)
    sums, counts = torch.zeros(3, 2).double(), torch.zeros(3).double()
    for step in range(6):
        where = torch.randint(0, 3 if step else 2, (20,))
        z = centers[where] + torch.randn(20, 2)
        book.begin()
        found = [book(piece).codes[:, 0] for piece in z.split(10)]  # two pieces of one step
        book.commit()
        assert torch.equal(torch.cat(found), where)
        chosen = torch.nn.functional.one_hot(where, 3).double()
        sums, counts = 0.7 * sums + 0.3 * chosen.t() @ z, 0.7 * counts + 0.3 * chosen.sum(0)
        expected = torch.where(counts[:, None] > 0, sums / counts[:, None], centers)
        torch.testing.assert_close(book.codebook, expected)
    torch.testing.assert_close(book.counts, counts)


def test_nothing_is_taken_in_from_evaluation_or_from_a_step_that_was_skipped():
    book = quantizer()
    before = {name: value.clone() for name, value in book.state_dict().items()}
    z = torch.randn(8, 3, 2, 2)
    book.eval()
    book(z)
    book.commit()
    book.train()
    with torch.no_grad():
        book(z)
    book.begin()
    book(z * torch.nan)
    book.begin()
    book.commit()
    assert all(torch.equal(before[name], value) for name, value in book.state_dict().items())
    book(z)  # of a loop that knows nothing of steps
    assert not torch.equal(before["codebook"], book.codebook)


@pytest.mark.parametrize("codebook", ["moving_average", "gradient"])
def test_dead_codes_restart_at_latents_of_the_step(codebook):
    book = Quantizer((2,), 6, codebook=codebook, restart_below=0.1)
    with torch.no_grad():
        book.codebook.copy_(torch.tensor([[0.0, 0.0]] + [[500.0 + i, 500.0] for i in range(5)]))
    z = torch.randn(64, 2)
    with stream(3):
        book(z)
    book.commit()
    book.begin()
    assert all((z == code).all(1).any() for code in book.codebook[1:])
    assert len(book.codebook[1:].unique(dim=0)) == 5
    torch.testing.assert_close(book.counts[1:], book.counts[:1].expand(5) / 6)
    usage = code_usage(book(z).codes, 6)[1]
    assert usage == 1
    live = book.codebook.detach().clone()
    for _ in range(3):  # codes in use stay; a moving average moves by what chose it alone
        book.begin()
        book(book.codebook.detach()[torch.arange(6).repeat(9)])
        book.commit()
    torch.testing.assert_close(book.codebook.detach(), live, rtol=1e-4, atol=1e-4)


def test_a_dead_code_stays_where_restarts_are_off():
    book = Quantizer((2,), 2, restart_below=0)
    book.codebook.copy_(torch.tensor([[0.0, 0.0], [500.0, 500.0]]))
    for _ in range(5):
        book.begin()
        book(torch.randn(10, 2))
        book.commit()
    torch.testing.assert_close(book.codebook[1], torch.tensor([500.0, 500.0]))


def test_perplexity_is_the_exponential_of_the_entropy():
    perplexity, used = code_usage(torch.tensor([[0, 0], [1, 3]]), 8)
    assert perplexity.item() == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert used.item() == pytest.approx(3 / 8)
    assert code_usage(torch.arange(8).repeat(3), 8)[0].item() == pytest.approx(8)
    assert code_usage(torch.zeros(9, dtype=torch.long), 8)[0].item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantizer((4,), 1), "`num_codes` must be an integer of at least 2; got 1"),
        (lambda: Quantizer((4,), 3, num_tokens=3), "`num_tokens` must divide the 4 entries"),
        (lambda: Quantizer((4, 2, 2), 3, num_tokens=2), "has one token at each place"),
        (lambda: Quantizer((4,), 3, codebook="ema"), '"moving_average" or "gradient"; got \'ema\''),
        (lambda: Quantizer((4,), 3, decay=1.0), r"`decay` must be in \[0, 1\)"),
        (lambda: Quantizer((4,), 3, restart_below=-0.1), r"`restart_below` must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_latents_and_codes_of_another_shape_are_refused():
    book = quantizer()
    for z in (torch.zeros(2, 3, 2), torch.zeros(3, 2, 2), torch.zeros(2, 2, 3, 2, 2)):
        with pytest.raises(ShapeError, match="`z` must"):
            book(z)
    with pytest.raises(ShapeError, match="`codes` must end in"):
        book.embed(torch.zeros(2, 3, dtype=torch.long))


def test_half_precision_networks_do_not_change_the_nearest_code():
    book = quantizer(codes=200)
    z = torch.randn(100, 3, 2, 2)
    expected = book(z).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(z).codes, expected)
