"""A resumable training loop: seeded batches, trapezoidal rate, averaged weights, plot."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

Batch = tuple[torch.Tensor, ...]


def trapezoid(step: int, steps: int, warmup: int, decay: int, floor: float = 0.02) -> float:
    """Share of the peak learning rate at `step`: linear rise, plateau, linear fall to `floor`."""
    rise = (step + 1) / max(1, warmup)
    fall = floor + (1 - floor) * (steps - step) / max(1, decay)
    return min(1.0, rise, fall)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a neighbouring temporary file, then move it to `path`."""
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    temporary.replace(path)


class Loop:
    """Trains `model`; everything that a resumed run needs lies in ``folder/NAME.pt``.

    Args:
        name: stage name, used for files and the progress bar.
        model: module whose trainable parameters are optimised and averaged.
        optimizers: one or more; each group's peak learning rate is its initial one.
        loss: (batch, generator) -> scalar; the generator is seeded by the step.
        batch: (step) -> tensors on the training device; must depend on the step only.
        folder: where checkpoint, log and plot are written.
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
        save_every: int = 100,
        seed: int = 0,
    ) -> None:
        self.name, self.model, self.optimizers = name, model, list(optimizers)
        self.loss, self.batch, self.folder = loss, batch, folder
        self.average, self.warmup, self.decay = average, warmup, decay
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
        (self.folder / f"{self.name}.json").write_text(json.dumps(log))
        self.plot()

    def load_average(self) -> None:
        """Put the averaged weights into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.averaged[name])

    def run(self, steps: int, until: int | None = None) -> None:
        """Train to step `until` (or `steps`) of a schedule that spans `steps` steps."""
        stop = min(steps, until or steps)
        self.model.train()
        bar = tqdm(total=steps, initial=self.step, desc=self.name, unit="step", mininterval=5)
        recent: list[float] = []
        started = time.monotonic()
        while self.step < stop:
            recent.append(self._step(steps))
            bar.update()
            if self.step % 20 == 0:
                self.log.append([self.step, sum(recent) / len(recent)])
                bar.set_postfix(loss=f"{self.log[-1][1]:.4f}")
                recent = []
            if self.step % self.save_every == 0 or self.step == stop:
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self.save()
        bar.close()

    def _step(self, steps: int) -> float:
        share = trapezoid(self.step, steps, self.warmup, self.decay)
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
        return loss.item()

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
