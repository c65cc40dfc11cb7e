"""Every field of TrainingArguments works, is refused by name, or is none of our business: a table of all of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from accelerate import ParallelismConfig
from helpers import arguments, tiny_data, tiny_model
from probes import PROBES, Probe, Seeing, make, run
from test_evaluation import ObjectModule, object_data
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_dbmtl import MultiTaskTrainer


# What is refused: the field, values that are, and what the error names. Other values of it may work.
REFUSED: dict[str, list[tuple[dict, str]]] = {
    "label_smoothing_factor": [({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`")],
    "optim": [
        ({"optim": name.value, "optim_target_modules": ["query"]}, f"`optim='{name.value}'`")
        for name in OptimizerNames
        if name.value.endswith("_layerwise") or name.value in ("lomo", "adalomo")
    ],
    "use_liger_kernel": [({"use_liger_kernel": True}, "`use_liger_kernel`")],
    "use_cache": [({"use_cache": True}, "`use_cache`")],
    "batch_eval_metrics": [({"batch_eval_metrics": True}, "`batch_eval_metrics`")],
    "eval_do_concat_batches": [({"eval_do_concat_batches": False}, "`eval_do_concat_batches=False`")],
    "enable_jit_checkpoint": [({"enable_jit_checkpoint": True}, "`enable_jit_checkpoint`")],
    "auto_find_batch_size": [
        ({"auto_find_batch_size": True, "per_task_batch_size": {"score": 4}}, "`auto_find_batch_size`")
    ],
    "train_sampling_strategy": [
        ({"train_sampling_strategy": "batch_rebalance"}, "`train_sampling_strategy='batch_rebalance'`"),
        ({"train_sampling_strategy": "by_length"}, "`train_sampling_strategy='by_length'`.*'group_by_length'"),
    ],
    "label_names": [({"label_names": ["gold"]}, r"`label_names=\['gold'\]`")],
    "debug": [({"debug": "tpu_metrics_debug"}, "`debug='tpu_metrics_debug'`")],
    "accelerator_config": [
        ({"accelerator_config": {"split_batches": True}}, "`accelerator_config.split_batches`"),
        ({"accelerator_config": {"dispatch_batches": True}}, "`accelerator_config.dispatch_batches`"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "`accelerator_config.use_seedable_sampler=False`"),
    ],
    "average_tokens_across_devices": [
        ({"average_tokens_across_devices": False}, "`average_tokens_across_devices=False`")
    ],
    "ddp_broadcast_buffers": [({"ddp_broadcast_buffers": True}, "`ddp_broadcast_buffers`")],
    "parallelism_config": [({"parallelism_config": ParallelismConfig()}, "`parallelism_config`")],
    "deepspeed": [({"deepspeed": {"zero_optimization": {"stage": 2}}}, "`deepspeed`")],
}

# What neither is refused nor has a probe, by the reason why nothing here stands between the field and transformers.
STOCK: dict[str, tuple[str, ...]] = {
    "read by scripts, not by a Trainer": ("do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"),
    "where training runs and how its kernels compute, settled before our code runs": (
        "use_cpu",
        "tf32",
        "full_determinism",
    ),
    "accelerate's scaler, which exists on a GPU alone (on a CPU a warning says so)": ("fp16",),
    "read by the optimizers that project gradients, packages of their own": ("optim_target_modules",),
    "read where another field is set that is refused": ("liger_kernel_config",),
    "tested where they can be: tests/test_compilation.py and tests/distributed/test_sharded.py": (
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "fsdp",
        "fsdp_config",
    ),
    "how DDP itself exchanges gradients, which it is not asked to do": (
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
    ),
    "read where several processes start, or tell them apart": (
        "ddp_backend",
        "ddp_timeout",
        "eval_use_gather_object",
        "log_level_replica",
        "log_on_each_node",
        "save_on_each_node",
    ),
    "what a record looks like and where it goes: callbacks of transformers, which get our records": (
        "disable_tqdm",
        "log_level",
        "project",
        "report_to",
        "run_name",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
    ),
    "the upload of a checkpoint's folder, whatever lies in it": (
        "push_to_hub",
        "hub_always_push",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
        "hub_strategy",
        "hub_token",
    ),
}


KNOWN = {field.name for field in fields(TrainingArguments)}
NEW = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # of transformers 5.23
CHECKPOINTING = {"activation_checkpointing", "gradient_checkpointing"}  # its name, and what it was called before


def test_the_table_holds_every_field() -> None:
    stock = [field for group in STOCK.values() for field in group]
    assert len(stock) == len(set(stock))
    assert not set(stock) & (PROBES.keys() | REFUSED.keys()), "a field with a probe is not untouched"
    table = PROBES.keys() | REFUSED.keys() | set(stock)
    assert KNOWN - table == set(), "transformers has fields that are not in the table"
    assert table - KNOWN - NEW == set(), "the table has fields that transformers has no more"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    return run(tmp_path_factory.mktemp("plain"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("function", dict.fromkeys(PROBES.values()), ids=lambda function: function.__name__)
def test_it_works(function: Probe, tmp_path: Path, plain: Seeing) -> None:
    if NEW - KNOWN and NEW & {name for name, probe in PROBES.items() if probe is function}:
        pytest.skip("needs transformers 5.23")
    function(tmp_path, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [case for cases in REFUSED.values() for case in cases],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_it_is_refused(options: dict, message: str, tmp_path: Path) -> None:
    late = {key: options[key] for key in ("deepspeed",) if key in options}  # where its package is not installed
    args = arguments(tmp_path, **{key: value for key, value in options.items() if key not in late})
    for key, value in late.items():
        setattr(args, key, value)
    with pytest.raises(ValueError, match=f"MultiTaskTrainer does not take {message}"):
        MultiTaskTrainer(tiny_model(), args, train_dataset=tiny_data(rows=4))


def test_what_is_not_an_argument_here(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="compute_loss_func"):
        MultiTaskTrainer(tiny_model(), arguments(tmp_path), compute_loss_func=lambda *args, **kwargs: 0.0)
    with pytest.raises(TypeError, match="`args` must be MultiTaskTrainingArguments, and is TrainingArguments"):
        MultiTaskTrainer(tiny_model(), TrainingArguments(str(tmp_path)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({sorted(KNOWN & CHECKPOINTING)[0]: True}, "`activation_checkpointing`: ObjectModule does not support it"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha`: .* ObjectModule has no method `get_input_embeddings`"),
        ({"include_for_metrics": ["inputs"]}, r"`include_for_metrics=\['inputs'\]`: ObjectModule takes no 'input_ids'"),
    ],
)
def test_what_a_module_cannot_do(options: dict, message: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, label_names=["target"], **options)
    with pytest.raises(ValueError, match=message):
        MultiTaskTrainer(ObjectModule(), args, train_dataset=object_data(4))


def test_lengths_that_are_not_there(tmp_path: Path) -> None:
    args = arguments(tmp_path, label_names=["target"], train_sampling_strategy="group_by_length")
    with pytest.raises(ValueError, match="Task 'height': .* neither 'input_ids' nor a column 'length'"):
        MultiTaskTrainer(ObjectModule(), args, train_dataset=object_data(4))


@pytest.mark.parametrize("name", ["a/b", "", 3])
def test_names_that_a_task_cannot_have(name, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"`train_dataset`: the name of a task .* not {name!r}"):
        MultiTaskTrainer(ObjectModule(), arguments(tmp_path), train_dataset={name: object_data(4)["height"]})


def test_half_precision_that_has_no_effect_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        make(tmp_path, bf16=True)
        assert "has no effect" not in caplog.text
        make(tmp_path, fp16=True)
    assert "fp16 has no effect on this device (cpu): training is in float32" in caplog.text


def test_early_stopping(tmp_path: Path) -> None:
    options = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "average"}
    still = run(tmp_path, callbacks=[EarlyStoppingCallback(2)], learning_rate=0.0, **options)
    assert still.state.global_step == 3
    better = {**options, "metric_for_best_model": "score_loss"}  # which falls at every step
    assert run(tmp_path, callbacks=[EarlyStoppingCallback(2)], learning_rate=1e-2, **better).state.global_step == 6
