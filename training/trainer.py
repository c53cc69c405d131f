"""The accelerate loop. It knows neither what an objective minimises nor which model is behind it."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from newtonrewards.core.clip import ClipBatch
from newtonrewards.core.clock import Stopwatch
from newtonrewards.core.errors import Interrupted, NewtonError
from newtonrewards.core.run import append_jsonl, read_jsonl, write_jsonl
from newtonrewards.training import checkpoint, shards
from newtonrewards.training.batches import Batches
from newtonrewards.training.guard import Alarm, Guard
from newtonrewards.training.methods.base import Objective, ObjectiveOutput
from newtonrewards.training.methods.registry import Stage
from newtonrewards.training.methods.rewarded import RewardFailure
from newtonrewards.training.optimisers import learning_rate, optimisers
from newtonrewards.training.recipe import TrainRecipe
from newtonrewards.training.view import generate_samples, picture, write_samples

# Steps whose mean duration tells the time left.
PACE_WINDOW = 20
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
        self.plain, self.guard = objective, Guard(objective.rules)
        self.plain.bf16 = recipe.precision == "bf16"
        prepared = accelerator.prepare(objective, *optimisers(objective, self.stage.optimiser))
        self.objective, self.optimisers = prepared[0], prepared[1:]
        # only now: a strategy may have put others in the parameters' place
        self.trained = shards.trained(self.plain.trained)
        self.ema = None if recipe.ema is None else averaged(self.trained, recipe.ema)
        self._interrupted = False
        self._pace: deque[float] = deque(maxlen=PACE_WINDOW)

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
                alarms = self._record(logs, bar)
                stop = next((alarm for alarm in alarms if alarm.action == "stop"), None)
                stopped = self._stopped()
                last = stop is not None or stopped or self.step == self.last_step
                if last or self.step % self.recipe.checkpoint.every == 0:
                    self.save()
                if self.recipe.samples.due(self.step):
                    self.show()
                if stop is not None:
                    raise NewtonError(
                        stop.reason,
                        where=f"{self.run}, step {self.step}",
                        fix="The model games the reward: lower its weight or raise anchor_weight.",
                    )
                if stopped:
                    raise Interrupted(
                        f"stopped after step {self.step}", where=self.run, fix="The same command goes on from there."
                    )

    def train_step(self) -> dict[str, float]:
        """One step over the global batch, of one or more optimiser updates; returns its means and norms."""
        watch = Stopwatch()
        stage, step = self.stage, self.step - self.first_step
        batch = self.batches.at(self.step, stage.batch_size).to(self.accelerator.device)
        lr = learning_rate(stage.optimiser, step, stage.steps)
        self.plain.reward_scale = self.guard.scale
        for optimiser in self.optimisers:  # now: DeepSpeed moves at the end of the backward pass
            for group in optimiser.param_groups:
                group["lr"] = lr
        outputs: list[ObjectiveOutput] = []
        norms = []
        try:
            with torch.no_grad():
                updates = self.objective(batch, step, prepare=True)
            for works in updates:
                for number, work in enumerate(works):
                    with self._part(last=number == len(works) - 1):
                        output = self.objective(work, step)
                        self.accelerator.backward(output.loss.mean() / len(works))
                    outputs.append(output)
                norms.append(self._update())
        except RewardFailure as error:
            name = self.batches.name(error.sample)
            raise NewtonError(error.what, where=f"{self.run}, step {self.step + 1}, {name}", fix=error.fix) from error
        return {**self._means(outputs), "grad_norm": sum(norms) / len(norms), "lr": lr, **watch.spent()}

    def _part(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """One part of an update's batch; only the last lets the processes exchange gradients, and DeepSpeed move."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        if last or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self.accelerator.no_sync(self.objective)
        return context

    def _update(self) -> float:
        """Let the optimisers move once; returns the gradient's norm before it was clipped."""
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), self.stage.optimiser.grad_clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if self.ema is not None:
            self.ema.step([shards.averageable(p) for p in self.trained.values()])
        return float(shards.whole(norm) if isinstance(norm, Tensor) else norm)

    def show(self) -> None:
        """Clips of the first samples, as files under `samples/` and as a picture for the trackers."""
        config = self.recipe.samples
        clips = [self.batches.dataset[index] for index in range(min(config.clips, len(self.batches.dataset)))]
        batch = ClipBatch.stack(clips).to(self.accelerator.device)
        with torch.no_grad():
            frames = self.objective(
                function=lambda: generate_samples(self.plain.model, batch, config, self.recipe.seed)
            )
        if not self.accelerator.is_main_process:
            return
        write_samples(self.run / "samples", self.step, clips, frames, self.plain.model.spec.playback_fps)
        image = picture(frames)[None].numpy()
        for tracker in self.accelerator.trackers:
            if isinstance(tracker, TensorBoardTracker):
                tracker.log_images({"samples": image}, step=self.step)

    def save(self) -> None:
        ema = {} if self.ema is None else {"ema_step": self.ema.optimization_step}
        content = {"step": self.step, "stage": self.stage_number, "guard": self.guard.state(), **ema}
        checkpoint.save(self.accelerator, self.run, self.recipe, content, self._tensors())

    def _tensors(self) -> Iterator[tuple[str, Iterator[tuple[str, Tensor]]]]:
        """Everything that a resume needs, file by file and whole, whatever the strategy; all processes must go through
        it. The file `weights` alone is enough to hand the weights on."""
        yield checkpoint.WEIGHTS, ((name, shards.whole(p)) for name, p in self.trained.items())
        if self.ema is not None:
            shadows = dict(zip(self.trained, self.ema.shadow_params, strict=True))
            yield checkpoint.EMA, ((name, shards.whole(value)) for name, value in shadows.items())
        for key in shards.optimiser_keys(self.optimisers):
            yield checkpoint.OPTIMISER + key, shards.optimiser_state(self.optimisers, self.trained, key)

    def restore(self, state: checkpoint.State) -> None:
        """Go on from a checkpoint of this stage, whose weights the objective already has; rows of metrics written after
        it are dropped."""
        shards.restore_optimiser(self.optimisers, self.trained, state.optimiser())
        if self.ema is not None:
            values = state.tensors(checkpoint.EMA)
            shadows = zip(self.trained, self.ema.shadow_params, strict=True)
            self.ema.shadow_params = [shards.part_like(shadow, values[name]) for name, shadow in shadows]
            self.ema.optimization_step = state.ema_step
        self.step = state.step
        self.guard.restore(state.guard)
        metrics = self.run / "metrics.jsonl"
        if self.accelerator.is_main_process and metrics.exists():
            kept = [row for row in read_jsonl(metrics) if row["step"] <= state.step]
            write_jsonl(metrics, kept)

    def _means(self, outputs: list[ObjectiveOutput]) -> dict[str, float]:
        values = {"loss": torch.cat([output.loss.detach() for output in outputs])}
        for name in dict.fromkeys(name for output in outputs for name in output.logs):
            values[name] = torch.cat([output.logs[name] for output in outputs if name in output.logs])
        return {name: _nanmean(self.accelerator.gather(value)) for name, value in values.items()}

    def _record(self, logs: dict[str, float], bar: tqdm[Any]) -> list[Alarm]:
        """Write one row of metrics, and show it; returns the sentinels that rang."""
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise NewtonError(
                f"loss {logs['loss']} or gradient norm {logs['grad_norm']} is not finite",
                where=f"{self.run}, step {self.step}",
                fix="Lower the learning rate; the last checkpoint is good.",
            )
        alarms = self.guard.see(logs)
        self._pace.append(logs["seconds"])
        logs["seconds_left"] = sum(self._pace) / len(self._pace) * (self.last_step - self.step)
        if self.plain.rules:
            logs["reward_scale"] = self.guard.scale
        shown = {self._with_unit(name): value for name, value in logs.items() if math.isfinite(value)}
        self.accelerator.log(shown, step=self.step)
        if self.accelerator.is_main_process:
            row: dict[str, Any] = {"step": self.step, "stage": self.stage.objective, **logs}
            append_jsonl(self.run / "metrics.jsonl", row | ({"alarms": [a.reason for a in alarms]} if alarms else {}))
            for alarm in alarms:
                bar.write(f"step {self.step}: {alarm.reason}", file=sys.stderr)
        bar.set_postfix_str(self._postfix(logs))
        bar.update()
        return alarms

    def _with_unit(self, name: str) -> str:
        return f"{name} [{self.plain.units[name]}]" if name in self.plain.units else name

    def _postfix(self, logs: dict[str, float]) -> str:
        """Loss, gradient norm, reward, and the penalties in their units."""
        words = [f"loss {logs['loss']:.4g}", f"gradient {logs['grad_norm']:.3g}"]
        words += [f"reward {logs['reward']:.4g}"] if "reward" in logs else []
        for name, unit in self.plain.units.items():
            if name.startswith("raw/") and name in logs:
                words.append(f"{name.removeprefix('raw/')} {logs[name]:.3g} {unit}")
        return ", ".join(words)

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


def averaged(trained: Mapping[str, nn.Parameter], decay: float) -> EMAModel:
    """Averaged weights that begin as these are."""
    return EMAModel([shards.averageable(p) for p in trained.values()], decay=decay, use_ema_warmup=True, power=0.75)


def _nanmean(values: Tensor) -> float:
    measured = values[~values.isnan()]
    return measured.mean().item() if len(measured) else math.nan
