"""The training loop that both models share: steps, averages, checkpoints, a log."""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from .batches import Batch, LatentBatches, Mix
from .muon import Muon
from .peers import Peers


class Trainee(Protocol):
    """What the loop asks of a model."""

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The loss of one batch."""
        ...


@dataclass(frozen=True)
class Plan:
    """How a training goes; steps count from the very first, across resumptions."""

    steps: int
    decay_steps: int = 3000
    learning_rate: float = 1e-3
    warm_up: int = 200
    batch: int = 32
    halved_first: float = 0.9
    halved_last: float = 0.3
    halved_until: int = 8000
    pairs: float = 0.3
    landscapes: float = 0.26
    other_sizes: float = 0.1
    average: float = 0.9985
    save_every: int = 400
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate's factor: up, level, and down to nothing over the last steps."""
        left = max(0, self.steps - step) / self.decay_steps
        return min(1.0, (step + 1) / self.warm_up, left)

    def mix(self, step: int) -> Mix:
        """What a batch holds: at first more single objects and more at half resolution."""
        share = min(1.0, step / self.halved_until)
        return Mix(
            pairs=0.26 + share * (self.pairs - 0.26),
            landscapes=0.1 + share * (self.landscapes - 0.1),
            halved=self.halved_first + share * (self.halved_last - self.halved_first),
            other_sizes=self.other_sizes,
        )


def optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the hidden layers' matrices, AdamW for embeddings, modulations, ends and vectors."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        ends = ("embed", "conv_in", "conv_out", "proj_out", "shared", "relative_attention")
        hidden = weight.ndim >= 2 and not any(part in name for part in ends)
        modulation = ".norm" in name and "linear" in name
        (matrices if hidden and not modulation else others).append(weight)
    return [
        Muon(matrices, lr=plan.learning_rate),
        torch.optim.AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


class Training:
    """A model in training, and all that a later process needs to take it up again."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        folder: Path,
        device: torch.device,
        peers: Peers | None = None,
    ) -> None:
        """`folder` receives the first peer's `checkpoint.pt`, and every peer's log."""
        self.model, self.plan, self.folder, self.device = model, plan, folder, device
        self.peers = peers or Peers()
        self.optimizers = optimizers(model, plan)
        self.averages = [weight.detach().clone() for weight in model.parameters()]
        self.step = 0
        self.stopping = False
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> None:
        """Take up the folder's checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        names = [name for name, _ in self.model.named_parameters()]
        self.averages = [state["averages"][name].to(self.device) for name in names]
        self.step = state["step"]

    def stop(self, *_signal: object) -> None:
        """End after the step in progress, with a checkpoint."""
        self.stopping = True

    def finish(self, *_signal: object) -> None:
        """Begin the last, slower and slower steps now instead of when the plan has them."""
        self.plan = replace(self.plan, steps=self.step + self.plan.decay_steps)

    def save(self) -> None:
        """Write the checkpoint beside the old one, then over it."""
        names = [name for name, _ in self.model.named_parameters()]
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "averages": dict(zip(names, self.averages, strict=True)),
            "plan": asdict(self.plan),
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def run(self, batches: LatentBatches) -> Iterator[float]:
        """Train to the plan's end, yielding each step's loss.

        Every step draws from its own seeds, so that resuming changes nothing.
        """
        weights = list(self.model.parameters())
        while self.step < self.plan.steps and not self.stopping:
            rng = np.random.default_rng([self.plan.seed, self.step, self.peers.rank])
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            batch = batches.draw(rng, self.plan.mix(self.step))
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                loss = self.model.loss(batch, generator)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.plan.learning_rate * self.plan.rate(self.step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.peers.average(self.step, weights)
            keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, weights, 1 - keep)
            self.step += 1
            saves = self.step % self.plan.save_every == 0 or self.step == self.plan.steps
            if (saves or self.stopping) and self.peers.rank == 0:
                self.save()
            yield loss.item()


def train(training: Training, batches: LatentBatches, log_every: int = 50) -> None:
    """Run to the end, or until asked to terminate, logging the mean loss and the pace."""
    signal.signal(signal.SIGTERM, training.stop)
    signal.signal(signal.SIGUSR1, training.finish)
    began, losses = time.monotonic(), []
    name = "log.jsonl" if training.peers.rank == 0 else f"log-{training.peers.rank}.jsonl"
    with (training.folder / name).open("a") as log:
        for loss in training.run(batches):
            losses.append(loss)
            if training.step % log_every == 0:
                seconds = time.monotonic() - began
                line = {
                    "step": training.step,
                    "loss": round(sum(losses) / len(losses), 5),
                    "seconds_per_step": round(seconds / len(losses), 3),
                }
                log.write(json.dumps(line) + "\n")
                log.flush()
                began, losses = time.monotonic(), []
