"""The configurations for `accelerate launch` are what accelerate takes them for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from hf_dbmtl.checks import check_layout


FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"
EXPECTED = {  # the layout, processes and machines
    "cpu": (DistributedType.NO, 1, 1),
    "one_gpu": (DistributedType.NO, 1, 1),
    "two_gpus": (DistributedType.MULTI_GPU, 2, 1),
    "eight_gpus": (DistributedType.MULTI_GPU, 8, 1),
    "multi_node": (DistributedType.MULTI_GPU, 16, 2),
    "fsdp2": (DistributedType.FSDP, 8, 1),
}


def test_every_file_is_looked_at() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    found = (config.distributed_type, config.num_processes, config.num_machines)
    assert found == EXPECTED[name]
    assert config.use_cpu == (name == "cpu")


def test_an_unknown_key_would_show(tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "fsdp2.yaml").read_text())
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**content, "num_procesess": 8}))
    with pytest.raises(ValueError, match="num_procesess"):
        load_config_from_file(str(wrong))


def _plugin(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """The FSDP plugin that a process sees which `accelerate launch` has started with fsdp2.yaml."""
    config = load_config_from_file(str(FOLDER / "fsdp2.yaml"))
    args = launch_command_parser().parse_args(["train.py"])
    args.use_fsdp, args.mixed_precision, args.dynamo_backend = True, config.mixed_precision, "no"
    args.num_processes, args.num_machines, args.machine_rank = config.num_processes, config.num_machines, 0
    for key, value in {**config.fsdp_config, **changes}.items():
        assert hasattr(args, key), key
        setattr(args, key, str(value).lower() if isinstance(value, bool) else value)
    for key, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(key, value)
    return FullyShardedDataParallelPlugin()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"fsdp_version": 1}, "FSDP1.*use FSDP2"),
        ({"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, "FULL_STATE_DICT"),
        ({"fsdp_cpu_ram_efficient_loading": True}, "cpu_ram_efficient_loading"),
        ({"fsdp_offload_params": True}, "cpu_offload"),
    ],
    ids=["as it is", "FSDP1", "sharded states", "ram efficient", "offload"],
)
def test_the_sharded_one_is_taken(changes: dict, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = dict(changes)
    version = changes.pop("fsdp_version", 2)
    plugin = _plugin(monkeypatch, **changes)
    plugin.fsdp_version = version  # a plugin of version 1 cannot be made without a GPU
    accelerator: Any = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        state=SimpleNamespace(fsdp_plugin=plugin),
        parallelism_config=None,
        scaler=None,
    )
    args: Any = SimpleNamespace(parallel_mode=None, n_gpu=1, fp16=False, fsdp=False)
    if message is None:
        check_layout(accelerator, args)
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    else:
        with pytest.raises(ValueError, match=message):
            check_layout(accelerator, args)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "XLA", "MULTI_NPU"])
def test_other_layouts_are_refused(kind: str) -> None:
    accelerator: Any = SimpleNamespace(distributed_type=DistributedType(kind), scaler=None)
    args: Any = SimpleNamespace(parallel_mode=None, n_gpu=1, fp16=False, fsdp=False)
    with pytest.raises(ValueError, match=f"does not run under {kind}.*Use DDP.*FSDP2"):
        check_layout(accelerator, args)
