"""
One process of a run of which the last dies in the second step.

    RANK=... WORLD_SIZE=... MASTER_ADDR=... MASTER_PORT=... python tests/distributed/killed.py FOLDER {ddp,fsdp}
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


os.environ.update(HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from distributed_cases import ShardedTrainer
from helpers import arguments, tiny_data, tiny_model
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer


class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs) -> None:
        print(f"step {state.global_step}", flush=True)
        if state.global_step == 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, layout = sys.argv[1:]
    kind = ShardedTrainer if layout == "fsdp" else MultiTaskTrainer
    args = arguments(folder, per_device_train_batch_size=4, ddp_timeout=30, fsdp=layout == "fsdp")
    kind(model=tiny_model(), args=args, train_dataset=tiny_data(rows=40), callbacks=[Die()]).train()
