"""Starting a command again on several processes, as `torchrun` and `accelerate launch` would."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_dbmtl_cli import CommandError

from .yaml_file import load_yaml


__all__ = ["launch_command", "relaunch", "wanted"]

OPTIONS = ("--num_processes", "--accelerate_config")


def wanted(given: argparse.Namespace) -> bool:
    """Whether several processes are asked for, by a process that is not one of them."""
    return (given.num_processes is not None or given.accelerate_config is not None) and "LOCAL_RANK" not in os.environ


def relaunch(given: argparse.Namespace, use_cpu: bool) -> None:
    """
    Turns this process into the launcher of `given`'s command, where several processes are asked for; else returns.

    Args:
        given (`argparse.Namespace`):
            The command with the `words` it was parsed from.
        use_cpu (`bool`):
            Whether the processes are to use the CPU.
    """
    if not wanted(given):
        return
    words = _without_options(given.words)
    command, environment = launch_command(["hf_dbmtl", *words], given.num_processes, given.accelerate_config, use_cpu)
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def launch_command(
    module: Sequence[str], num_processes: int | None, accelerate_config: str | None, use_cpu: bool
) -> tuple[list[str], dict[str, str]]:
    """
    The command that runs a module on several processes, and its environment.

    Args:
        module (`Sequence[str]`):
            The module and its arguments.
        num_processes (`int`, *optional*):
            How many processes; with a configuration by default what it says.
        accelerate_config (`str`, *optional*):
            A file that `accelerate config` wrote, or its name in accelerate's own folder.
        use_cpu (`bool`):
            Whether the processes are to use the CPU.

    Raises:
        [`CommandError`]: fewer than one process, or a configuration that is not there.
    """
    if num_processes is not None and num_processes < 1:
        raise CommandError(f"--num_processes must be 1 or more, and is {num_processes}.")
    environment = dict(os.environ)
    if accelerate_config is not None:
        path = _find(accelerate_config)
        config = load_yaml(str(path))
        if not _on_cpus(config):
            count = [] if num_processes is None else ["--num_processes", str(num_processes)]
            launcher = ["-m", "accelerate.commands.launch", "--config_file", str(path), *count]
            return [sys.executable, *launcher, "-m", *module], environment
        # `accelerate launch` needs MPI for several processes on the CPU, and without it runs one and does not say so
        if config.get("num_machines", 1) != 1:
            raise CommandError(f"{path}: several machines on CPUs: start torchrun on each of them.")
        num_processes = num_processes or config.get("num_processes", 1)
        use_cpu = True
    if use_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    return [sys.executable, *launcher, "-m", *module], environment


def _on_cpus(config: Mapping[str, Any]) -> bool:
    kind = str(config.get("distributed_type", "")).upper()
    return kind == "MULTI_CPU" or (config.get("use_cpu") is True and kind in ("", "NO"))


def _find(name: str) -> Path:
    from accelerate.commands.config.config_args import cache_dir

    own = Path(cache_dir)
    for path in (Path(name), own / name, own / f"{name}.yaml"):
        if path.is_file():
            return path
    there = ", ".join(sorted(path.stem for path in own.glob("*.yaml"))) or "none"
    raise CommandError(
        f"--accelerate_config {name}: there is no such file, here or in {own} (there: {there}): `accelerate config "
        "--config_file NAME` writes one."
    )


def _without_options(words: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in OPTIONS:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in OPTIONS)):
            kept.append(word)
    return kept
