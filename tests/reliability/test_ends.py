"""A full disk, a folder that is read-only, data that vanish, a worker that dies, a machine taken away: each a clear end."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch
from helpers import arguments, tiny_data, tiny_model
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer, PreemptionCallback
from hf_dbmtl.manifest import last_whole_checkpoint


SAVING = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "max_steps": 4}


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.action()


def make(folder: Path, data: dict | None = None, **options) -> MultiTaskTrainer:
    callbacks = options.pop("callbacks", None)
    return MultiTaskTrainer(
        model=tiny_model(dropout=0.1, dtype=torch.float32),
        args=arguments(folder, **{**SAVING, **options}),
        train_dataset=data or tiny_data(),
        eval_dataset=tiny_data(rows=8),
        callbacks=callbacks,
    )


def weights(trainer: MultiTaskTrainer) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in trainer.model.state_dict().values()])


@pytest.fixture
def no_room():
    """Files can grow to a few kilobytes only, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(tmp_path: Path, no_room) -> None:
    trainer = make(tmp_path, callbacks=[At(3, no_room)])
    with pytest.raises(OSError, match="could not be written .*checkpoint-2' is whole: make room"):
        trainer.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    alone = make(tmp_path / "alone")
    alone.train()
    assert torch.equal(weights(resumed), weights(alone))


READ_ONLY = """
    import os, sys
    sys.path.insert(0, {tests!r})
    from helpers import arguments, tiny_data, tiny_model
    from hf_dbmtl import MultiTaskTrainer
    trainers = [
        MultiTaskTrainer(tiny_model(), arguments({folder!r}, save_strategy=strategy), train_dataset=tiny_data())
        for strategy in ("no", "epoch")
    ]
    if os.getuid() == 0:
        os.setuid(65534)  # root may write everywhere
    for trainer in trainers:  # the first is to write nothing, and nothing is refused
        print("steps", trainer.train().global_step)
"""


def test_a_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as parent:  # pytest's own are closed to other users
        folder = Path(parent, "out")
        folder.mkdir()
        for path, mode in ((folder, 0o555), (Path(parent), 0o755)):
            path.chmod(mode)
        script = textwrap.dedent(READ_ONLY).format(tests=str(Path(__file__).parents[1]), folder=str(folder))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("steps 3") == 1, done.stderr[-2000:]
    assert done.stdout.count("'loss'") == 3  # those of the first: the second ended before its first step
    assert "Checkpoints cannot be written into `output_dir` (Permission denied)" in done.stderr


class Files(torch.utils.data.Dataset):
    """Rows in files of their own."""

    def __init__(self, folder: Path, rows) -> None:
        folder.mkdir()
        self.paths = [folder / f"{i}.pt" for i in range(len(rows))]
        for path, row in zip(self.paths, rows):
            torch.save(dict(row), path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        return torch.load(self.paths[index], weights_only=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_of_the_dataset_vanishes(workers: int, tmp_path: Path) -> None:
    data = tiny_data()
    data["score"] = Files(tmp_path / "rows", data["score"])
    vanish = At(2, lambda: [path.unlink() for path in (tmp_path / "rows").iterdir()])
    options = {"num_train_epochs": 9, "max_steps": 9, "dataloader_num_workers": workers}
    trainer = make(tmp_path / "out", data, callbacks=[vanish], **options)
    with pytest.raises(OSError, match=r"Task 'score': .*rows.*cannot be read.*No such file"):
        trainer.train()
    newest, broken = last_whole_checkpoint(tmp_path / "out")
    assert newest is not None and not broken


class Deadly(torch.utils.data.Dataset):
    """Its rows end the process that reads them: out of memory, say."""

    def __init__(self, rows, process: int) -> None:
        self.rows, self.process, self.reads = rows, process, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        self.reads += 1
        if os.getpid() != self.process and self.reads > 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rows[index]


def test_a_worker_dies(tmp_path: Path) -> None:
    data = tiny_data(rows=96)
    data["score"] = Deadly(data["score"], os.getpid())
    trainer = make(tmp_path, data, max_steps=12, dataloader_num_workers=1, dataloader_prefetch_factor=1)
    with pytest.raises(RuntimeError, match="DataLoader worker .* (is killed by signal|exited unexpectedly)"):
        trainer.train()
    newest, broken = last_whole_checkpoint(tmp_path)
    assert newest is not None and not broken


@pytest.mark.parametrize("during", ["a step", "an evaluation", "a save"])
def test_sigterm_saves_and_stops(during: str, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def told(function):
        def run(*args, **kwargs):
            if trainer.state.global_step == (2 if during == "a save" else 1):
                signal.raise_signal(signal.SIGTERM)
            return function(*args, **kwargs)

        return run

    options = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(tmp_path / "told", callbacks=[PreemptionCallback()], **options)
    name = {"a step": "training_step", "an evaluation": "prediction_step", "a save": "_save_checkpoint"}[during]
    setattr(trainer, name, told(getattr(trainer, name)))
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.state.global_step == (1 if during == "an evaluation" else 2)
    newest, broken = last_whole_checkpoint(tmp_path / "told")
    assert newest.endswith(f"checkpoint-{trainer.state.global_step}") and not broken
    resumed = make(tmp_path / "told", callbacks=[PreemptionCallback()], **options)
    resumed.train(resume_from_checkpoint=True)
    alone = make(tmp_path / "alone", **options)
    alone.train()
    assert torch.equal(weights(resumed), weights(alone))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_without_the_callback_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    """The control."""
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from helpers import arguments, tiny_data, tiny_model
        from hf_dbmtl import MultiTaskTrainer
        trainer = MultiTaskTrainer(tiny_model(), arguments({str(tmp_path)!r}), train_dataset=tiny_data())
        trainer.training_step = lambda *given: os.kill(os.getpid(), signal.SIGTERM)
        trainer.train()
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGTERM and not list(tmp_path.glob("checkpoint-*"))
