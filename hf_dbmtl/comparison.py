"""Several methods over several seeds: mean and deviation per task, Δp, time and memory per step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from .metrics import delta_p, delta_p_per_task


__all__ = ["SINGLE_TASK", "Run", "Spread", "Summary", "shown", "summarise"]

SINGLE_TASK = "single-task"


@dataclass(frozen=True)
class Run:
    """
    What one training run came to.

    Attributes:
        method (`str`): what was run; `"single-task"` for the models of one task each.
        seed (`int`): its seed. Runs of one method and seed with different tasks count as one.
        metrics (`dict[str, dict[str, float]]`): metrics by task.
        seconds (`float`, *optional*): per optimizer step.
        memory (`int`, *optional*): bytes at the peak, above the loaded model.
    """

    method: str
    seed: int
    metrics: Mapping[str, Mapping[str, float]]
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Spread:
    """The values that several seeds gave."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation; `None` of a single value."""
        return stdev(self.values) if len(self.values) > 1 else None

    def show(self, form: str = ".4f") -> str:
        deviation = "" if self.deviation is None else f" ± {self.deviation:{form.replace('+', '')}}"
        return shown(self.mean, form) + deviation


def shown(number: float, form: str) -> str:
    """A number in a format, a zero without the sign that rounding left."""
    text = f"{number:{form}}"
    return text.lstrip("+-") if text.strip("+-0.") == "" else text


@dataclass
class Summary:
    """
    A method over its seeds. What no run gave is `None` or left out.

    Attributes:
        method (`str`): the method.
        runs (`int`): how many seeds it was run with.
        metrics (`dict[str, dict[str, Spread]]`): by task and metric.
        average (`Spread`): of the first metric of each task, over the tasks.
        delta_p (`Spread`): against the reference, in percent.
        delta_p_by_task (`dict[str, Spread]`): the terms of it.
        seconds (`float`): per step, the mean over the seeds.
        memory (`float`): bytes at the peak, the mean over the seeds.
        why (`str`): the reason why there is no `delta_p`.
    """

    method: str
    runs: int = 0
    metrics: dict[str, dict[str, Spread]] = field(default_factory=dict)
    average: Spread | None = None
    delta_p: Spread | None = None
    delta_p_by_task: dict[str, Spread] = field(default_factory=dict)
    seconds: float | None = None
    memory: float | None = None
    why: str = ""


def summarise(
    runs: Iterable[Run],
    tasks: Mapping[str, Sequence[str]],
    reference: str = SINGLE_TASK,
    greater_is_better: Mapping[str, bool] | None = None,
) -> list[Summary]:
    """
    Summarises runs method by method, in the order in which the methods appear.

    Δp of a seed is that of [`~hf_dbmtl.delta_p`] against the means of the reference over all its seeds, so that the
    deviation over the seeds is the method's own and the Δp of the reference itself is the deviation to expect by chance.

    Args:
        runs (`Iterable[Run]`):
            The runs.
        tasks (`dict[str, list[str]]`):
            The metrics of every task that count, the main one first.
        reference (`str`, *optional*, defaults to `"single-task"`):
            The method that Δp is relative to.
        greater_is_better (`dict[str, bool]`, *optional*):
            Directions of metrics that [`~hf_dbmtl.metrics.GREATER_IS_BETTER`] does not hold.
    """
    by_method: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = by_method.setdefault(run.method, {})
        seeds[run.seed] = _merged(seeds[run.seed], run) if run.seed in seeds else run
    baseline = {
        task: {
            metric: fmean(values)
            for metric in metrics
            if (values := _values(by_method.get(reference, {}), task, metric))
        }
        for task, metrics in tasks.items()
    }
    return [
        _summary(method, seeds, tasks, baseline, reference, greater_is_better) for method, seeds in by_method.items()
    ]


def _merged(one: Run, other: Run) -> Run:
    """The models of single tasks as one: the time of a step of each of them, and the memory of the largest."""
    seconds = [run.seconds for run in (one, other) if run.seconds is not None]
    memory = [run.memory for run in (one, other) if run.memory is not None]
    metrics = {**one.metrics, **other.metrics}
    return Run(one.method, one.seed, metrics, sum(seconds) if seconds else None, max(memory, default=None))


def _values(seeds: Mapping[int, Run], task: str, metric: str) -> list[float]:
    return [run.metrics[task][metric] for run in seeds.values() if metric in run.metrics.get(task, {})]


def _summary(
    method: str,
    seeds: Mapping[int, Run],
    tasks: Mapping[str, Sequence[str]],
    baseline: Mapping[str, Mapping[str, float]],
    reference: str,
    greater_is_better: Mapping[str, bool] | None,
) -> Summary:
    summary = Summary(method, runs=len(seeds))
    for task, metrics in tasks.items():
        spreads = {metric: Spread(tuple(values)) for metric in metrics if (values := _values(seeds, task, metric))}
        if spreads:
            summary.metrics[task] = spreads
    whole = [
        run for run in seeds.values() if all(metrics[0] in run.metrics.get(task, {}) for task, metrics in tasks.items())
    ]
    if whole:
        summary.average = Spread(
            tuple(fmean(run.metrics[task][metrics[0]] for task, metrics in tasks.items()) for run in whole)
        )
    seconds = [run.seconds for run in seeds.values() if run.seconds is not None]
    memory = [run.memory for run in seeds.values() if run.memory is not None]
    summary.seconds, summary.memory = fmean(seconds) if seconds else None, fmean(memory) if memory else None
    lacking = [task for task, metrics in tasks.items() if not all(metric in baseline[task] for metric in metrics)]
    if lacking or not whole:
        who = f"the reference '{reference}' has" if lacking else "it has"
        summary.why = f"{who} no result for {', '.join(lacking or tasks)}"
        return summary
    try:
        changes = [delta_p_per_task(_only(run, tasks), baseline, greater_is_better) for run in whole]
        summary.delta_p = Spread(tuple(delta_p(_only(run, tasks), baseline, greater_is_better) for run in whole))
        summary.delta_p_by_task = {task: Spread(tuple(change[task] for change in changes)) for task in tasks}
    except ValueError as error:
        summary.why = str(error)
    return summary


def _only(run: Run, tasks: Mapping[str, Sequence[str]]) -> dict[str, Mapping[str, float]]:
    return {task: run.metrics[task] for task in tasks}
