"""Several pipelines share one transformer, one VAE and perhaps one scheduler, in threads.

Every picture is the one that its pipeline makes alone, or an enabled pipeline says why it refuses.
"""

import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from small_kontext import (
    HEIGHT,
    NUM_PROMPT_TOKENS,
    POOLED_CHANNELS,
    PROMPT_CHANNELS,
    WIDTH,
)
from traces import traces
from turns import Freely, Turns
from world import CALLS, EDITS, HELPFUL, STOCK, World, arguments, enable

import spotedit


class Aborted(Exception):
    """Raised by a callback to abort a call."""


@pytest.fixture
def world():
    return World()


# -- threads


@dataclass
class Worker:
    """A thread with a pipeline of its own, and what it is going to do with it.

    Attributes:
        plan: ("enable", edit), ("disable",) and ("call", call, step at which it aborts or None).
        may_be_stock: whether it calls its pipeline also while that is not enabled.
        switch: called where another thread may take over.
        edit: what is enabled now.
        mistakes: what went wrong.
        refusals: the helpful messages of enabled pipelines that refused something.
        num_right: number of calls that returned the right picture.
    """

    world: World
    pipe: FluxKontextPipeline
    plan: list[tuple]
    may_be_stock: bool
    switch: Callable[[], None]
    edit: str = STOCK
    handle: spotedit.Handle | None = None
    mistakes: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    num_right: int = 0

    def run(self):
        for action, *details in self.plan:
            try:
                getattr(self, action)(*details)
            except Aborted:
                pass
            except (RuntimeError, ValueError) as error:
                may_refuse = action == "enable" or self.edit != STOCK
                if not may_refuse or not HELPFUL.search(str(error)):
                    self.mistakes.append(f"{action} {details}, edit {self.edit}: {error!r}")
                self.refusals.append(str(error))
            except BaseException as error:
                self.mistakes.append(f"{action} {details}, edit {self.edit}: {error!r}")
            self.switch()

    def enable(self, edit):
        self.handle = enable(self.pipe, edit)
        self.edit = edit

    def disable(self):
        spotedit.disable(self.pipe)
        self.edit, self.handle = STOCK, None

    def call(self, call, abort_at):
        if self.edit == STOCK and not self.may_be_stock:
            return

        def switch_or_abort(pipe, step, timestep, tensors):
            self.switch()
            if step == abort_at:
                raise Aborted
            return {}

        images = self.pipe(**arguments(call, callback_on_step_end=switch_or_abort)).images
        expected, expected_kinds = self.world.results[self.edit, call]
        kinds = self.handle and [step["kind"] for step in self.handle.report.steps]
        where = f"edit {self.edit}, call {call}"
        if not torch.equal(images, expected):
            self.mistakes.append(f"{where}: another picture")
        elif kinds != expected_kinds:
            self.mistakes.append(f"{where}: {kinds} in place of {expected_kinds}")
        else:
            self.num_right += 1


def random_plan(draw):
    """Plan one to three calls, and what is enabled or disabled between them."""
    plan = []
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            plan.append(("enable", draw.choice(list(EDITS))))
        elif draw.random() < 0.3:
            plan.append(("disable",))
        abort_at = draw.randrange(4) if draw.random() < 0.15 else None
        plan.append(("call", draw.choice(list(CALLS)), abort_at))
    return plan


def random_workers(world, draw, switch):
    """Make two to four workers, some of which share a scheduler."""
    shared_scheduler = world.scheduler()
    # Two stock pipelines on one scheduler would break each other even without spotedit.
    stock_shares_scheduler = False
    workers = []
    for _ in range(draw.randint(2, 4)):
        own_scheduler = draw.random() < 0.5
        pipe = world.pipeline(None if own_scheduler else shared_scheduler)
        may_be_stock = own_scheduler or not stock_shares_scheduler
        worker = Worker(world, pipe, random_plan(draw), may_be_stock, switch)
        workers.append(worker)
        if not own_scheduler:
            stock_shares_scheduler = True
        if draw.random() < 0.4:
            worker.enable(draw.choice(list(EDITS)))
    return workers


def run_workers(world, seed, turns):
    """Run random workers; return their mistakes, their refusals and the number of right calls."""
    workers = random_workers(world, random.Random(seed), turns.switch)
    schedulers = {id(worker.pipe.scheduler): worker.pipe.scheduler for worker in workers}.values()
    # Stock calls set attributes of the components. Set them all before looking.
    world.reference_pipe(**arguments("four steps"))
    for scheduler in schedulers:
        scheduler.set_timesteps(2, mu=1.0)
        scheduler.set_begin_index(0)
    before = traces(*world.shared_modules, *schedulers)

    turns.run({f"thread {i}": worker.run for i, worker in enumerate(workers)})

    mistakes = [text for worker in workers for text in worker.mistakes]
    for worker in workers:
        spotedit.disable(worker.pipe)
        if type(worker.pipe) is not FluxKontextPipeline:
            mistakes.append(f"the class is left {type(worker.pipe)}")
        if left := set(vars(worker.pipe)) - world.stock_attributes:
            mistakes.append(f"{left} is left on a pipeline")
    if traces(*world.shared_modules, *schedulers) != before:
        mistakes.append("something is left on the transformer, the VAE or a scheduler")
    refusals = [text for worker in workers for text in worker.refusals]
    return mistakes, refusals, sum(worker.num_right for worker in workers)


def check_threads(world, seeds, make_turns):
    """Assert that no seed's workers make a mistake, and that most calls are not refused."""
    for edit in (STOCK, *EDITS):
        for call in CALLS:
            world.alone(edit, call)
    failures, all_refusals, total_right = {}, [], 0
    for seed in seeds:
        mistakes, refusals, num_right = run_workers(world, seed, make_turns(seed))
        if mistakes:
            failures[seed] = mistakes
        all_refusals += refusals
        total_right += num_right
    first_failures = list(failures.items())[:3]
    assert not failures, f"{len(failures)} of {len(seeds)} seeds, the first: {first_failures}"
    num_refused = len(all_refusals)
    assert num_refused <= total_right, (
        f"{num_refused} refusals, {total_right} right pictures: {set(all_refusals)}"
    )


@pytest.mark.row(
    what="threads",
    how="pipelines of several threads on one transformer, VAE and scheduler, switched at any step",
    instead="",
)
def test_threads_that_take_turns(world):
    check_threads(world, range(20), Turns)


@pytest.mark.full
@pytest.mark.parametrize("first_seed", range(100, 300, 25))
def test_many_threads_that_take_turns(world, first_seed):
    check_threads(world, range(first_seed, first_seed + 25), Turns)


@pytest.mark.row(
    what="threads",
    how="pipelines of several threads on one transformer, VAE and scheduler, switched at any time",
    instead="",
)
def test_threads_that_run_freely(world):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        check_threads(world, range(1000, 1004), lambda seed: Freely())
    finally:
        sys.setswitchinterval(interval)


# -- one call in the middle of another


def in_this_thread(function):
    function()


def in_another_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "the call in the middle hangs"


@pytest.mark.parametrize("run", [in_this_thread, in_another_thread])
@pytest.mark.parametrize(
    ("outer", "inner", "one_scheduler"),
    [
        ("judged", STOCK, False),
        (STOCK, "judged", False),
        ("judged", "judged", False),
        ("skips steps", "masked", False),
        ("int8 cache", "judged", True),
        ("masked", STOCK, True),
        (STOCK, "masked", True),
    ],
)
def test_a_call_in_the_middle_of_another(world, outer, inner, one_scheduler, run):
    """Each of the two pictures is right, or its call is refused. At least one is made."""
    expected = {
        "outer": world.alone(outer, "batch of two")[0],
        "inner": world.alone(inner, "five steps")[0],
    }
    scheduler = world.scheduler()
    outer_pipe = world.pipeline(scheduler)
    inner_pipe = world.pipeline(scheduler if one_scheduler else None)
    pictures = {}

    def call_inner():
        try:
            pictures["inner"] = inner_pipe(**arguments("five steps")).images
        except (RuntimeError, ValueError) as error:
            if inner == STOCK or not HELPFUL.search(str(error)):
                raise

    def call_in_the_middle(pipe, step, timestep, tensors):
        if step == 2:
            enable(inner_pipe, inner)
            run(call_inner)
            spotedit.disable(inner_pipe)
        return {}

    enable(outer_pipe, outer)
    try:
        call = arguments("batch of two", callback_on_step_end=call_in_the_middle)
        pictures["outer"] = outer_pipe(**call).images
    except (RuntimeError, ValueError) as error:
        if outer == STOCK or not HELPFUL.search(str(error)):
            raise
    spotedit.disable(outer_pipe)
    for name, picture in pictures.items():
        assert torch.equal(picture, expected[name]), f"the {name} picture is wrong"
    assert pictures, "both calls were refused"


@pytest.mark.row(
    what="a pipeline of another class",
    how="`FluxPipeline` on the same transformer, in the middle of a call",
    instead="",
)
@pytest.mark.parametrize("run", [in_this_thread, in_another_thread])
def test_a_text_to_image_sibling_in_the_middle_of_a_call(world, run):
    """The sibling has another class, no condition image, and the same weights."""
    sibling = FluxPipeline(**world.components | {"scheduler": world.scheduler()})
    sibling.set_progress_bar_config(disable=True)
    sibling_pictures = []

    def call_sibling():
        output = sibling(
            prompt_embeds=torch.ones(1, NUM_PROMPT_TOKENS, PROMPT_CHANNELS),
            pooled_prompt_embeds=torch.ones(1, POOLED_CHANNELS),
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=3,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )
        sibling_pictures.append(output.images)

    def call_in_the_middle(pipe, step, timestep, tensors):
        if step == 2:
            run(call_sibling)
        return {}

    call_sibling()
    pipe = world.pipeline()
    with enable(pipe, "judged"):
        images = pipe(**arguments("batch of two", callback_on_step_end=call_in_the_middle)).images
    alone, in_the_middle = sibling_pictures
    assert torch.equal(in_the_middle, alone)
    assert torch.equal(images, world.alone("judged", "batch of two")[0])
