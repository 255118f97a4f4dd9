"""Load a model by its name: a Hub id, a local folder, one that `karma.models.made` makes, an adapter on one of these.

A model behind an API (`karma.models.api`) has no weights here: it can be described and asked, not loaded. A model is
named in an experiment's `models` and described by a `ModelSpec`; functions here take that map (name -> specification as
a dictionary, `Job.models`) and a name.
Decision: a folder is checked before anything of it is loaded (`karma.models.folder`), its tokenizer against its
vocabulary; what transformers would fill with random numbers is an error here. Limit: of a Hub model that is not fetched
yet nothing is known before it is loaded.
"""

from pathlib import Path
from typing import Any

from karma.errors import InputError, show_line
from karma.files.reading import compute_digest, compute_file_digest, load_json
from karma.models.folder import check_folder, check_whole, from_pretrained, load_config, read_header
from karma.models.made import add_noise, build_random, build_tokenizer, drop_layers, prepare_packaged

Specs = dict[str, dict[str, Any]]


def choose_device(wanted: str = "auto") -> str:
    """Return "cuda" or "cpu".

    Raises:
        InputError: CUDA is wanted and there is none.
    """
    import torch

    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {wanted}: choose from auto, cpu, cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device is cuda, but torch sees no CUDA device here: set it to auto or cpu")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def choose_dtype(wanted: str = "auto", device: str = "cpu") -> str:
    """Return "bfloat16" where the device computes in it (three to four times faster), else "float32".

    A CPU without AVX512-BF16 or AMX emulates bfloat16 and is slower with it.
    """
    import torch

    if wanted not in ("auto", "float32", "bfloat16"):
        raise InputError(f"dtype {wanted}: choose from auto, float32, bfloat16")
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def find_location(spec: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` takes for a Hub, local or packaged model."""
    if spec["packaged"]:
        return str(prepare_packaged(spec["packaged"])), {}
    if spec["path"]:
        if not Path(spec["path"]).is_dir():
            raise InputError(f"model folder {spec['path']} does not exist")
        return spec["path"], {}
    return spec["hub"], {"revision": spec["revision"]} if spec["revision"] else {}


def get_spec(models: Specs, name: str) -> dict[str, Any]:
    """Return a model's specification; raise where there is none, or it is behind an API."""
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
    spec = get_spec(models, name)
    if spec["perturbed"] or spec["random"] or spec.get("adapter"):
        raise InputError(f"model '{name}' is made in memory: ask it with transformers, or save it to a folder first")
    return find_location(spec)


def is_reward_model(models: Specs, name: str) -> bool:
    """Tell whether a folder, an adapter or a fetched Hub model is a reward model: it rates responses and writes none.

    Of a Hub model that is not fetched yet nothing is known.
    """
    spec = models.get(name, {})
    if adapter := spec.get("adapter"):
        config = load_config(Path(adapter) / "adapter_config.json", f"model '{name}' (the adapter {adapter})")
        return config.get("task_type") == "SEQ_CLS"
    file = Path(spec["path"]) / "config.json" if spec.get("path") else None
    if spec.get("hub"):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(spec["hub"], "config.json", revision=spec["revision"])
        file = Path(found) if isinstance(found, str) else None
    config = load_json(file) if file and file.is_file() else {}
    kinds = config.get("architectures") if isinstance(config, dict) else None
    return isinstance(kinds, list) and any(str(kind).endswith("ForSequenceClassification") for kind in kinds)


def refuse_reward_model(models: Specs, name: str) -> None:
    """Raise an InputError where what is to write, or to be tuned, is a reward model."""
    if is_reward_model(models, name):
        raise InputError(
            f"model '{name}' is a reward model: it rates responses and writes none; name it as annotation.judge or "
            "self_play.scorer_model, and here a language model"
        )


PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def load_tokenizer(models: Specs, name: str):
    """Load a model's tokenizer, padding on the left (for generation) with a padding token.

    A base model without a chat template gets a plain one (turns as "User: ..." and "Assistant: ..."), with a warning.
    """
    from transformers import AutoTokenizer

    spec = get_spec(models, name)
    if spec["perturbed"] or spec.get("adapter"):
        return load_tokenizer(models, spec["perturbed"] or spec["base"])
    if spec["random"]:
        return build_tokenizer()
    location, extra = find_location(spec)
    if spec["path"]:
        check_folder(Path(location), name)
    tokenizer = from_pretrained(AutoTokenizer, location, name, **extra)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise InputError(f"model '{name}' ({location}): its tokenizer has no token that ends a text (eos_token)")
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        print(f"note: {name} has no chat template; it is asked in plain 'User: ... Assistant:' turns")
        tokenizer.chat_template = PLAIN_TEMPLATE
    _check_tokenizer(tokenizer, Path(location) if spec["path"] else None, name)
    return tokenizer


def load_model(models: Specs, name: str, dtype: str = "float32", device: str = "cpu"):
    """Load a causal language model in evaluation mode.

    Args:
        models: name -> specification (`Job.models`).
        name: which one.
        dtype: "float32" or "bfloat16". device: "cpu" or "cuda".
    """
    import torch
    from transformers import AutoModelForCausalLM

    spec, torch_dtype = get_spec(models, name), getattr(torch, dtype)
    refuse_reward_model(models, name)
    if spec.get("adapter"):
        from peft import PeftModel

        base = load_model(models, spec["base"], "float32")  # merged, then rounded: an adapter changes weights little
        read_header(Path(spec["adapter"]) / "adapter_model.safetensors")
        model = PeftModel.from_pretrained(base, spec["adapter"]).merge_and_unload()
    elif spec["perturbed"]:
        model = load_model(models, spec["perturbed"], "float32")
        drop_layers(model, spec["drop_layers"], name)
        add_noise(model, spec["noise"], spec["noise_seed"])
    elif spec["random"]:
        model = build_random(spec)
    else:
        location, extra = find_location(spec)
        model = _load_whole(AutoModelForCausalLM, location, name, dtype=torch_dtype, **extra)
    return model.to(device=device, dtype=torch_dtype).eval()


def load_shape(models: Specs, name: str) -> tuple[Any, int]:
    """Return a model's configuration and its number of parameters, without its weights."""
    empty = build_empty(models, name)
    return empty.config, empty.num_parameters()


def _load_whole(kind, location: str, name: str, **options):
    """Load weights; raise where one is missing, which would be random, or is no finite number."""
    model, report = from_pretrained(kind, location, name, use_safetensors=True, output_loading_info=True, **options)
    check_whole(report["missing_keys"], model.named_parameters(), f"model '{name}' ({location})")
    return model


def build_empty(models: Specs, name: str) -> Any:
    """Return a causal language model of a model's shape, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = get_spec(models, name)
    if spec.get("adapter"):
        return build_empty(models, spec["base"])
    if spec["perturbed"]:
        whole = build_empty(models, spec["perturbed"])
        drop_layers(whole, spec["drop_layers"], name)
        return whole
    if spec["random"]:
        return build_random(spec)
    location, extra = find_location(spec)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(from_pretrained(AutoConfig, location, name, **extra))


def _check_tokenizer(tokenizer: Any, folder: Path | None, name: str) -> None:
    """Raise where a tokenizer's tokens have no weights, or its chat format cannot be used."""
    sizes = load_json(folder / "config.json") if folder else {}
    size = sizes.get("vocab_size")
    if size is not None and len(tokenizer) > size:
        counts = f"its tokenizer has {len(tokenizer):,} tokens, its weights {size:,}"
        raise InputError(f"model '{name}' ({folder}) cannot be loaded: {counts}")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise InputError(f"model '{name}': model_max_length of its tokenizer is {tokenizer.model_max_length!r:.40}")
    asked = [{"role": "user", "content": "karma"}]
    try:
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "kinship"}], tokenize=False)
    except Exception as error:  # Jinja's kinds, and whatever a template raises
        reason = show_line(" ".join(str(error).split())) or type(error).__name__
        raise InputError(f"model '{name}': its chat template cannot be used: {reason}") from error
    if "karma" not in text:
        raise InputError(f"model '{name}': its chat template leaves out what it is asked: correct it")
    if "kinship" not in answered:
        raise InputError(f"model '{name}': its chat template leaves out what is answered: correct it")


def compute_weights_digest(models: Specs, name: str) -> str:
    """Return a digest of a model's weights, without loading them: file contents, or what makes them.

    Two names of the same weights have the same digest; other weights under the same path have another one.
    """
    if api := models.get(name, {}).get("api"):  # nothing else is known of its weights
        return compute_digest(["api", api["base_url"].rstrip("/"), api["model"]])
    spec = get_spec(models, name)
    if spec["perturbed"]:
        return compute_digest([compute_weights_digest(models, spec["perturbed"]), spec["noise"], spec["noise_seed"],
                               spec["drop_layers"]])  # fmt: skip
    if spec["random"]:
        return compute_digest([spec["random"], spec["seed"]])
    if spec.get("adapter"):
        adapter = compute_file_digest(Path(spec["adapter"]) / "adapter_model.safetensors")
        return compute_digest([compute_weights_digest(models, spec["base"]), adapter])
    location, extra = find_location(spec)
    if spec["hub"]:
        location = _find_snapshot(location, extra.get("revision"))
    weights = sorted(Path(location).glob("*.safetensors"))
    if not weights:
        raise InputError(f"model '{name}': no weights (safetensors) in {location}")
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
        raise InputError(f"Hub model '{hub}' cannot be fetched: {show_line(str(error).splitlines()[0])}") from error
