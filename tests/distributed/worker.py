"""
Runs cases and scenarios inside one process group and writes what each came to.

    torchrun --nproc_per_node 2 tests/distributed/worker.py FOLDER CASE_OR_MODULE:FUNCTION[:ARGUMENT...] [...]
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from datetime import timedelta
from importlib import import_module
from pathlib import Path


os.environ.update(HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from distributed_cases import Case, run_case
from safetensors.torch import save_file


# where one process fails before the others, in a collective, they wait that long for it
TIMEOUT = timedelta(seconds=90)


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
                    {key: value.contiguous() for key, value in tensors.items()},
                    folder / f"{name}-{dist.get_rank()}.safetensors",
                )
        except Exception:
            outcomes[name] = {"error": traceback.format_exc()}
        # of a group that one of its processes has left every later case tells too
        with contextlib.suppress(RuntimeError):
            dist.barrier()
        (folder / f"outcomes-{dist.get_rank()}.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    main(Path(sys.argv[1]), sys.argv[2:])
    dist.destroy_process_group()
