"""What goes on beside the steps of a training: a bar, a line for each epoch, and Ctrl-C."""

import signal
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback

from .console import progress, say

__all__ = ["CHOICE", "StopOnInterrupt", "TiesByLossTrainer", "Watch"]

CHOICE = "eval_choice"


class TiesByLossTrainer(Trainer):
    """`Trainer` whose best epoch is that of the best metric, and of equal ones that of the lowest loss.

    On few validation samples many epochs have the same score, and `Trainer` would keep the first, least trained one.

    Attributes:
        metric: Name of the metric.
        sign: 1 if more is better, else -1.
    """

    metric: str
    sign: int

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        metrics = output.metrics or {}
        metrics[CHOICE] = self.sign * metrics[f"eval_{self.metric}"] - 1e-6 * metrics["eval_loss"]
        return output


class Watch(TrainerCallback):
    """A bar over all steps with the time that is left, and a line for each epoch."""

    def __init__(self, metric: str) -> None:
        self.metric, self.bar, self.loss = metric, progress(), float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.start()
        self.task = self.bar.add_task("Training", total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        found = (metrics or {})[f"eval_{self.metric}"]
        say(
            f"epoch {state.epoch:.0f} of {state.num_train_epochs}: loss {self.loss:.4f}, "
            f"validation {self.metric} {found:.4f}"
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.stop()


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C saves a checkpoint after the step that is running, and stops; a second one stops at once.

    Attributes:
        asked: Whether it came.
    """

    asked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.previous: Any = signal.signal(signal.SIGINT, self._ask)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("Stopping after this step; Ctrl-C again stops at once, at the last checkpoint.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_training_stop and self.asked:  # an epoch that is cut short is not evaluated
            control.should_evaluate = control.should_save = False
