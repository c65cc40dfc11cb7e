"""TensorBoard for several tasks: the tasks' curves side by side, and the conflicts between them as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from .conflicts import mean_cosines
from .plots import STYLE


if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer

__all__ = ["MultiTaskTensorBoardCallback"]


class MultiTaskTensorBoardCallback(TensorBoardCallback):
    """
    The TensorBoard callback of transformers with tags that group: `loss/{task}`, `weight/{task}`, `grad_norm/{task}` and
    `cosine/{one}/{other}` stand in a section of their own each instead of all under `train`, a task's evaluation under
    `eval_{task}`, and the custom scalars show the tasks' curves in one chart per quantity. Where a
    [`~hf_dbmtl.conflicts.ConflictCallback`] measures, every new set of cosines is also drawn as a heat map, `conflicts`.

    `report_to="tensorboard"` brings the stock one: let [`~MultiTaskTensorBoardCallback.replace`] exchange them.

    ```python
    trainer = MultiTaskTrainer(...)
    MultiTaskTensorBoardCallback.replace(trainer)
    ```

    Args:
        tasks (`list[str]`):
            The names of the tasks.
        tb_writer (`SummaryWriter`, *optional*):
            The writer; by default one for the folder that transformers chooses.
    """

    def __init__(self, tasks: list[str], tb_writer: Any = None) -> None:
        super().__init__(tb_writer)
        self.tasks = list(tasks)

    @classmethod
    def replace(cls, trainer: MultiTaskTrainer) -> None:
        """Takes the place of the trainer's [`~transformers.integrations.TensorBoardCallback`], where it has one."""
        stock = trainer.pop_callback(TensorBoardCallback)
        if isinstance(stock, TensorBoardCallback):
            trainer.add_callback(cls(list(trainer.tasks), stock.tb_writer))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.is_world_process_zero and self.tb_writer is not None:
            charts = {
                what: ["Multiline", [f"{what}/{task}" for task in self.tasks]]
                for what in ("loss", "weight", "grad_norm")
            }
            self.tb_writer.add_custom_scalars({"tasks": charts | {"cosine": ["Multiline", [r"cosine/.*"]]}})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        tags = {key: tag for key in logs if (tag := self._tag(key)) is not None}
        # the rest first: it makes the writer where training has not
        rest = {key: value for key, value in logs.items() if key not in tags}
        super().on_log(args, state, control, logs=rest, **kwargs)
        if not state.is_world_process_zero or self.tb_writer is None:
            return
        for key, tag in tags.items():
            self.tb_writer.add_scalar(tag, logs[key], state.global_step)
        if any(key.startswith("cosine/") and key.count("/") == 2 for key in tags):
            self.tb_writer.add_figure("conflicts", _heat_map(logs, self.tasks), state.global_step)
        self.tb_writer.flush()

    def _tag(self, key: str) -> str | None:
        """Where a number of one task goes; `None` for what is not of one task."""
        if "/" in key and not key.startswith(("eval", "train")):
            return key
        owner = max((task for task in self.tasks if key.startswith(f"eval_{task}_")), key=len, default=None)
        return None if owner is None else f"eval_{owner}/{key.removeprefix(f'eval_{owner}_')}"


def _heat_map(record: Mapping[str, Any], tasks: list[str]) -> Any:
    from matplotlib import style
    from matplotlib.figure import Figure

    from .comparison_plots import heat_map

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(1.8 + 0.3 * len(tasks), 1.4 + 0.3 * len(tasks)), layout="constrained")
        axes = figure.subplots()
        figure.colorbar(heat_map(axes, mean_cosines([record], tasks), tasks), ax=axes, shrink=0.8)
        return figure
