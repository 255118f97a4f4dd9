"""Load a model by its name: a Hub id, a local folder, one that `karma.models.made` makes, an adapter on one of these.

A model behind an API (`karma.models.api`) has no weights here: it can be described and asked, not loaded. A model is
named in an experiment's `models` and described by a `ModelSpec`; functions here take that map (name -> specification as
a dictionary, `Job.models`) and a name.
"""

from pathlib import Path
from typing import Any

from karma.errors import InputError, KarmaError
from karma.files import compute_digest, compute_file_digest
from karma.models.made import add_noise, build_random, build_tokenizer, drop_layers, prepare_packaged

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


PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


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
        drop_layers(model, spec["drop_layers"], name)
        add_noise(model, spec["noise"], spec["noise_seed"])
    elif spec["random"]:
        model = build_random(spec)
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
        config = build_random(spec).config
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
