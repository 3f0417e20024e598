"""The estimate of the time left: arms weighed by what their runs take."""

import pytest

from latentflows.studies.execution.progress import Estimate, Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_arms_count_with_what_their_runs_took(clock):
    jobs = [("slow", 1), ("fast", 2), ("slow", 1), ("fast", 2)]
    estimate = Estimate(jobs, 1, {}, {"slow": 2.0, "fast": 2.0}, clock)
    assert estimate.seconds_left() is None
    estimate.start(0)
    clock.now = 100
    estimate.end(0, measured=True)
    assert (
        estimate.seconds_left() == 100 * 5
    )  # of the fast arm nothing is known yet but that its work is alike
    estimate.start(1)
    clock.now = 120
    estimate.end(1, measured=True)
    assert estimate.seconds_left() == 100 + 20
    for job in (2, 3):
        estimate.start(job)
        estimate.end(job, measured=False)  # one that failed measures nothing
        assert estimate.measured == {"slow": [100], "fast": [10]}
    assert estimate.seconds_left() == 0


def test_the_rest_is_spread_over_the_workers_and_no_shorter_than_the_longest_job(clock):
    before = {"a": [8.0, 12.0], "b": [60.0]}
    work = {"a": 1.0, "b": 1.0}
    assert Estimate([("a", 1)] * 6, 3, before, work, clock).seconds_left() == 20
    assert Estimate([("a", 1), ("b", 1)], 8, before, work, clock).seconds_left() == 60
    assert Estimate([("a", 1)] * 2, 8, before, work, clock).seconds_left() == 10


def test_an_arm_of_which_nothing_is_known_counts_by_its_work(clock):
    work = {"small": 3e9, "large": 3e10, "other": 6e9}
    jobs = [("small", 1), ("large", 2), ("other", 1)]
    assert Estimate(jobs, 1, {"small": [7.0]}, work, clock).seconds_left() == pytest.approx(7 + 2 * 70 + 14)
    two = {"small": [1.0], "other": [8.0]}  # where work says little, the larger one counts for more
    assert Estimate(jobs, 1, two, work, clock).seconds_left() == pytest.approx(9 + 2 * 3e10 * 9 / 9e9)
    nothing = work | {"other": 0.0}  # nothing that is counted: all alike
    assert Estimate(jobs, 1, {"small": [7.0]}, nothing, clock).seconds_left() == pytest.approx(28)


def test_a_job_under_way_tells_by_its_speed(clock):
    estimate = Estimate([("a", 1), ("a", 1)], 1, {"a": [1.0]}, {"a": 1.0}, clock)
    estimate.start(0)
    assert estimate.seconds_left() == 2  # as in an earlier session
    clock.now = 50
    estimate.report(0, 0.5)  # taken up where an earlier attempt left it, after a slow start
    clock.now = 60
    estimate.report(0, 0.7)
    assert estimate.seconds_left() == pytest.approx(0.3 * 50 + 50)
    estimate.report(0, 0.1)  # its runs go apart, and each counts from its own start
    assert estimate.fraction(0) == 0.7
    estimate.start(0)  # anew, in another process
    estimate.report(0, 0.01)
    assert estimate.seconds_left() == pytest.approx(0.99 + 1)
    estimate.report(1, 0.5)  # a message of a job that has not started changes nothing
    assert estimate.seconds_left() == pytest.approx(0.99 + 1)


def test_an_interrupted_run_is_still_to_be_done():
    progress = Progress(total=3)
    progress.active = {"a": 0.5, "b": 0.5}
    progress.end("a", {"status": "interrupted", "reason": None})
    assert (progress.done, progress.active, progress.failed) == (0, {"b": 0.5}, {})
    progress.end("b", {"status": "failed", "reason": "why"})
    progress.end("c", {"status": "diverged", "reason": None})
    assert (progress.done, progress.failed) == (2, {"b": "why", "c": "diverged"})
