"""One transformer that learns several tasks at once, with their gradients balanced (DB-MTL, arXiv 2308.12029)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration import MultiTaskConfig
from .heads import register_head
from .modeling import MultiTaskModel, MultiTaskOutput
from .pipeline import MultiTaskPipeline
from .tasks import (
    Classification,
    DepthEstimation,
    MaskedLanguageModeling,
    MultiLabelClassification,
    MultipleChoice,
    QuestionAnswering,
    Regression,
    SemanticSegmentation,
    SurfaceNormals,
    TokenClassification,
)


if TYPE_CHECKING:
    from .balancing import make_balancer
    from .callbacks import MultiTaskProgressCallback, PlotCallback
    from .conflicts import ConflictCallback
    from .encoding import encode_choices, encode_questions, encode_words
    from .export import export_task
    from .metrics import delta_p
    from .preemption import PreemptionCallback
    from .tensorboard import MultiTaskTensorBoardCallback
    from .trainer import MultiTaskTrainer
    from .training_args import MultiTaskTrainingArguments

__version__ = "0.1.0"

__all__ = [
    "Classification",
    "ConflictCallback",
    "DepthEstimation",
    "MaskedLanguageModeling",
    "MultiLabelClassification",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskPipeline",
    "MultiTaskProgressCallback",
    "MultiTaskTensorBoardCallback",
    "MultiTaskTrainer",
    "MultiTaskTrainingArguments",
    "MultipleChoice",
    "PlotCallback",
    "PreemptionCallback",
    "QuestionAnswering",
    "Regression",
    "SemanticSegmentation",
    "SurfaceNormals",
    "TokenClassification",
    "delta_p",
    "encode_choices",
    "encode_questions",
    "encode_words",
    "export_task",
    "make_balancer",
    "register_head",
]

# Importing transformers' Trainer takes seconds: who only loads a model does not wait for it.
_LAZY = {
    "ConflictCallback": ".conflicts",
    "MultiTaskTensorBoardCallback": ".tensorboard",
    "MultiTaskProgressCallback": ".callbacks",
    "MultiTaskTrainer": ".trainer",
    "MultiTaskTrainingArguments": ".training_args",
    "PlotCallback": ".callbacks",
    "PreemptionCallback": ".preemption",
    "delta_p": ".metrics",
    "encode_choices": ".encoding",
    "encode_questions": ".encoding",
    "encode_words": ".encoding",
    "export_task": ".export",
    "make_balancer": ".balancing",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# so that AutoModel.from_pretrained loads a saved folder without trust_remote_code
AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig)
AutoModel.register(MultiTaskConfig, MultiTaskModel)
PIPELINE_REGISTRY.register_pipeline("multi-task", MultiTaskPipeline, pt_model=AutoModel, type="multimodal")
