"""How the Trainer saves and resumes so that a run can be killed at any moment: only whole checkpoints count."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput, rotate_checkpoints
from transformers.utils import logging

from .buffers import average_buffers
from .manifest import MANIFEST_NAME, UNLISTED, checkpoints, last_whole_checkpoint, what_is_wrong, write_manifest
from .renamed_weights import has_other_names, load_by_other_names
from .trainer_part import TrainerPart


__all__ = ["SavingMixin"]

logger = logging.get_logger(__name__)


class SavingMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that decides which checkpoint is good."""

    _put_off: int | None = None  # the `save_total_limit` that is to hold once the checkpoint being written is whole

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains, as in transformers.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                The folder of a checkpoint, or `True` for the newest whole one in `args.output_dir`: one that a killed
                run left half-written is passed over with a warning.
            trial, ignore_keys_for_eval:
                As in transformers.

        Raises:
            `ValueError`: no whole checkpoint to resume from, or a damaged one.
            `OSError`: an `output_dir` in which checkpoints could not be written.
        """
        if resume_from_checkpoint is not None and resume_from_checkpoint is not False:
            resume_from_checkpoint = self._whole_checkpoint(resume_from_checkpoint)
        self._check_output_folder()
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Of a run that has come to its end there is nothing to do: transformers takes one more step before it looks."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
            return
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_training_stop = True

    def _whole_checkpoint(self, given: str | bool) -> str:
        """The folder to resume from. One process looks, for all."""
        found: list[Any] = [None]
        if self.is_world_process_zero():
            try:
                found = [_newest(str(self.args.output_dir)) if given is True else _checked(str(given))]
            except ValueError as error:
                found = [error]
        (folder,) = broadcast_object_list(found) if self.args.world_size > 1 else found
        if isinstance(folder, Exception):
            raise folder
        return folder

    def _check_output_folder(self) -> None:
        """A folder that cannot be written to is to show before the first step, not at the first checkpoint."""
        if self.args.save_strategy == SaveStrategy.NO or not self.args.should_save:
            return
        try:
            os.makedirs(str(self.args.output_dir), exist_ok=True)
            with tempfile.TemporaryFile(dir=self.args.output_dir):
                pass
        except OSError as error:
            raise OSError(
                error.errno,
                f"Checkpoints cannot be written into `output_dir` ({error.strerror}). Choose another, or train without "
                "them by `save_strategy='no'`",
                self.args.output_dir,
            ) from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves as in transformers, then declares the checkpoint whole, and only then lets older ones go."""
        average_buffers(self.model)
        run_dir = self._get_output_dir(trial=trial)
        folder = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        self._check_parameters(folder)
        if self.args.should_save:
            _clear(folder)  # of a run that was killed while it wrote this one, or is run again
        self.accelerator.wait_for_everyone()
        try:
            with self._limited(None) as self._put_off:
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_manifest(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                _clear(folder)
            if str(error).startswith("DataLoader worker"):  # torch tells its death wherever the process happens to be
                raise
            raise _given_up(folder, run_dir, error) from error
        finally:
            self._put_off = None
        if self.args.should_save and self.args.save_total_limit:
            best = self.state.best_model_checkpoint
            self._remove_unfinished(run_dir, {folder, best})
            rotate_checkpoints(run_dir, self.args.save_total_limit, best, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_renamed(resume_from_checkpoint, self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_renamed(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    def _load_renamed(self, folder: str | None, model: Any) -> bool:
        """Loads what the stock Trainer would pass over for its names, if the checkpoint has such."""
        if folder is None or self.is_fsdp_enabled or not has_other_names(folder, model):
            return False
        load_by_other_names(folder, model)
        return True

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with self._limited(self._put_off or self.args.save_total_limit):  # the arguments are written as they were given
            super()._save(output_dir, state_dict)

    @contextlib.contextmanager
    def _limited(self, limit: int | None) -> Iterator[int | None]:
        """Another `save_total_limit`: the stock Trainer would delete older checkpoints before the new one counts."""
        given, self.args.save_total_limit = self.args.save_total_limit, limit
        try:
            yield given
        finally:
            self.args.save_total_limit = given

    def _check_parameters(self, folder: str) -> None:
        parameters = self.model.named_parameters() if self.model is not None else ()
        for name, parameter in parameters:
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"The parameter '{name}' is not finite at step {self.state.global_step}: '{folder}' is not written. "
                    "Resume from the checkpoint before it (`resume_from_checkpoint=True`), with a lower learning rate."
                )

    def _remove_unfinished(self, run_dir: str, kept: set[str | None]) -> None:
        """What killed runs left half-written counts for nothing, and must not push whole checkpoints out."""
        for folder in checkpoints(run_dir):
            if folder not in kept and not os.path.isfile(os.path.join(folder, MANIFEST_NAME)):
                shutil.rmtree(folder, ignore_errors=True)


def _given_up(folder: str, run_dir: str, error: Exception) -> OSError:
    whole, _ = last_whole_checkpoint(run_dir)
    remedy = "Make room or mend the folder, and start anew"
    if whole is not None:
        remedy = f"'{whole}' is whole: make room or mend the folder, and resume with `resume_from_checkpoint=True`"
    return OSError(getattr(error, "errno", None), f"The checkpoint could not be written ({error}). {remedy}", folder)


def _newest(output_dir: str) -> str:
    folder, broken = last_whole_checkpoint(output_dir)
    for one, reason in broken.items():
        logger.warning(f"'{one}' is passed over: {reason}.")
    if folder is None:
        listed = "; ".join(f"'{one}': {reason}" for one, reason in broken.items()) or "it holds none"
        raise ValueError(
            f"There is no whole checkpoint in `output_dir` '{output_dir}' to resume from ({listed}). Start anew without "
            "`resume_from_checkpoint`, or name the folder of a checkpoint."
        )
    return folder


def _checked(folder: str) -> str:
    reason = what_is_wrong(folder)
    if reason == UNLISTED:
        logger.warning(f"Whether '{folder}' is whole cannot be told: {reason}.")
    elif reason is not None:
        raise ValueError(
            f"The checkpoint '{folder}' is damaged: {reason}. Resume from another: `resume_from_checkpoint=True` takes the "
            f"newest whole one. (If its files were changed on purpose, delete its {MANIFEST_NAME}.)"
        )
    return folder


def _clear(folder: str) -> None:
    """Removes what is left of a checkpoint, first of all what says that it is whole."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, MANIFEST_NAME))
    if os.path.isdir(folder) and not os.path.islink(folder):
        shutil.rmtree(folder, ignore_errors=True)
