"""The settings of `hf-dbmtl train` beside the training arguments: the model, the tasks and their data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ..configuration import POOLINGS
from ..tasks import KINDS
from .columns import as_list, columns_of_labels, columns_of_texts
from .values import alternatives


__all__ = [
    "DataFiles",
    "DatasetSettings",
    "GroupSettings",
    "Setting",
    "Splits",
    "TaskSettings",
    "TrainSettings",
    "settings_of",
]


def _setting(help: str, default: Any = None, choices: tuple[str, ...] | None = None) -> Any:
    metadata = {"help": help} | ({"choices": choices} if choices else {})
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Splits:
    """Names of splits, in the words of `datasets.load_dataset` (`train[:90%]` is one)."""

    train: str | None = _setting("The split to train on, 'train' by default.")
    eval: str | None = _setting("The split to evaluate on, by default 'validation', or else 'test'.")
    validation: str | None = _setting(
        "The split on which auto_lambda and moml tune their weights; no other looks at it."
    )


@dataclass
class DataFiles:
    """Files by what they are for."""

    train: str | list[str] = _setting("Files to train on; * and ** are welcome.", MISSING)
    eval: str | list[str] | None = _setting("Files to evaluate on.")


@dataclass
class DatasetSettings:
    """Where the data of a task come from."""

    path: str | None = _setting("A dataset of the Hub, or a local file or folder.")
    name: str | None = _setting("The configuration of the dataset, such as 'mrpc' of nyu-mll/glue.")
    revision: str | None = _setting("A branch, tag or commit of the dataset on the Hub.")
    split: Splits | None = _setting("Which split is for training and which for evaluation.")
    data_files: DataFiles | str | list[str] | None = _setting("parquet, csv, tsv, json, jsonl or arrow files.")
    delimiter: str | None = _setting("What separates the columns of csv files; a comma, or in .tsv files a tab.")
    eval_fraction: float | None = _setting(
        "The share of the training rows to hold out for evaluation; 0 trains without evaluation."
    )
    validation_fraction: float | None = _setting(
        "The share of the training rows on which auto_lambda and moml tune their weights, held out of the training."
    )
    streaming: bool = _setting(
        "Whether rows are read as they are needed, without a copy on disk; of all tasks or of none. Needs max_steps.",
        False,
    )
    buffer_size: int | None = _setting(
        "With streaming: rows among which the next is drawn, by default 1000; 0 for none."
    )


@dataclass
class GroupSettings:
    """The rows that several tasks share, each with a label column of its own: the encoder runs once for all of them."""

    dataset: DatasetSettings = _setting("Where the data come from.", MISSING)
    text: str | list[str] = _setting(
        "The column of the texts; two make a pair. With a token level task: of the words.", "text"
    )
    image: str | None = _setting(
        "The column of the images, or of their paths, in place of texts; a folder's is 'image'."
    )
    max_length: int | None = _setting("Tokens of an input, in place of the run's.")
    max_train_samples: int | None = _setting("Rows to train on, drawn at random, in place of the run's.")
    max_eval_samples: int | None = _setting("Rows to evaluate on, drawn at random, in place of the run's.")

    @property
    def texts(self) -> list[str]:
        """The columns of the texts."""
        return as_list(self.text)


@dataclass
class TaskSettings:
    """A task and its data."""

    kind: str = _setting("What is predicted.", MISSING, tuple(KINDS))
    dataset: DatasetSettings | None = _setting("Where the data come from. Required without `group`.")
    group: str | None = _setting(
        "The group, among `groups`, whose rows are the task's, in place of a dataset of its own."
    )
    text: str | list[str] | None = _setting(
        "The column of the texts, by default 'text'; two make a pair. Token level: of the words. Questions: [question, "
        "context]. Multiple choice: in front of every choice, [] for none."
    )
    choices: str | list[str] | None = _setting(
        "Multiple choice: the column that holds a list of choices per row, by default 'choices', or columns of one each."
    )
    image: str | None = _setting(
        "The column of the images, or of their paths, in place of texts; a folder's is 'image'."
    )
    label: str | list[str] | None = _setting(
        "The column of the labels, by default 'label'; several make a vector of numbers. Questions: 'answers'. Pixels: of "
        "maps, images of these, or their paths."
    )
    num_labels: int | None = _setting("The number of labels; by default as many as the training data hold.")
    label_names: list[str] | None = _setting("Names of the labels; by default those in the training data.")
    main_metric: str | None = _setting("The metric that enters the average.")
    dropout: float | None = _setting("Dropout in front of the head; by default the encoder's.")
    stride: int | None = _setting(
        "Questions: tokens that two windows of a long text share, by default 128, a third of max_length at most."
    )
    max_answer_length: int | None = _setting("Questions: tokens of an answer at most, by default 30.")
    mlm_probability: float | None = _setting(
        "Masked language modelling: the share of tokens to predict, by default 0.15."
    )
    ignore_index: int | None = _setting("Segmentation: a value of pixels without a label, often 255.")
    max_length: int | None = _setting("Tokens of an input, in place of the run's.")
    max_train_samples: int | None = _setting("Rows to train on, drawn at random, in place of the run's.")
    max_eval_samples: int | None = _setting("Rows to evaluate on, drawn at random, in place of the run's.")

    @property
    def texts(self) -> list[str]:
        """The columns of the texts: the one or two named, else those of the kind."""
        return columns_of_texts(self.kind, self.text, self.labels)

    @property
    def labels(self) -> list[str]:
        """The columns of the labels: those named, else that of the kind."""
        return columns_of_labels(self.kind, self.label)

    @property
    def choice_columns(self) -> list[str]:
        """The columns of the choices, of a task that has some."""
        return as_list(self.choices or "choices") if self.kind == "multiple_choice" else []


@dataclass
class TrainSettings:
    """A run, without its training arguments."""

    model_name_or_path: str = _setting("The encoder: a name of the Hub, or a folder.", MISSING)
    tasks: dict[str, TaskSettings] = _setting("The tasks by name.", MISSING)
    groups: dict[str, GroupSettings] = field(
        default_factory=dict, metadata={"help": "The rows that several tasks share, by a name of your own."}
    )
    tokenizer_name: str | None = _setting("The tokenizer, where it does not lie beside the encoder.")
    model_revision: str | None = _setting("A branch, tag or commit of the encoder on the Hub.")
    trust_remote_code: bool = _setting("Whether code that comes with the encoder may run.", False)
    pooling: str | None = _setting("What heads at sequence level see; by default the encoder decides.", None, POOLINGS)
    max_length: int | None = _setting("Tokens of an input; by default as many as the encoder takes.")
    max_train_samples: int | None = _setting("Rows of each task to train on, drawn at random; by default all.")
    max_eval_samples: int | None = _setting("Rows of each task to evaluate on, drawn at random; by default all.")
    early_stopping_patience: int | None = _setting(
        "End training after so many evaluations in which metric_for_best_model, the average or a task's, got no better."
    )
    early_stopping_threshold: float = _setting("What counts as better, for early_stopping_patience.", 0.0)
    conflict_steps: int | float | None = _setting(
        "Log the cosines between the tasks' gradients every so many steps, below 1 as a share of all; by default never."
    )

    @property
    def inputs(self) -> dict[str, TaskSettings | GroupSettings]:
        """Where the rows come from: the tasks that have data of their own, and the groups, in the order of the tasks."""
        names = dict.fromkeys(task.group or name for name, task in self.tasks.items())
        return {name: self.groups.get(name) or self.tasks[name] for name in names}

    def members(self, name: str) -> dict[str, TaskSettings]:
        """The tasks of a group, or a task alone."""
        return {task: one for task, one in self.tasks.items() if (one.group or task) == name}


@dataclass(frozen=True)
class Setting:
    """A setting, as a dataclass declares it."""

    hint: Any
    choices: tuple[Any, ...] | None
    help: str
    default: Any
    required: bool

    @property
    def group(self) -> type | None:
        """The dataclass that a mapping given here must be of."""
        return next((kind for kind in alternatives(self.hint) if isinstance(kind, type) and is_dataclass(kind)), None)

    @property
    def group_by_name(self) -> type | None:
        """The dataclass of the values of a mapping from names of the user's own."""
        args = get_args(self.hint) if get_origin(self.hint) is dict else ()
        return args[1] if args and isinstance(args[1], type) and is_dataclass(args[1]) else None


def settings_of(cls: type) -> dict[str, Setting]:
    """The fields of a dataclass, with their types resolved."""
    hints = get_type_hints(cls)
    return {one.name: _read(one, hints[one.name]) for one in fields(cls) if one.init}


def _read(one: Field, hint: Any) -> Setting:
    metadata: Mapping[str, Any] = one.metadata
    default = one.default_factory() if one.default_factory is not MISSING else one.default
    choices = metadata.get("choices")
    return Setting(
        hint=hint,
        choices=tuple(choices) if choices else None,
        help=metadata.get("help", ""),
        default=default,
        required=default is MISSING,
    )
