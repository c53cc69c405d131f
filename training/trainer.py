"""The accelerate loop. It knows neither what an objective minimises nor which model is behind it."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from newtonrewards.core.errors import Interrupted, NewtonError
from newtonrewards.core.run import append_jsonl, read_jsonl, write_jsonl
from newtonrewards.training import checkpoint
from newtonrewards.training.batches import Batches
from newtonrewards.training.objectives import Objective, ObjectiveOutput
from newtonrewards.training.optimisers import learning_rate, optimisers
from newtonrewards.training.recipe import RewardStage, Stage, TrainRecipe

SENTINEL_WINDOW = 20
# Ctrl-C; what launchers and schedulers send before they kill; what a SLURM job sends its ranks before its time is up.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Trainer:
    """Runs one stage of a recipe: steps, metrics, averaged weights, checkpoints, resume.

    Args:
        recipe: the whole recipe; `stage` is the number of the stage to run.
        objective: the module that the launcher wraps.
        batches: clips for each step.
        accelerator: of 1 or N processes.
        run: run folder.
        first_step: how many steps of the run came before this stage.
    """

    def __init__(
        self,
        recipe: TrainRecipe,
        stage: int,
        objective: Objective,
        batches: Batches,
        accelerator: Accelerator,
        run: Path,
        first_step: int,
    ) -> None:
        self.recipe, self.stage_number, self.batches, self.accelerator, self.run = (
            recipe,
            stage,
            batches,
            accelerator,
            run,
        )
        self.stage: Stage = recipe.stages[stage]
        self.first_step, self.step = first_step, first_step
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        prepared = accelerator.prepare(objective, *optimisers(objective, self.stage.optimiser))
        self.objective, self.optimisers = prepared[0], prepared[1:]
        self.ema = (
            None if recipe.ema is None else EMAModel(self.parameters, decay=recipe.ema, use_ema_warmup=True, power=0.75)
        )
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        self._interrupted = False
        self._recent: deque[dict[str, float]] = deque(maxlen=SENTINEL_WINDOW)

    @property
    def last_step(self) -> int:
        return self.first_step + self.stage.steps

    def fit(self) -> None:
        """Run to the end of the stage.

        Raises:
            Interrupted: after a signal, once a checkpoint is written.
            NewtonError: a sentinel left its limits, or the loss isn't finite.
        """
        with self._signals(), self._bar() as bar:
            while self.step < self.last_step:
                logs = self.train_step()
                self.step += 1
                self._record(logs, bar)
                stopped = self._stopped()
                if self.step % self.recipe.checkpoint.every == 0 or self.step == self.last_step or stopped:
                    self.save()
                if stopped:
                    raise Interrupted(
                        f"stopped after step {self.step}", where=self.run, fix="The same command goes on from there."
                    )

    def train_step(self) -> dict[str, float]:
        """One optimiser step over the global batch; returns its means and norms."""
        started = time.perf_counter()
        stage, config = self.stage, self.stage.optimiser
        batch = self.batches.at(self.step, stage.batch_size).to(self.accelerator.device)
        lr = learning_rate(config, self.step - self.first_step, stage.steps)
        parts = []
        size = len(batch) // stage.accumulate
        for part in range(stage.accumulate):
            last = part == stage.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                output: ObjectiveOutput = self.objective(
                    batch.part(part * size, (part + 1) * size), self.step - self.first_step
                )
                self.accelerator.backward(output.loss.mean() / stage.accumulate)
            parts.append(output)
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.grad_clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return {**self._means(parts), "grad_norm": float(norm), "lr": lr, "seconds": time.perf_counter() - started}

    def save(self) -> None:
        checkpoint.save(self.accelerator, self.run, self.recipe, self.step, self.stage_number)

    def restore(self, state: checkpoint.State) -> None:
        """Go on from a checkpoint of this stage; rows of metrics written after it are dropped."""
        self.accelerator.load_state(str(state.path))
        self.step = state.step
        metrics = self.run / "metrics.jsonl"
        if self.accelerator.is_main_process and metrics.exists():
            kept = [row for row in read_jsonl(metrics) if row["step"] <= state.step]
            write_jsonl(metrics, kept)

    def _means(self, parts: list[ObjectiveOutput]) -> dict[str, float]:
        values = {"loss": torch.cat([part.loss.detach() for part in parts])}
        values |= {name: torch.cat([part.logs[name] for part in parts]) for name in parts[0].logs}
        return {name: _nanmean(self.accelerator.gather(value)) for name, value in values.items()}

    def _record(self, logs: dict[str, float], bar: tqdm[Any]) -> None:
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise NewtonError(
                f"loss {logs['loss']} or gradient norm {logs['grad_norm']} is not finite",
                where=f"{self.run}, step {self.step}",
                fix="Lower the learning rate; the last checkpoint is good.",
            )
        self.accelerator.log({k: v for k, v in logs.items() if math.isfinite(v)}, step=self.step)
        if self.accelerator.is_main_process:
            append_jsonl(self.run / "metrics.jsonl", {"step": self.step, "stage": self.stage.objective, **logs})
        shown = {"loss": f"{logs['loss']:.4g}"} | ({"reward": f"{logs['reward']:.4g}"} if "reward" in logs else {})
        bar.set_postfix(shown)
        bar.update()
        self._check_sentinels(logs)

    def _check_sentinels(self, logs: dict[str, float]) -> None:
        if not isinstance(self.stage, RewardStage):
            return
        self._recent.append(logs)
        if len(self._recent) < SENTINEL_WINDOW:
            return
        for name, (low, high) in self.stage.stop_if.items():
            mean = sum(row[f"sentinel/{name}"] for row in self._recent) / SENTINEL_WINDOW
            if not low <= mean <= high:
                self.save()
                raise NewtonError(
                    f"sentinel '{name}' is {mean:.3g} over {SENTINEL_WINDOW} steps, outside [{low}, {high}]",
                    where=f"{self.run}, step {self.step}",
                    fix="The model games the reward: lower its weight or raise anchor_weight.",
                )

    def _stopped(self) -> bool:
        """Whether any process was asked to stop. Not all hear of it in the same step, but all must end after one."""
        if self._interrupted:
            self.accelerator.set_trigger()
        return bool(self.accelerator.check_trigger())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first ends the step and saves; a second Ctrl-C ends at once. Schedulers send theirs several times."""

        def handler(number: int, frame: FrameType | None) -> None:
            if self._interrupted and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._interrupted = True

        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

    def _bar(self) -> tqdm[Any]:
        return tqdm(
            total=self.stage.steps,
            initial=self.step - self.first_step,
            desc=self.stage.objective,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )


def _nanmean(values: Tensor) -> float:
    measured = values[~values.isnan()]
    return measured.mean().item() if len(measured) else math.nan
