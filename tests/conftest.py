"""What every test gets: one thread, and a noise stream of its own, so that tests do not depend on their order."""

import signal

import pytest
import torch

from latentflows.core import noise

torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell has it ignored by what it starts in the background


@pytest.fixture(autouse=True)
def seeded():
    """Draws inside a test are a function of the test alone."""
    with noise.stream(0):
        yield
