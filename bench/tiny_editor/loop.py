"""Train with a loop that can be resumed, with averaged weights and a plot of the loss."""

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

Batch = tuple[torch.Tensor, ...]


_LOG_EVERY = 20  # steps between two readings of the loss from the device
_MAX_SAVE_SECONDS = 30.0  # between two checkpoints of a run with a deadline


def trapezoid(step: int, warmup: int, left: float, decay: float, floor: float = 0.02) -> float:
    """Return the share of the peak learning rate: linear rise, plateau, linear fall.

    Args:
        step: number of steps taken.
        warmup: length of the rise in steps.
        left: what is left of the run.
        decay: length of the fall, in the unit of `left`: steps or seconds.
        floor: share at the end of the fall.
    """
    rise = (step + 1) / max(1, warmup)
    fall = floor + (1 - floor) * max(0.0, left) / max(1e-9, decay)
    return min(1.0, rise, fall)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in the yielded list; a second one has its usual effect.

    In another thread than the main one, signals keep their usual effect.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _frame: object) -> None:
        received.append(number)
        restore()

    for number in handlers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    temporary.replace(path)


class Loop:
    """A training loop. A resumed run needs nothing but its checkpoint, ``folder/NAME.pt``.

    Args:
        name: stage name, used for files and the progress bar.
        model: module whose trainable parameters are optimised and averaged.
        optimizers: one or more; each group's initial learning rate is its peak.
        loss: (batch, generator) -> scalar; the generator is seeded by the step.
        batch: (step) -> tensors on the training device; must depend on the step only.
        folder: where checkpoint, log and plot are written.
        average: decay per step of the running average of the weights.
        warmup: steps of rising learning rate.
        decay: steps of falling learning rate in a run that is planned by steps.
        decay_share: share of the time with falling learning rate in a run with a deadline.
        save_every: steps between two checkpoints in a run without a deadline.
        seed: seeds the generators that `loss` gets.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        loss: Callable[[Batch, torch.Generator], torch.Tensor],
        batch: Callable[[int], Batch],
        folder: Path,
        *,
        average: float = 0.99,
        warmup: int = 50,
        decay: int = 500,
        decay_share: float = 0.5,
        save_every: int = 100,
        seed: int = 0,
    ) -> None:
        self.name, self.model, self.optimizers = name, model, list(optimizers)
        self.loss, self.batch, self.folder = loss, batch, folder
        self.average, self.warmup = average, warmup
        self.decay, self.decay_share = decay, decay_share
        self.save_every, self.seed = save_every, seed
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averaged = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.step, self.seconds, self.log = 0, 0.0, []
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / f"{name}.pt"

    def resume(self) -> None:
        """Continue from the checkpoint in the folder, if there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, value in state["averaged"].items():
            self.averaged[name].copy_(value)
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "averaged": self.averaged,
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
        }
        write_atomically(self.checkpoint, lambda path: torch.save(state, path))
        log = {"step": self.step, "seconds": round(self.seconds, 1), "loss": self.log}
        text = json.dumps(log)
        write_atomically(self.folder / f"{self.name}.json", lambda path: path.write_text(text))
        self.plot()

    def load_average(self) -> None:
        """Put the averaged weights into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.averaged[name])

    def run(self, steps: int, until: int | None = None, deadline: float | None = None) -> None:
        """Train to step `until` (or `steps`) of a schedule that spans `steps` steps.

        A `deadline` on `time.monotonic`'s clock replaces `steps`. Training then ends before a step
        that might end too late. The rate falls over the last `decay_share` of the training time,
        in which earlier runs (from the checkpoint) are included. A checkpoint is written every 30 s
        or five times in the run, whichever is more often.

        SIGINT and SIGTERM write a checkpoint and end the process.
        """
        last = until if deadline else min(steps, until or steps)
        self.model.train()
        bar = tqdm(total=last, initial=self.step, desc=self.name, unit="step", mininterval=5)
        losses: list[torch.Tensor] = []
        durations: deque[float] = deque(maxlen=5)  # short, to forget the first step, which compiles
        saved_step, saved_at = self.step, time.monotonic()
        every = min(_MAX_SAVE_SECONDS, (deadline - saved_at) / 5) if deadline else 0.0
        with noted_signals() as signals:
            while last is None or self.step < last:
                now = time.monotonic()
                if signals or (deadline and now + max(durations, default=0.0) > deadline):
                    break
                losses.append(self._step(self._share(steps, deadline and deadline - now)))
                bar.update()
                if self.step % _LOG_EVERY == 0:
                    self._note(losses)
                    bar.set_postfix(loss=f"{self.log[-1][1]:.4f}")
                durations.append(time.monotonic() - now)
                self.seconds += durations[-1]
                if deadline:
                    is_due = time.monotonic() - saved_at > every
                else:
                    is_due = self.step % self.save_every == 0
                if is_due:
                    self._note(losses)
                    self.save()
                    saved_step, saved_at = self.step, time.monotonic()
            if self.step != saved_step:
                self._note(losses)
                self.save()
        bar.close()
        if signals:
            raise SystemExit(128 + signals[0])

    def _share(self, steps: int, left: float | None) -> float:
        """Return the share of the peak rate: by the `left` seconds, or by the steps if None."""
        if left is None:
            return trapezoid(self.step, self.warmup, steps - self.step, self.decay)
        return trapezoid(self.step, self.warmup, left, self.decay_share * (self.seconds + left))

    def _note(self, losses: list[torch.Tensor]) -> None:
        """Move the mean of the losses to the log; this waits for the device."""
        if losses:
            self.log.append([self.step, torch.stack(losses).mean().item()])
            losses.clear()

    def _step(self, share: float) -> torch.Tensor:
        """Take one step at `share` of the peak rate; return the loss without waiting for it."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        batch = self.batch(self.step)
        generator = torch.Generator(batch[0].device).manual_seed(self.seed * 1_000_003 + self.step)
        loss = self.loss(batch, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.average, self.step / (self.step + 10))
        with torch.no_grad():
            averaged = list(self.averaged.values())
            torch._foreach_lerp_(averaged, list(self.parameters.values()), 1 - decay)
        return loss.detach()

    def plot(self) -> None:
        """Write the loss curve to ``folder/NAME.png``."""
        if not self.log:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 3.5))
        axes.plot(*zip(*self.log, strict=True), linewidth=1)
        axes.set(xlabel="step", ylabel="loss", yscale="log", title=self.name)
        figure.tight_layout()
        figure.savefig(self.folder / f"{self.name}.png", dpi=110)
        pyplot.close(figure)
