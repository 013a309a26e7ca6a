"""Several pipelines on one transformer, one scheduler and one VAE, in threads.

Every picture is the one that its pipeline makes alone, or an enabled pipeline says why it refuses.
"""

import random
import sys
import threading
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from traces import traces
from turns import Free, Turns
from world import CALLS, CLEAR, EDITS, STOCK, World, arguments, enable

import spotedit


class Stop(Exception):
    """Raised by a callback to abort a call."""


@pytest.fixture
def world():
    return World()


@dataclass
class Worker:
    """A thread with a pipeline of its own, and what it is going to do with it.

    Attributes:
        plan: ("enable", number of EDITS), ("disable",) and ("call", number of CALLS, step at which
            it aborts or None).
        may_be_stock: whether it calls its pipeline also while that is not enabled.
    """

    world: World
    pipe: FluxKontextPipeline
    plan: list[tuple]
    may_be_stock: bool
    switch: object
    edit: int | None = STOCK
    handle: object = None
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    right: int = 0

    def run(self):
        for name, *rest in self.plan:
            try:
                getattr(self, name)(*rest)
            except Stop:
                pass
            except (RuntimeError, ValueError) as error:
                enabled = name == "enable" or self.edit is not STOCK
                if not enabled or not CLEAR.search(str(error)):
                    self.wrong.append(f"{name} {rest}, edit {self.edit}: {error!r}")
                self.refused.append(str(error))
            except BaseException as error:
                self.wrong.append(f"{name} {rest}, edit {self.edit}: {error!r}")
            self.switch()

    def enable(self, edit):
        self.handle = enable(self.pipe, edit)
        self.edit = edit

    def disable(self):
        spotedit.disable(self.pipe)
        self.edit, self.handle = STOCK, None

    def call(self, call, abort):
        if self.edit is STOCK and not self.may_be_stock:
            return

        def callback(pipe, step, timestep, tensors):
            self.switch()
            if step == abort:
                raise Stop
            return {}

        images = self.pipe(**arguments(call, callback_on_step_end=callback)).images
        expected, kinds = self.world.results[self.edit, call]
        said = self.handle and [step["kind"] for step in self.handle.report.steps]
        if not torch.equal(images, expected):
            self.wrong.append(f"edit {self.edit}, call {call}: another picture")
        elif said != kinds:
            self.wrong.append(f"edit {self.edit}, call {call}: {said} in place of {kinds}")
        else:
            self.right += 1


def plan(draw):
    """One to three calls, and what comes between them."""
    actions = []
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            actions.append(("enable", draw.randrange(len(EDITS))))
        elif draw.random() < 0.3:
            actions.append(("disable",))
        abort = draw.randrange(4) if draw.random() < 0.15 else None
        actions.append(("call", draw.randrange(len(CALLS)), abort))
    return actions


def interleave(world, seed, turns):
    """Threads on one set of weights; returns what went wrong and how many calls were right."""
    draw = random.Random(seed)
    common = world.scheduler()  # two stock pipelines on it would break each other
    stock_on_common = False
    workers = []
    for _ in range(draw.randint(2, 4)):
        own = draw.random() < 0.5
        pipe = world.pipeline(None if own else common)
        workers.append(Worker(world, pipe, plan(draw), own or not stock_on_common, turns.switch))
        stock_on_common |= not own
        if draw.random() < 0.4:
            workers[-1].enable(draw.randrange(len(EDITS)))
    schedulers = {id(worker.pipe.scheduler): worker.pipe.scheduler for worker in workers}.values()
    parts = (*world.shared, *schedulers)
    world.quiet(**arguments(0))
    for scheduler in schedulers:
        scheduler.set_timesteps(2, mu=1.0)  # sets attributes of its own
        scheduler.set_begin_index(0)
    before = traces(*parts)
    turns.run({f"thread {i}": worker.run for i, worker in enumerate(workers)})
    wrong = [text for worker in workers for text in worker.wrong]
    for worker in workers:
        spotedit.disable(worker.pipe)
        if type(worker.pipe) is not FluxKontextPipeline:
            wrong.append(f"the class is left {type(worker.pipe)}")
        if extra := set(vars(worker.pipe)) - world.stock_attributes:
            wrong.append(f"{extra} is left on a pipeline")
    if traces(*parts) != before:
        wrong.append("something is left on the transformer, the VAE or a scheduler")
    refused = [text for worker in workers for text in worker.refused]
    return wrong, refused, sum(worker.right for worker in workers)


def check(world, seeds, turns):
    for edit in (STOCK, *range(len(EDITS))):
        for call in range(len(CALLS)):
            world.alone(edit, call)
    failures, refused, right = {}, [], 0
    for seed in seeds:
        wrong, errors, fine = interleave(world, seed, turns(seed))
        if wrong:
            failures[seed] = wrong
        refused += errors
        right += fine
    assert not failures, (
        f"{len(failures)} of {len(seeds)} seeds, the first: {list(failures.items())[:3]}"
    )
    assert len(refused) <= right, f"{len(refused)} refusals, {right} right pictures: {set(refused)}"


@pytest.mark.row(
    what="threads",
    how="pipelines of several threads on one transformer, VAE and scheduler, switched at any step",
    instead="",
)
def test_threads_that_take_turns(world):
    check(world, range(20), Turns)


@pytest.mark.full
@pytest.mark.parametrize("first", range(100, 300, 25))
def test_many_threads_that_take_turns(world, first):
    check(world, range(first, first + 25), Turns)


@pytest.mark.row(
    what="threads",
    how="pipelines of several threads on one transformer, VAE and scheduler, switched at any time",
    instead="",
)
def test_threads_that_run_freely(world):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        check(world, range(1000, 1004), lambda seed: Free())
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
    ("outer", "inner", "common"),
    [
        (0, STOCK, False), (STOCK, 0, False), (0, 0, False), (1, 2, False), (3, 0, True),
        (2, STOCK, True), (STOCK, 2, True),
    ],
)  # fmt: skip
def test_a_call_in_the_middle_of_another(world, outer, inner, common, run):
    """`common`: the two pipelines have one scheduler object."""
    expected = world.alone(outer, 1)[0], world.alone(inner, 3)[0]
    scheduler = world.scheduler()
    first, second = world.pipeline(scheduler), world.pipeline(scheduler if common else None)
    enable(first, outer)
    made = {}

    def edit(name, pipe, call, edit, **extra):
        try:
            made[name] = pipe(**arguments(call, **extra)).images
        except (RuntimeError, ValueError) as error:
            if edit is STOCK or not CLEAR.search(str(error)):
                raise

    def middle(pipe, step, timestep, tensors):
        if step == 2:
            enable(second, inner)
            run(lambda: edit("inner", second, 3, inner))
            spotedit.disable(second)
        return {}

    edit("outer", first, 1, outer, callback_on_step_end=middle)
    spotedit.disable(first)
    for name, picture in zip(("outer", "inner"), expected, strict=True):
        assert name not in made or torch.equal(made[name], picture), f"the {name} picture is wrong"
    assert made, "both calls were refused"


@pytest.mark.row(
    what="a pipeline of another class",
    how="`FluxPipeline` on the same transformer, in the middle of a call",
    instead="",
)
@pytest.mark.parametrize("run", [in_this_thread, in_another_thread])
def test_a_text_to_image_sibling_in_the_middle_of_a_call(world, run):
    """A pipeline of another class and without a condition image, on the same weights."""
    components = world.components | {"scheduler": world.scheduler()}
    sibling, pipe, made = FluxPipeline(**components), world.pipeline(), []
    sibling.set_progress_bar_config(disable=True)

    def draw():
        embeddings = {
            "prompt_embeds": torch.ones(1, 5, 12),
            "pooled_prompt_embeds": torch.ones(1, 10),
        }
        size = {"height": 48, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
        noise = torch.Generator().manual_seed(0)
        made.append(sibling(**embeddings, **size, generator=noise).images)

    def middle(pipe, step, timestep, tensors):
        if step == 2:
            run(draw)
        return {}

    draw()
    with enable(pipe, 0):
        images = pipe(**arguments(1, callback_on_step_end=middle)).images
    assert torch.equal(*made)
    assert torch.equal(images, world.alone(0, 1)[0])
