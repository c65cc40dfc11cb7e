"""`hf-dbmtl train`, from files to a folder."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from hf_dbmtl import MultiTaskModel
from hf_dbmtl_cli import main


ROOT = Path(__file__).parents[2]
RUN = """
model_name_or_path: encoder
output_dir: out
use_cpu: true
max_steps: 6
learning_rate: 0.01
per_device_train_batch_size: 4
disable_tqdm: true
tasks:
  feeling:
    kind: classification
    dataset: {path: sst.csv, eval_fraction: 0.25}
    text: sentence
    label: feeling
  same:
    kind: classification
    dataset: {path: pairs.parquet, eval_fraction: 0.25}
    text: [first, second]
    label: same
    label_names: [different, same]
  score:
    kind: regression
    dataset: {data_files: scores.jsonl, split: {train: "train[:30]", eval: "train[30:]"}}
    label: score
  place:
    kind: token_classification
    dataset: {path: words.jsonl, eval_fraction: 0.25}
    text: tokens
    label: tags
"""


@pytest.fixture
def config(encoder, files) -> str:
    Path("run.yaml").write_text(RUN)
    return "run.yaml"


def test_train(config, capsys):
    words = "--max_eval_samples 8 --tasks.score.max_eval_samples 5 --eval_strategy epoch"
    main(["train", config, *words.split()])
    shown = capsys.readouterr().out
    out = Path("out")
    metrics = json.loads((out / "eval_results.json").read_text())
    row = next(line for line in shown.splitlines() if "feeling" in line and "accuracy" in line and "│" in line)
    assert f"{metrics['eval_feeling_accuracy']:.4f}" in row and " 30 " in row and " 8 " in row
    assert f"{metrics['eval_average']:.4f}" in next(
        line for line in shown.splitlines() if "average" in line and "│" in line
    )
    assert {"eval_same_f1", "eval_score_r2", "eval_place_accuracy", "eval_loss"} <= metrics.keys()
    assert json.loads((out / "train_results.json").read_text())["train_loss"] > 0
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 6
    assert (out / "training.png").stat().st_size > 10_000
    card = (out / "README.md").read_text()
    assert "| feeling | classification | negative, positive | accuracy | 30 | 8 |" in card
    assert "| score | regression | 1 | r2 | 30 | 5 |" in card
    results = {
        (one.task_name, one.metric_name): one.metric_value
        for one in ModelCard.load(out / "README.md").data.eval_results
    }
    assert results["same", "f1"] == metrics["eval_same_f1"]

    model, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert isinstance(model, MultiTaskModel)
    assert model.tasks["same"].label_names == ["different", "same"]
    assert model.tasks["place"].label_names == ["B-PLACE", "O"]
    assert model(task="feeling", **tokenizer("the film was good", return_tensors="pt")).logits.shape == (1, 2)


def test_learns(config):
    """Enough steps to see that texts and labels belong together: the labels follow from the texts."""
    main(["train", config, "--output_dir", "learned", "--num_train_epochs", "10", "--max_steps", "-1"])
    metrics = json.loads(Path("learned/eval_results.json").read_text())
    assert metrics["eval_feeling_accuracy"] == metrics["eval_same_accuracy"] == metrics["eval_place_accuracy"] == 1.0


def test_resume(config):
    """A run that goes on from its newest checkpoint ends where an uninterrupted one does; another seed does not."""
    weights = {}
    for name, steps in {
        "whole": [["--max_steps", "4"]],
        "halves": [["--max_steps", "4", "--save_steps", "2"], ["--max_steps", "4", "--resume_from_checkpoint"]],
        "other": [["--max_steps", "4", "--seed", "7"]],
    }.items():
        for number, words in enumerate(steps):
            if number:  # as if it had been stopped at step 2
                Path(name, "checkpoint-4").rename(Path(name, "later"))
            main(["train", config, "--output_dir", name, "--logging_strategy", "no", *words])
        weights[name] = MultiTaskModel.from_pretrained(name).state_dict()
    for key, value in weights["whole"].items():
        assert torch.equal(value, weights["halves"][key]), key
    assert any(not torch.equal(value, weights["other"][key]) for key, value in weights["whole"].items())


def test_example(encoder, files, monkeypatch, capsys):
    """The example's own file, its GLUE tasks read from local files of the same form."""
    local = {
        "cola": ("sst.csv", "sentence", "feeling", ["negative", "positive"]),
        "sst2": ("sst.csv", "sentence", "feeling", None),
        "mrpc": ("pairs.parquet", ["first", "second"], "same", None),
        "stsb": ("scores.jsonl", "text", "score", None),
        "rte": ("pairs.parquet", ["first", "second"], "same", None),
    }
    words = (
        "--model_name_or_path encoder --max_length 20 --output_dir glue --num_train_epochs 1 --use_cpu --disable_tqdm"
    )
    words = words.split()
    for task, (path, text, label, names) in local.items():
        words += [f"--tasks.{task}.dataset", json.dumps({"path": path, "eval_fraction": 0.25})]
        words += [f"--tasks.{task}.text", *([text] if isinstance(text, str) else text), f"--tasks.{task}.label", label]
        words += [f"--tasks.{task}.label_names", *names] if names else []
    monkeypatch.setattr(sys, "argv", ["hf_dbmtl", "train", str(ROOT / "examples/train.yaml"), *words])
    runpy.run_module("hf_dbmtl", run_name="__main__")  # as `python -m hf_dbmtl`, torchrun and accelerate start it
    metrics = json.loads(Path("glue/eval_results.json").read_text())
    assert {"eval_cola_matthews_correlation", "eval_mrpc_f1", "eval_stsb_pearson"} <= metrics.keys()
    assert "matthews_correlation" in capsys.readouterr().out


def test_without_evaluation(config, capsys):
    words = [word for task in ("feeling", "same", "place") for word in (f"--tasks.{task}.dataset.eval_fraction", "0")]
    words += [
        "--tasks.score.dataset",
        "{path: scores.jsonl, eval_fraction: 0}",
        "--output_dir",
        "silent",
        "--max_steps",
        "2",
    ]
    main(["train", config, *words])
    assert not Path("silent/eval_results.json").exists()
    assert Path("silent/model.safetensors").exists()
    assert "not evaluated" in capsys.readouterr().out


def test_decoder_without_a_padding_token(config):
    """Its end of text fills the batches up, masked."""
    known = AutoTokenizer.from_pretrained("encoder").get_vocab()
    vocabulary = {word: i for i, word in enumerate(["</s>", *known])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>")
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained("decoder")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    LlamaModel(LlamaConfig(vocab_size=len(vocabulary), **size)).save_pretrained("decoder")
    main(["train", config, "--model_name_or_path", "decoder", "--output_dir", "decoded", "--max_steps", "1"])
    model, tokenizer = AutoModel.from_pretrained("decoded"), AutoTokenizer.from_pretrained("decoded")
    assert tokenizer.pad_token == "</s>"
    batch = tokenizer(["the film was good", "a plot"], return_tensors="pt", padding=True)
    alone = tokenizer("a plot", return_tensors="pt")
    logits = model(task="feeling", **batch).logits[1:]
    torch.testing.assert_close(logits, model(task="feeling", **alone).logits)


def test_revision(config, monkeypatch):
    """That of the model goes to its weights; to the tokenizer's too, unless that lies elsewhere."""
    asked = []
    for cls in (AutoTokenizer, MultiTaskModel):
        method = "from_pretrained" if cls is AutoTokenizer else "from_encoder"
        original = getattr(cls, method)

        def recorded(*given, original=original, name=cls.__name__, **options):
            asked.append((name, options.get("revision")))
            return original(*given, **options)

        monkeypatch.setattr(cls, method, recorded)
    main(["inspect", config, "--model_revision", "v1"])
    main(["inspect", config, "--model_revision", "v1", "--tokenizer_name", "encoder"])
    main(["inspect", config])
    assert asked[::2] == [("AutoTokenizer", "v1"), ("AutoTokenizer", None), ("AutoTokenizer", "main")]
    assert asked[1::2] == [("MultiTaskModel", "v1"), ("MultiTaskModel", "v1"), ("MultiTaskModel", None)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own
def test_tensorboard(config):
    """Its numbers are ordered by task, as the callback of this package does."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = "--output_dir reported --max_steps 2 --logging_steps 1 --report_to tensorboard"
    main(["train", config, *words.split()])
    paths = Path("reported").rglob("events.*")
    scalars = {tag for path in paths for tag in EventAccumulator(str(path)).Reload().Tags()["scalars"]}
    assert {"loss/feeling", "loss/score", "train/loss"} <= scalars
    assert "train/loss/feeling" not in scalars


def test_without_any_label(config, capsys):
    Path("unlabelled.csv").write_text("text,score\n" + "the film was good,\n" * 8)
    with pytest.raises(SystemExit) as ended:
        main(["train", config, "--tasks.score.dataset", "{path: unlabelled.csv, eval_fraction: 0.25}"])
    assert ended.value.code == 2
    assert "Task 'score': its train dataset has no label at all" in capsys.readouterr().err


def test_early_stopping_and_conflicts(config):
    """A metric of one task decides; it cannot get better by so much, so that the second evaluation is the last."""
    words = "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --load_best_model_at_end"
    words += " --metric_for_best_model same_accuracy --early_stopping_patience 1 --early_stopping_threshold 2"
    main(["train", config, *words.split(), "--output_dir", "stopped", "--conflict_steps", "1", "--logging_steps", "1"])
    state = json.loads(Path("stopped/trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert any("cosine/feeling/score" in record for record in state["log_history"])
    main(
        ["train", config, *words.split(), "--output_dir", "stopped", "--early_stopping_patience", "null"]
    )  # the control
    state = json.loads(Path("stopped/trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert not any("cosine/feeling/score" in record for record in state["log_history"])


def test_weights_tuned_on_validation_data(config):
    """And rows of like length together: settings of the Trainer that the file gives it."""
    norms = {}
    for name in ("auto_lambda", "ew"):
        words = [
            "--balancer",
            name,
            "--tasks.score.dataset",
            "{path: scores.jsonl, eval_fraction: 0.2, validation_fraction: 0.2}",
        ]
        words += ["--balancer_kwargs", "{learning_rate: 1.0}"] if name == "auto_lambda" else []
        main(["train", config, *words, "--max_steps", "3", "--train_sampling_strategy", "group_by_length"])
        history = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
        norms[name] = [record["grad_norm"] for record in history if "grad_norm" in record]
    shares = [tuned / plain for tuned, plain in zip(*norms.values())]
    assert len(shares) == 3
    assert shares[2] != pytest.approx(shares[0], rel=0.05)  # the weights have moved


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--early_stopping_patience 3", ["early_stopping_patience needs load_best_model_at_end"]),
        ("--conflict_steps 0", ["conflict_steps: it must be positive"]),
        ("--balancer auto_lambda", ["'auto_lambda' tunes its weights on rows", "validation_fraction"]),
        ("--model_name_or_path nowhere", ["model_name_or_path 'nowhere' could not be loaded"]),
        ("--tokenizer_name nowhere", ["tokenizer_name 'nowhere' could not be loaded"]),
        ("--max_length 100", ["Task 'feeling': max_length=100 is more than the 24 tokens"]),
        ("--tasks.same.max_train_samples 0", ["Task 'same': `max_train_samples` must be 1 or more"]),
        ("--tasks.same.text first second first", ["Task 'same': `text` must name one column or two"]),
        ("--tasks.place.text tokens tags", ["Task 'place': `text` must name one column,"]),
        ("--tasks.feeling.main_metric acuracy", ["Task 'feeling': main_metric 'acuracy'", "'accuracy'"]),
        ("--tasks.same.label_names null --tasks.same.num_labels 1", ["Task 'same': num_labels=1"]),
        ("--task_weights.sam 1", ["`task_weights` names a task 'sam'", "'same'"]),
        ("--resume_from_checkpoint nowhere", ["there is no folder nowhere"]),
        ("--label_smoothing_factor 0.1", ["`label_smoothing_factor`"]),
        ("--report_to nothing", ["nothing"]),
    ],
)
def test_refused(config, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", config, "--output_dir", "refused", *words.split()])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    for part in said:
        assert part in shown
    assert not Path("refused/model.safetensors").exists()


def test_trained_model_is_no_encoder(config, capsys):
    main(["train", config, "--output_dir", "has_heads", "--max_steps", "1"])
    with pytest.raises(SystemExit):
        main(["train", config, "--model_name_or_path", "has_heads"])
    assert "has its heads already" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes(config, folder):
    """The same file under torchrun: the same steps as one process with batches twice as large."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_DATASETS_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "hf_dbmtl",
        "train",
        config,
    ]
    still = ["--max_steps", "3", "--optim", "sgd", "--lr_scheduler_type", "constant"]
    subprocess.run(
        [*command, *still, "--output_dir", "two", "--per_device_train_batch_size", "2"],
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    main(["train", config, *still, "--output_dir", "one"])
    main(["train", config, *still, "--output_dir", "half", "--per_device_train_batch_size", "2"])
    one, two, half = (MultiTaskModel.from_pretrained(name).state_dict() for name in ("one", "two", "half"))
    assert distance(one, two) < 1e-5
    assert distance(one, half) > 1e-3
    one, two = (json.loads(Path(name, "eval_results.json").read_text()) for name in ("one", "two"))
    metrics = [key for key in one if key.endswith(("_accuracy", "_mse", "_average"))]
    assert len(metrics) == 5
    assert {key: two[key] for key in metrics} == pytest.approx({key: one[key] for key in metrics}, rel=1e-4)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((value - other[key]).abs().max().item() for key, value in one.items())
