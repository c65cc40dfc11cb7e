"""`pipeline("multi-task", model=...)`: one pass of the encoder, and the answer of every task with the names of its labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline

from .features import features, flatten_choices
from .pipeline_answers import ANSWERS, Question


__all__ = ["MultiTaskPipeline"]

LOGITS = "logits/"  # of a task, in the flat dictionary that a pipeline can cut into rows
# Made in `preprocess` for the answers; the encoder does not take it.
BESIDE = ("special_tokens_mask", "offset_mapping", "context_offsets", "context", "choices", "image_size")
INPUT = "a text, {'text': ..., 'text_pair': ...}, {'question': ..., 'context': ...} or {'text': ..., 'choices': [...]}"


class MultiTaskPipeline(Pipeline):
    """
    Answers every task of a [`MultiTaskModel`] about a text or an image, on one pass of the encoder.

    ```python
    from transformers import pipeline

    ask = pipeline("multi-task", model="path/to/model")  # with trust_remote_code=True where hf_dbmtl is not installed
    ask("Some text.")  # {"topic": {"label": "sport", "score": 0.93}, "stars": 4.1, ...}
    ask(["One.", "Two."], batch_size=2, tasks=["topic"], top_k=None)
    ```

    An input is a text, a pair `{"text": ..., "text_pair": ...}` or `{"question": ..., "context": ...}`, choices with a text
    in front of each or without, `{"text": ..., "choices": [...]}`, or an image (of PIL, a path or a URL). What comes out, by task:

    - classification: `{"label", "score"}` with the probability, or a list of the `top_k` best of these;
    - multi-label classification: a list of `{"label", "score"}`, the best first, of the labels that are above `threshold`;
    - regression: the number, or for several `{name: number}`, a list where they have no names;
    - token classification: a list of `{"entity", "score", "index", "word", "start", "end"}`, one per token, in the words of
      the stock pipeline; special tokens and the label `"O"` are left out;
    - question answering, about pairs only: `{"answer", "score", "start", "end"}`; a text that is too long is cut;
    - multiple choice, about choices only, and then alone: `{"choice", "text", "score"}`, its index and what it says, and
      `"label"` where the choices have names;
    - segmentation, depth and normals: `{"segmentation", "labels"}`, `{"predicted_depth"}`, `{"normals"}`, tensors of the
      size of the image.

    Masked tokens are an auxiliary task and have no answer.

    Args:
        tasks (`list[str]`, *optional*):
            The tasks to answer; by default all that have an answer to such an input.
        top_k (`int`, *optional*, defaults to 1):
            How many labels a classification gives; `None` for all.
        threshold (`float`, *optional*, defaults to 0.5):
            From which probability on a label of a multi-label classification holds.
        tokenizer_kwargs (`dict`, *optional*):
            For the tokenizer, such as `{"max_length": 128}`. What is too long is truncated by default.
    """

    _load_tokenizer: Any = None  # where there is one: images need none
    _load_image_processor: Any = None
    _load_feature_extractor: Any = False
    _load_processor: Any = False
    _load_video_processor: Any = False
    model: Any
    tokenizer: Any
    image_processor: Any

    def _sanitize_parameters(
        self, tasks: str | list[str] | None = None, tokenizer_kwargs: dict[str, Any] | None = None, **answering: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := answering.keys() - {"top_k", "threshold"}:
            raise TypeError(f"{', '.join(unknown)}: this pipeline takes tasks, top_k, threshold and tokenizer_kwargs.")
        known = getattr(self.model, "tasks", None)
        if not isinstance(known, dict):
            raise TypeError(f"The pipeline 'multi-task' is for a MultiTaskModel, not a {type(self.model).__name__}.")
        names = [tasks] if isinstance(tasks, str) else tasks
        for name in names or ():
            if name not in known:
                raise ValueError(f"Unknown task {name!r}: this model has {', '.join(map(repr, known))}.")
            if known[name].kind not in ANSWERS:
                raise ValueError(f"Task {name!r}: there is no answer for {known[name].kind}.")
        return tokenizer_kwargs or {}, {} if names is None else {"tasks": list(names)}, answering

    def preprocess(self, input_: Any, **tokenizer_kwargs: Any) -> dict[str, Any]:
        if self.model.main_input_name == "pixel_values":
            return self._image(input_)
        if self.tokenizer is None:
            raise ValueError("There is no tokenizer beside the model: pass tokenizer=... to pipeline.")
        if not isinstance(input_, (str, dict)):
            raise TypeError(f"An input is {INPUT}, got {type(input_).__name__}.")
        given: dict[str, Any] = {"text": input_} if isinstance(input_, str) else dict(input_)
        if given.keys() == {"question", "context"}:
            given = {"text": given["question"], "text_pair": given["context"]}
        if given.keys() in ({"text", "choices"}, {"choices"}):
            return self._choices(given, {"truncation": True, **tokenizer_kwargs})
        if given.keys() not in ({"text"}, {"text", "text_pair"}):
            raise ValueError(f"An input is {INPUT}, got the keys {', '.join(map(repr, given))}.")
        return self._text(given, tokenizer_kwargs)

    def _text(self, given: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
        """The tokens, and for the tasks that speak of single ones where they stand."""
        kinds, fast = {task.kind for task in self.model.tasks.values()}, self.tokenizer.is_fast
        asks = "question_answering" in kinds and "text_pair" in given
        if asks and not fast:
            raise ValueError("Answers to questions need a fast tokenizer, which knows where a token stands.")
        encoded = self.tokenizer(
            **given,
            return_tensors="pt",
            return_special_tokens_mask="token_classification" in kinds,
            return_offsets_mapping=fast and (asks or "token_classification" in kinds),
            **{"truncation": "only_second" if asks else True, **options},
        )
        row: dict[str, Any] = dict(encoded)
        if asks:
            inside = torch.tensor([[part == 1 for part in encoded.sequence_ids(0)]])
            row |= {"context": given["text_pair"], "context_offsets": row["offset_mapping"] * inside.unsqueeze(-1)}
        return row

    def _choices(self, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """A text with each of the choices; rows of one length with `max_length`, so that several make a batch."""
        choices = list(given["choices"])
        padding = "max_length" if "max_length" in options else True
        texts = [[given["text"]] * len(choices)] if "text" in given else []
        encoded = self.tokenizer(*texts, choices, return_tensors="pt", padding=padding, **options)
        return {key: value.unsqueeze(0) for key, value in encoded.items()} | {"choices": choices}

    def _image(self, inputs: Any) -> dict[str, Any]:
        from transformers.image_utils import load_image

        if self.image_processor is None:
            raise ValueError("There is no image processor beside the model: pass image_processor=... to pipeline.")
        image = load_image(inputs)
        row = dict(self.image_processor(images=image, return_tensors="pt"))
        return row | {"image_size": torch.tensor([[image.height, image.width]])}

    def _forward(  # type: ignore[override]
        self, input_tensors: dict[str, Any], tasks: list[str] | None = None
    ) -> dict[str, Any]:
        beside = {key: input_tensors[key] for key in BESIDE if key in input_tensors}
        inputs = {key: value for key, value in input_tensors.items() if key not in BESIDE}
        suited = self._suited(inputs, beside)
        names = suited if tasks is None else tasks
        if unsuited := [name for name in names if name not in suited]:
            raise ValueError(
                f"Task {unsuited[0]!r} ({self.model.tasks[unsuited[0]].kind}) has no answer to such an input: questions "
                "are asked about {'question': ..., 'context': ...}, choices made among {'text': ..., 'choices': [...]}."
            )
        config, heads = self.model.config, self.model.heads
        outputs = self.model.encoder(**flatten_choices(inputs), return_dict=True)
        rows: dict[str, Any] = {}
        for name in names:
            seen = features(heads[name].level, outputs, config.pooling, inputs, config.encoder)
            rows[f"{LOGITS}{name}"] = heads[name](seen)
        return rows | beside | {key: inputs[key] for key in ("input_ids",) if key in inputs}

    def _suited(self, inputs: dict[str, Tensor], beside: dict[str, Any]) -> list[str]:
        """The tasks that have an answer to such an input."""
        choosing = "input_ids" in inputs and inputs["input_ids"].ndim == 3
        kinds = {"multiple_choice"} if choosing else ANSWERS.keys() - {"multiple_choice"}
        if "context" not in beside:
            kinds = kinds - {"question_answering"}
        return [name for name, task in self.model.tasks.items() if task.kind in kinds]

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, top_k: int | None = 1, threshold: float = 0.5
    ) -> dict[str, Any]:
        asked, answers = Question(model_outputs, self.tokenizer, top_k, threshold), {}
        for key, logits in model_outputs.items():
            if key.startswith(LOGITS):
                task = self.model.tasks[key.removeprefix(LOGITS)]
                answers[key.removeprefix(LOGITS)] = ANSWERS[task.kind](task, logits[0].float(), asked)
        return answers
