"""
Runs cases and scenarios inside one process group and writes what each came to.

    torchrun --nproc_per_node 2 tests/distributed/worker.py FOLDER CASE_OR_MODULE:FUNCTION[:ARGUMENT...] [...]
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path


os.environ.update(HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from distributed_cases import Case, run_case
from safetensors.torch import save_file


def main(folder: Path, names: list[str]) -> None:
    outcomes = {}
    for name in names:
        try:
            if ":" in name:
                module, function, *arguments = name.split(":")
                outcomes[name] = getattr(import_module(module), function)(folder, *arguments)
            else:
                tensors, outcomes[name] = run_case(Case.named(name), folder)
                save_file(
                    {key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}-{rank()}.safetensors"
                )
        except Exception:
            outcomes[name] = {"error": traceback.format_exc()}
        if dist.is_initialized():
            dist.barrier()
        (folder / f"outcomes-{rank()}.json").write_text(json.dumps(outcomes))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) == 1:  # for FSDP on one process; accelerate makes the others
        dist.init_process_group("gloo")
    main(Path(sys.argv[1]), sys.argv[2:])
    if dist.is_initialized():
        dist.destroy_process_group()
