"""A job: steps, results, errors and cancelling."""

import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from spotedit.app.job import Cancelled, Job


def step(index: int, picture: Image.Image | None = None) -> SimpleNamespace:
    """Return what a job reads of a `StepProgress`."""
    return SimpleNamespace(index=index, total=10, kind="spot", ratio=0.25, image=picture)


def test_steps_arrive_one_by_one():
    go_on = threading.Semaphore(0)

    def work(job):
        for index in range(3):
            job.on_step(step(index))
            go_on.acquire(timeout=10)
        return "done"

    job = Job(work, with_pictures=False)
    seen = []
    for progress in job.steps():
        seen.append((progress.index, progress.kind, progress.ratio, progress.picture))
        go_on.release()
    assert seen == [(index, "spot", 0.25, None) for index in range(3)]
    assert job.result() == "done"


def test_the_picture_of_a_step_is_passed_on_if_it_is_wanted():
    picture = Image.new("RGB", (4, 4))

    def work(job):
        job.on_step(step(0, picture))

    (progress,) = Job(work, with_pictures=True).steps()
    assert progress.picture is picture
    (progress,) = Job(work, with_pictures=False).steps()
    assert progress.picture is None


def test_an_error_of_the_work_is_raised_by_the_result():
    def work(job):
        raise KeyError("lost")

    job = Job(work, with_pictures=False)
    assert list(job.steps()) == []
    with pytest.raises(KeyError):
        job.result()


def test_decoding_pictures_takes_a_small_share_of_the_time():
    class SlowStep:
        index, total, kind, ratio = 0, 20, "spot", 0.25
        num_decoded = 0

        @property
        def image(self) -> Image.Image:
            SlowStep.num_decoded += 1
            time.sleep(0.02)
            return Image.new("RGB", (4, 4))

    def work(job):
        for _ in range(20):
            time.sleep(0.005)
            job.on_step(SlowStep())

    job = Job(work, with_pictures=True)
    list(job.steps())
    job.result()
    assert 1 <= SlowStep.num_decoded <= 4


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_cancelling_ends_the_work_at_its_next_step(how):
    go_on, ended = threading.Event(), threading.Event()

    def work(job):
        job.on_step(step(0))
        go_on.wait(10)
        try:
            job.on_step(step(1))
        except Cancelled:
            ended.set()
            raise

    job = Job(work, with_pictures=False)
    steps = job.steps()
    next(steps)
    if how == "cancel":
        job.cancel()
        assert list(steps) == []  # at once, although the work is still running
    else:
        steps.close()
    with pytest.raises(Cancelled):
        job.result()
    go_on.set()
    assert ended.wait(10)


def test_a_result_that_comes_after_cancelling_is_dropped():
    job = Job(lambda job: "done", with_pictures=False)
    assert list(job.steps()) == []
    job.cancel()
    with pytest.raises(Cancelled):
        job.result()


def test_a_job_that_was_cancelled_before_it_started_does_nothing():
    called = []
    job = Job(called.append, with_pictures=False)
    job.cancel()
    assert list(job.steps()) == []
    with pytest.raises(Cancelled):
        job.result()
    assert called == []
