"""lm-evaluation-harness's model class over a model in this process, whose prompts `read_prompts` reads."""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from karma.models.prefill import read_prompts


class PrefillHFLM(HFLM):
    """HFLM, but for how the prompts of a batch are read before they are answered."""

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        read = read_prompts(self.model, context, options["attention_mask"])
        return super()._model_generate(context, max_length, stop, **options, **read)
