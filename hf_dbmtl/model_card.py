"""The model card: what was learned, how well, how, and how to load it."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .export import STOCK_KINDS
from .metrics import main_metric
from .tasks import task_from_dict


__all__ = ["ModelCardContent", "create_model_card"]

TEMPLATE = Path(__file__).with_name("templates") / "model_card.md.jinja"
PROCESSORS = {"text": "AutoTokenizer", "image": "AutoImageProcessor", "audio": "AutoFeatureExtractor"}
FRAMEWORKS = ("transformers", "torch", "accelerate", "datasets", "tokenizers")
METHODS = {
    "db_mtl": "DB-MTL: the logarithm of every loss, a moving average of every task's gradient, all brought to one norm",
    "ew": "the plain sum of the losses",
    "log": "the sum of the logarithms of the losses",
    "max_norm": "the gradients of the tasks brought to one norm",
}
SHOWN_LABELS, SHOWN_LENGTH = 8, 60


@dataclass
class ModelCardContent:
    """
    What a card says, as plain data. Only the first two are needed: what is not known is left out of the card.

    Args:
        model_name (`str`):
            The headline.
        tasks (`dict[str, dict]`):
            The tasks by name, each as [`Task.to_dict`] describes it; empty for a task of a module of the user's own.
        repo_id (`str`, *optional*):
            What the snippets load: a repository on the Hub.
        base_model (`str`, *optional*):
            The pretrained encoder's repository on the Hub. A local folder is no use to a reader: leave it out.
        encoder (`str`, *optional*):
            The encoder's class.
        pooling (`str`, *optional*):
            What the heads at sequence level see.
        modality (`str`, *optional*, defaults to `"text"`):
            `"text"`, `"image"` or `"audio"`: what the encoder takes.
        balancer, balancer_kwargs (`str` and `dict`, *optional*):
            The balancer and its options.
        papers (`list[str]`, *optional*):
            Where it comes from, as `"Title, arXiv 2308.12029"`.
        hyperparameters (`dict`, *optional*):
            What else decided the training.
        steps (`int`, *optional*), epochs (`float`, *optional*):
            How far the training went.
        train_rows, eval_rows (`dict[str, int | None]`, *optional*):
            Sizes of the datasets by task.
        results, baselines (`dict[str, dict[str, float]]`, *optional*):
            Metrics by task, of the model and of what never looks at the input (see
            [`~hf_dbmtl.metrics.baseline_metrics`]).
        averages (`dict[str, float]`, *optional*):
            Numbers over all tasks, such as `{"average": ..., "loss": ...}`.
        main_metrics (`dict[str, str]`, *optional*):
            The main metric by task. Default: that of the task's kind.
        picture (`str`, *optional*):
            File name, beside the card, of the picture that [`~hf_dbmtl.plots.plot_training`] drew.
        language, license, datasets, tags (*optional*):
            Metadata of the Hub.
        versions (`dict[str, str]`, *optional*):
            Versions of the libraries. Default: those installed.
    """

    model_name: str
    tasks: dict[str, dict[str, Any]]
    repo_id: str | None = None
    base_model: str | None = None
    encoder: str | None = None
    pooling: str | None = None
    modality: str = "text"
    balancer: str | None = None
    balancer_kwargs: dict[str, Any] = field(default_factory=dict)
    papers: list[str] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    epochs: float | None = None
    train_rows: dict[str, int | None] = field(default_factory=dict)
    eval_rows: dict[str, int | None] = field(default_factory=dict)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)
    main_metrics: dict[str, str] = field(default_factory=dict)
    picture: str | None = None
    language: str | list[str] | None = None
    license: str | None = None
    datasets: list[str] | None = None
    tags: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: _versions())


def create_model_card(content: ModelCardContent) -> ModelCard:
    """
    Makes the card. `card.save("README.md")` writes it, `ModelCard.load` reads it back.

    Names, labels and values are escaped: whatever they hold, a table stays a table and the metadata valid YAML.
    """
    mains = {name: _main_metric(content, name) for name in content.tasks}
    method = [content.balancer.split("(")[0]] if content.balancer else []  # of an object of TorchJD without its options
    data = ModelCardData(
        language=content.language,
        license=content.license,
        library_name="transformers",
        base_model=content.base_model,
        datasets=content.datasets,
        tags=["multi-task-learning", "hf-dbmtl", *method, *content.tags],
        metrics=sorted({_visible(metric) for metric in mains.values() if metric}) or None,
        model_name=_visible(content.model_name),
        eval_results=_eval_results(content, mains) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        content=content,
        tasks=[_task_row(content, name, mains[name]) for name in content.tasks],
        results=[_result_row(content, name, mains[name]) for name in content.tasks if content.results.get(name)],
        first_task=next(iter(content.tasks), None),
        declared=all(task.get("kind") for task in content.tasks.values()),
        location=content.repo_id or f"path/to/{content.model_name}",
        processor=PROCESSORS.get(content.modality, "AutoProcessor"),
        example=repr("Some text.") if content.modality == "text" else "...",
        asked=repr("Some text." if content.modality == "text" else "image.png"),
        exported=next((name for name, task in content.tasks.items() if task.get("kind") in STOCK_KINDS), None),
        methods=METHODS,
        paper=_paper,
        md=_markdown,
        number=_number,
        plain=_plain,
        literal=repr,  # a Python string, whatever it holds, on one line
        quote=quote,
    )


def _main_metric(content: ModelCardContent, name: str) -> str | None:
    task, results = content.tasks[name], content.results.get(name, {})
    if name in content.main_metrics:
        return content.main_metrics[name]
    if task.get("kind"):
        declared = main_metric(task_from_dict(task))
        if declared in results or not results:
            return declared
    return next((metric for metric in results if metric != "loss"), None)


def _eval_results(content: ModelCardContent, mains: Mapping[str, str | None]) -> list[EvalResult]:
    kinds = {
        "multi_label_classification": "classification",
        "masked_language_modeling": "fill-mask",
        "semantic_segmentation": "image-segmentation",
    }
    found = []
    for name, metrics in content.results.items():
        kind = content.tasks.get(name, {}).get("kind", "multi-task")
        task_type = kinds.get(kind, kind.replace("_", "-"))
        if task_type in ("classification", "regression"):
            task_type = f"{content.modality}-{task_type}"
        for metric, value in sorted(metrics.items(), key=lambda item: (item[0] != mains.get(name), item[0] == "loss")):
            if math.isfinite(value):  # the Hub's JSON has no NaN
                found.append(
                    EvalResult(
                        task_type=_visible(task_type),
                        task_name=_visible(name),
                        dataset_type=_visible(name),
                        dataset_name=_visible(name),
                        metric_type=_visible(metric),
                        metric_name=_visible(metric),
                        metric_value=float(value),
                    )
                )
    return found


def _task_row(content: ModelCardContent, name: str, main: str | None) -> list[str]:
    task = content.tasks[name]
    labels = task.get("label_names")
    if labels:
        shown = ", ".join(_short(label) for label in labels[:SHOWN_LABELS])
        shown += f", … ({len(labels)})" if len(labels) > SHOWN_LABELS else ""
    else:
        shown = str(task.get("num_labels", ""))
    sizes = (rows.get(name) for rows in (content.train_rows, content.eval_rows))
    kind = task.get("kind", "its own").replace("multi_label", "multi-label").replace("_", " ")
    cells = [name, kind, shown, main or "", *(f"{size:,}" if size is not None else "" for size in sizes)]
    return [_markdown(cell) for cell in cells]


def _result_row(content: ModelCardContent, name: str, main: str | None) -> list[str]:
    metrics, baseline = content.results[name], content.baselines.get(name, {})
    others = ", ".join(f"{metric} {_number(value)}" for metric, value in metrics.items() if metric != main)
    cells = [name, main or "", _number(metrics.get(main or "")), _number(baseline.get(main or "")), others]
    return [_markdown(cell) for cell in cells]


def _paper(text: str) -> str:
    """A paper with the link to where it lies."""
    title, _, number = text.partition(", arXiv ")
    return f"[{_markdown(title)}](https://arxiv.org/abs/{quote(number)})" if number else _markdown(text)


def _number(value: Any) -> str:
    """A measured number to four digits; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _plain(value)
    if abs(value) < 1e-6 or 1e-3 <= abs(value) < 1e4:  # 0 to rounding: the R2 of a mean
        return f"{value if abs(value) >= 1e-6 else 0.0:.4f}"
    return f"{value:,.1f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _plain(value: Any) -> str:
    """A value that somebody set, in full."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, default=str) if isinstance(value, (bool, dict, list)) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 1]}…"


def _visible(text: str) -> str:
    """`text` in one line: line ends, control characters, marks of direction and lone surrogates as their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _markdown(text: Any) -> str:
    """`text` as Markdown that shows it as it is, also in the cell of a table."""
    text = html.escape(_visible(str(text)), quote=False).replace("$", "&#36;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # an underscore inside a word is no emphasis


def _versions() -> dict[str, str]:
    from . import __version__

    found = {"hf_dbmtl": __version__}
    for name in FRAMEWORKS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
