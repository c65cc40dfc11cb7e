"""What the Trainer puts beside the weights: the card with its picture, and on the Hub the code that loads them."""

from __future__ import annotations

import os
import shutil
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer_utils import HubStrategy

from .card_from_trainer import content_from_trainer
from .model_card import create_model_card
from .plots import logged_tasks, plot_training
from .trainer_part import TrainerPart


__all__ = ["HubMixin"]

if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer

PICTURE = "training.png"


class HubMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that writes the card and completes what is pushed."""

    def create_model_card(  # type: ignore[override]  # fields of the card, in place of those of transformers
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | list[str] | None = None,
        **overrides: Any,
    ) -> None:
        """
        Writes the model card into `output_dir`, and beside it the picture of the training so far. The arguments are those
        of transformers where they have a meaning for several tasks; further ones are fields of
        [`~hf_dbmtl.model_card.ModelCardContent`].
        """
        if not self.is_world_process_zero():
            return
        given = {"language": language, "license": license, "model_name": model_name, "base_model": finetuned_from}
        given |= {"tags": [tags] if isinstance(tags, str) else tags}
        given |= {"datasets": [dataset] if isinstance(dataset, str) else dataset}
        known = {key: value for key, value in given.items() if value is not None}
        folder = Path(self.args.output_dir or "")
        if "picture" not in overrides and logged_tasks(self.state.log_history):
            plot_training(self.state.log_history, folder / PICTURE)
        card = create_model_card(content_from_trainer(cast("MultiTaskTrainer", self), **known, **overrides))
        card.save(folder / "README.md")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """
        Pushes as in transformers, which takes the configuration, the weights and the tokenizer: with them go the code that
        the configuration refers to, without which the weights could not be loaded, and the card so far.
        """
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            for path in glob(os.path.join(escape(checkpoint_folder), "*.py")):
                shutil.copy(path, self.args.output_dir or "")
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)
