"""When what a module gathers is taken in: with a step, or at once where there are no steps."""

import torch

from latentflows.core.running import Running


class Total(Running):
    """Adds up what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, value: float) -> None:
        self.pieces.append(value)
        self.gathered()

    def _forget(self) -> None:
        self.pieces: list[float] = []

    def _take_in(self) -> None:
        self.total += sum(self.pieces)


def test_without_steps_every_pass_is_taken_in_and_none_is_kept():
    module = Total()
    for count in range(1, 4):
        module(2.0)
        assert module.total == 2 * count
        assert not module.pieces


def test_a_step_is_taken_in_by_its_commit():
    module = Total()
    module.begin()
    module(1.0)
    module(2.0)
    assert module.total == 0
    module.commit()
    assert module.total == 3
    module.commit()
    assert module.total == 3


def test_a_step_that_is_not_committed_leaves_no_trace():
    module = Total()
    module.begin()
    module(1.0)
    module.begin()
    module.commit()
    assert module.total == 0
    module(4.0)  # after the last step there is none
    assert module.total == 4


def test_after_a_last_step_that_was_not_taken_passes_are_taken_in_again():
    module = Total()
    module.begin()
    module(1.0)
    module.leave()
    assert module.total == 0
    module(4.0)
    assert module.total == 4


def test_a_used_one_has_the_settings_of_a_new_one():
    """So that runs which train together are found to be alike."""
    used = Total()
    used.begin()
    used.commit()
    assert vars(used).keys() == vars(Total()).keys()
