"""
Kills a training run with SIGKILL again and again, resumes it each time, and compares its end with a run that was left
alone: weights, optimizer, averages, random numbers and the log, bit for bit. With several processes every second kill takes
all of them, and the others take one, whose peers must then end by themselves.

    python tests/reliability/kill_harness.py --kills 50 [--processes 2 [--fsdp]] [--seed 0] [--output kills.json]
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import torch
from distributed_cases import ShardedTrainer
from helpers import arguments, tiny_data, tiny_model
from launching import free_port
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.trainer_utils import get_last_checkpoint

from hf_dbmtl import MultiTaskTrainer, manifest, saving
from hf_dbmtl.manifest import last_whole_checkpoint, what_is_wrong


PHASES = ("start", "step", "evaluation", "save", "manifest", "rotation")
PHASES_OF_ALL = ("step", "evaluation", "save")  # in the others is the first process alone
LENGTHS = {"step": 0.03, "evaluation": 0.02, "save": 0.01, "manifest": 0.002, "rotation": 0.0005}  # seconds, about


@dataclass
class Outcome:
    """
    What came of a series of kills.

    Attributes:
        kills (`int`): how many runs were killed.
        at (`dict[str, int]`): how many of them in which phase.
        half_written (`int`): how often the newest checkpoint was not whole and one before it was taken.
        from_nothing (`int`): how often no checkpoint was whole yet, and the run began anew.
        steps_again (`int`): the steps that had been done already and were done again.
        survivors (`int`): the processes that were left when one was killed, and ended by themselves.
        equal (`bool`): whether the end is that of a run left alone, bit for bit.
    """

    kills: int = 0
    at: dict[str, int] = field(default_factory=dict)
    half_written: int = 0
    from_nothing: int = 0
    steps_again: int = 0
    survivors: int = 0
    equal: bool = False


class Phase:
    """Where a run is, seen from outside: a number of this process that the other reads."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with open(path, "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 8)

    @property
    def now(self) -> str:
        return PHASES[self._bytes[0]]

    @property
    def step(self) -> int:
        return self._bytes[1]

    def set(self, name: str, step: int | None = None) -> None:
        self._bytes[0] = PHASES.index(name)
        if step is not None:
            self._bytes[1] = step

    def during(self, name: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            before = self.now
            self.set(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.set(before)

        return run


@dataclass(frozen=True)
class Layout:
    """How many processes train, and whether FSDP2 shards the encoder."""

    processes: int = 1
    fsdp: bool = False


def train(folder: Path, steps: int, layout: Layout, phase: Phase | None = None) -> MultiTaskTrainer:
    """Trains with everything that a killed run may be in the middle of, from the last whole checkpoint where there is one."""
    torch.set_num_threads(1)
    args = arguments(
        folder,
        max_steps=steps,
        learning_rate=3e-3,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        ddp_timeout=60,
        fsdp=layout.fsdp,
    )
    data = tiny_data(rows=24, missing=0.2)
    model = tiny_model(dropout=0.1, dtype=torch.float32)
    kind = ShardedTrainer if layout.fsdp else MultiTaskTrainer
    trainer = kind(model=model, args=args, train_dataset=data, eval_dataset=tiny_data(rows=8, seed=50))
    if phase is not None:
        trainer.training_step = counting(phase, trainer)
        trainer.evaluate = phase.during("evaluation", trainer.evaluate)
        trainer._save_checkpoint = phase.during("save", trainer._save_checkpoint)
        saving.write_manifest = phase.during("manifest", manifest.write_manifest)
        saving.rotate_checkpoints = phase.during("rotation", saving.rotate_checkpoints)
        trainer._remove_unfinished = phase.during("rotation", trainer._remove_unfinished)
    whole, broken = last_whole_checkpoint(folder)
    trainer.train(resume_from_checkpoint=True if whole else None)
    return trainer


def counting(phase: Phase, trainer: MultiTaskTrainer) -> Callable:
    step = trainer.training_step

    def run(*args: Any, **kwargs: Any) -> Any:
        phase.set("step", trainer.state.global_step + 1)
        return step(*args, **kwargs)

    return run


def own(value: Tensor) -> Tensor:
    """Of a tensor, what this process holds."""
    return (value.to_local() if isinstance(value, DTensor) else value).cpu().clone()


def end_of(trainer: MultiTaskTrainer) -> dict[str, Any]:
    """Everything by which two ends could differ. Times of day apart, the log is a part of it."""
    tensors = {f"weights {name}": value for name, value in trainer.model.state_dict().items()}
    for i, values in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer {i} {name}": value for name, value in values.items()}
    for task, row in trainer.balancer.memory.rows.items():
        tensors |= {f"average {task} {i}": value for i, value in enumerate(row.tensors) if value is not None}
    tensors["random numbers"] = torch.get_rng_state()
    timed = ("runtime", "per_second")
    log = [
        {key: value for key, value in record.items() if not key.endswith(timed)}
        for record in trainer.state.log_history
        if "train_runtime" not in record
    ]
    tensors = {name: own(value) for name, value in tensors.items()}
    return {"tensors": tensors, "log": log, "best": trainer.state.best_global_step, "steps": trainer.balancer.steps}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Where two ends differ, bit for bit."""
    names = a["tensors"].keys() | b["tensors"].keys()
    both = ((name, a["tensors"].get(name), b["tensors"].get(name)) for name in sorted(names))
    found = [name for name, one, other in both if one is None or other is None or not torch.equal(one, other)]
    return [*found, *(key for key in ("log", "best", "steps") if a[key] != b[key])]


def fork(function: Callable[[], None], log: Path) -> int:
    """A process of its own without the seconds that the imports take."""
    child = os.fork()
    if child:
        return child
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def start(function: Callable[[int], Any], layout: Layout, log: Path) -> list[int]:
    """Forks the processes of a run, each told its place in the group."""
    common = {"WORLD_SIZE": str(layout.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def run(rank: int) -> None:
        if layout.processes > 1:
            os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="true")
        function(rank)

    return [fork(partial(run, rank), log) for rank in range(layout.processes)]


def finish(
    folder: Path, steps: int, layout: Layout, log: Path, phases: list[Phase] | None = None
) -> list[dict[str, Any]]:
    """Trains to the end in processes of its own, and returns what each came to."""
    paths = [folder.parent / f"{folder.name}-end-{rank}.pt" for rank in range(layout.processes)]

    def run(rank: int) -> None:
        torch.save(end_of(train(folder, steps, layout, phases and phases[rank])), paths[rank])

    for child in start(run, layout, log):
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"A run ended by itself, with status {status}:\n{log.read_text()[-4000:]}")
    return [torch.load(path, weights_only=True) for path in paths]


def ended(children: list[int], seconds: float) -> list[int]:
    """Waits for processes to end by themselves; returns those that do not."""
    deadline = time.monotonic() + seconds
    while children and time.monotonic() < deadline:
        children = [child for child in children if not os.waitpid(child, os.WNOHANG)[0]]
        time.sleep(0.001)
    return children


def kill(
    folder: Path, steps: int, layout: Layout, phases: list[Phase], log: Path, target: str, chance: random.Random
) -> tuple[str, int] | None:
    """
    Starts a run and kills it while it is in a phase, after a while. Returns the phase that it was in and how many
    processes were left to end by themselves; `None` where the run came to its end first.
    """
    for phase in phases:
        phase.set("start", 0)
    children = start(lambda rank: train(folder, steps, layout, phases[rank]), layout, log)
    steps_first = chance.randrange(1, 5)  # more than are between two checkpoints, so that the run gets on
    several = layout.processes > 1
    rank = chance.randrange(layout.processes) if several and target in PHASES_OF_ALL else 0
    phase, alone = phases[rank], several and chance.random() < 0.5
    first = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        left = [child for child in children if not os.waitpid(child, os.WNOHANG)[0]]
        if left != children:
            ended(left, 60)
            return None
        first = phase.step if first is None and phase.step else first
        if first is not None and phase.step >= first + steps_first and phase.now == target:
            time.sleep(chance.random() * LENGTHS[target])
            break
        time.sleep(0.0001)
    os.kill(children[rank], signal.SIGKILL)
    now, others = phase.now, [child for child in children if child != children[rank]]
    os.waitpid(children[rank], 0)
    if alone and (waiting := ended(others, 120)):
        raise RuntimeError(f"{len(waiting)} processes still waited two minutes after another had been killed.")
    for child in [] if alone else others:
        time.sleep(chance.random() * 0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return now, len(others) if alone else 0


def kill_often(
    folder: Path, kills: int, seed: int = 0, layout: Layout = Layout(), report: Callable[[str], None] = print
) -> Outcome:
    """
    The whole series.

    Args:
        folder (`Path`):
            Where everything is written.
        kills (`int`):
            How often to kill. The run is as long as that needs.
        seed (`int`, *optional*, defaults to 0):
            Of the moments.
        layout (`Layout`, *optional*):
            Of the processes that train.
    """
    steps = min(250, 6 + 4 * kills)
    chance, at, outcome = random.Random(seed), Counter(), Outcome()
    folder.mkdir(parents=True, exist_ok=True)
    phases = [Phase(folder / f"phase-{rank}") for rank in range(layout.processes)]
    log, killed = folder / "log.txt", folder / "killed"
    expected = finish(folder / "left-alone", steps, layout, log)
    targets = [PHASES[1 + i % (len(PHASES) - 1)] for i in range(10 * kills)]
    for target in targets:
        if outcome.kills == kills:
            break
        found = kill(killed, steps, layout, phases, log, target, chance)
        if found is None:
            break  # it came to its end first
        outcome.kills += 1
        now, survivors = found
        at[now] += 1
        outcome.survivors += survivors
        done_before = max(phase.step for phase in phases) - 1
        newest = get_last_checkpoint(killed) if killed.is_dir() else None
        whole, broken = last_whole_checkpoint(killed)
        outcome.half_written += bool(whole and broken)
        outcome.from_nothing += whole is None
        done = int(whole.rsplit("-", 1)[1]) if whole else 0
        outcome.steps_again += max(0, done_before - done)
        wrong = "" if newest is None or newest == whole else f" ({Path(newest).name}: {what_is_wrong(newest)})"
        report(f"kill {outcome.kills} in {now}, step {done_before + 1}; whole: {whole and Path(whole).name}{wrong}")
    outcome.at = dict(sorted(at.items()))
    ends = finish(killed, steps, layout, log, phases)
    unequal = [differences(end, left_alone) for end, left_alone in zip(ends, expected)]
    for rank, names in enumerate(unequal):
        if names:
            report(f"process {rank} has come to another end in {', '.join(names)}")
    outcome.equal = not any(unequal)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true", help="shard the encoder over the processes")
    parser.add_argument("--output", type=Path, help="where to write the figures, as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        outcome = kill_often(Path(folder), given.kills, given.seed, Layout(given.processes, given.fsdp))
    figures = asdict(outcome) | {
        "processes": given.processes,
        "fsdp": given.fsdp,
        "seed": given.seed,
        "seconds": round(time.monotonic() - start),
    }
    print(json.dumps(figures, indent=1))
    if given.output is not None:
        given.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not outcome.equal or outcome.kills < given.kills:
        sys.exit("The killed run did not end as the one left alone, or was not killed as often as wanted.")


if __name__ == "__main__":
    main()
