"""Numbers that a method learns as it goes, one per task: in float64 on the CPU, by an optimizer of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


__all__ = ["Learned", "check_not_negative"]

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class Learned:
    """
    One learned number per task. A task that brings no gradient (it was absent from the step) keeps its number and what
    the optimizer remembers of it, its own count of steps included.

    Args:
        learning_rate (`float`):
            The learning rate, constant over the run.
        optimizer (`str`):
            `"sgd"` (without momentum) or `"adam"` (torch's defaults).
        weight_decay (`float`, *optional*, defaults to 0.0):
            The factor of the L2 penalty, added to the gradient.

    Raises:
        `ValueError`: for a value out of range or an unknown optimizer.
    """

    def __init__(self, learning_rate: float, optimizer: str, weight_decay: float = 0.0):
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a number of 0 or more, and is {value}.")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {list(OPTIMIZERS)}, and is {optimizer!r}.")
        self.options = {"lr": learning_rate, "weight_decay": weight_decay}
        self.kind = OPTIMIZERS[optimizer]
        self.numbers: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Optimizer  # from `setup` on

    def setup(self, tasks: Sequence[str], init: float) -> None:
        """Starts every task at `init`."""
        self.numbers = {task: torch.tensor(init, dtype=torch.float64, requires_grad=True) for task in tasks}
        # foreach: all tasks in one call, which halves the time of many small steps
        self.optimizer = self.kind(list(self.numbers.values()), **self.options, foreach=True)

    def __getitem__(self, task: str) -> float:
        return self.numbers[task].item()

    def values(self, tasks: Sequence[str] | None = None) -> Tensor:
        """The numbers of `tasks`, of all by default, as a tensor of shape `(tasks,)`."""
        return torch.stack([self.numbers[task].detach() for task in (self.numbers if tasks is None else tasks)])

    def step(self, gradients: Mapping[str, float]) -> None:
        """One step of the optimizer, with the gradients of the tasks that have one."""
        for task, gradient in gradients.items():
            self.numbers[task].grad = torch.tensor(gradient, dtype=torch.float64)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def set(self, values: Sequence[float] | Tensor) -> None:
        """Sets the numbers of all tasks, in their order, without a step of the optimizer: for methods that rescale."""
        for number, value in zip(self.numbers.values(), values, strict=True):
            number.fill_(float(value))

    def state_dict(self) -> dict[str, Tensor]:
        """The numbers as `learned`, and by its own names what the optimizer remembers; one entry per task each."""
        state = {"learned": self.values()}
        remembered = [self.optimizer.state.get(number, {}) for number in self.numbers.values()]
        for name in dict.fromkeys(name for one in remembered for name, value in one.items() if value is not None):
            like = next(one[name] for one in remembered if name in one)
            state[name] = torch.stack([one.get(name, torch.zeros_like(like)) for one in remembered])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what [`~Learned.state_dict`] gave, as far as `state` has it."""
        if "learned" not in state:
            return
        self.set(state["learned"])
        self.optimizer.state.clear()
        if "step" in state:  # of Adam; of a task that was never there it is 0, and nothing is remembered
            for i, number in enumerate(self.numbers.values()):
                if state["step"][i] > 0:
                    names = ("step", "exp_avg", "exp_avg_sq")
                    self.optimizer.state[number] = {name: state[name][i].clone() for name in names}


def check_not_negative(task: str, loss: float, why: str) -> None:
    """Refuses a negative loss where a method has no meaning for one; `why` says so."""
    if loss < 0:
        raise ValueError(
            f"Task '{task}': its loss is {loss:g}, and {why}. Add a constant to the loss, or choose a balancer that "
            "takes any loss (such as 'ew' or 'max_norm')."
        )
