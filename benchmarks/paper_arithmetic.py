"""
What each layout costs a process in memory and in bytes sent, by formula. No machine has run what it prints.

    python benchmarks/paper_arithmetic.py
"""

from __future__ import annotations


MODELS = {"BERT-base": 110e6, "ModernBERT-large": 395e6, "8B encoder": 8e9}  # shared parameters
WORLDS = (1, 8, 64, 1024)
TASKS = 8


def averages(tasks: int, parameters: float, world: int, size: int = 4) -> float:
    """Bytes that a process keeps for the tasks' averages, or for the rows of a Gramian method, T|θ|/W numbers."""
    return tasks * parameters / world * size


def ddp_buffers(parameters: float, size: int = 4) -> float:
    """Bytes of the two gradients under DDP: of the task that computes, and of the one on its way."""
    return 2 * parameters * size


def ddp_sent(tasks: int, parameters: float, world: int, size: int = 4) -> float:
    """Bytes a process sends in a step under DDP: T reduce-scatters and one all-gather, over a ring."""
    return (tasks + 1) * (world - 1) / world * parameters * size


def reducing_each(tasks: int, parameters: float, world: int, size: int = 4) -> float:
    """What all-reducing every task's gradient would send."""
    return tasks * 2 * (world - 1) / world * parameters * size


def fsdp_sent(tasks: int, parameters: float, world: int, micro_batches: int = 1, size: int = 2) -> float:
    """
    Bytes a process sends in a step under FSDP2: in every pass of every task the parameters are gathered for the forward
    pass and again for the backward pass, and the gradients scattered, in numbers of `size` bytes (2: bfloat16).
    """
    return 3 * tasks * micro_batches * (world - 1) / world * parameters * size


def table() -> str:
    lines = [
        "| shared parameters | W | averages | buffers (DDP) | sent (DDP) | all-reducing each | sent (FSDP2) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model, parameters in MODELS.items():
        for world in WORLDS:
            numbers = [
                averages(TASKS, parameters, world),
                ddp_buffers(parameters) / (2 if world == 1 else 1),
                ddp_sent(TASKS, parameters, world),
                reducing_each(TASKS, parameters, world),
                fsdp_sent(TASKS, parameters, world),
            ]
            lines.append(f"| {model}, {parameters / 1e6:,.0f} M | {world} | " + " | ".join(map(_human, numbers)) + " |")
    return "\n".join(lines)


def _human(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 or not count else f"{count / 1e6:,.2f} MB"


if __name__ == "__main__":
    print(table())
