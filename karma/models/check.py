"""Whether a model can be asked, before anything is asked or written: its parts, its weights, an adapter with its base.

Decision: the weights of a folder are read once more than they need to be; a model that is found wanting after an hour's
work costs more. Limit: of a Hub model the tokenizer alone is opened, which fetches it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from karma.errors import InputError, show_line
from karma.models.folder import check_whole, from_pretrained, list_files, load_config, quiet, read_header
from karma.models.load import Specs, build_empty, find_location, get_spec, load_tokenizer, refuse_reward_model


def check_length(models: Specs, name: str, n_tokens: int, option: str) -> None:
    """Raise an InputError where a model has too few positions for answers of so many tokens; a Hub's is not fetched.

    Args:
        models, name: whose. n_tokens: of an answer. option: that says so, for the message.
    """
    from transformers import AutoConfig

    spec = models[name]
    if not (spec["path"] or spec["packaged"]):
        return
    config = from_pretrained(AutoConfig, find_location(spec)[0], name)
    if (most := getattr(config, "max_position_embeddings", None)) is not None and n_tokens >= most:
        raise InputError(f"{option} {n_tokens}: '{name}' has {most:,} positions for prompt and answer: give fewer")


def check_model(models: Specs, name: str) -> None:
    """Raise an InputError where a model would be refused when it is asked, before anything is written or asked.

    The weights of a folder or an adapter are read once, one in memory at a time; of others the tokenizer alone is
    opened.

    Args:
        models: name -> specification. name: which one; one behind an API is not looked at.
    """
    from transformers import AutoModelForCausalLM

    if models.get(name, {}).get("api"):
        return
    spec = get_spec(models, name)
    if adapter := spec.get("adapter"):
        here = f"model '{name}' (the adapter {adapter})"
        try:
            check_model(models, spec["base"])
        except InputError as error:
            raise InputError(f"{here}: {error}") from error
        refuse_reward_model(models, name)
        _check_adapter(models, name, here)
        _check_weights([Path(adapter) / "adapter_model.safetensors"], (), here)
        return
    load_tokenizer(models, name)
    refuse_reward_model(models, name)
    if spec["path"]:
        folder, here = Path(spec["path"]), f"model '{name}' ({spec['path']})"
        _, report = from_pretrained(AutoModelForCausalLM, str(folder), name, use_safetensors=True, device_map="meta",
                                     output_loading_info=True)  # fmt: skip
        _check_weights(list_files(folder, here), report["missing_keys"], here)


def _check_adapter(models: Specs, name: str, here: str) -> None:
    """Raise where an adapter's settings make no adapter of its base model, or one of other weights than it has."""
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    folder = Path(models[name]["adapter"])
    load_config(folder / "adapter_config.json", here)
    found = read_header(folder / "adapter_model.safetensors")
    try:
        with torch.device("meta"), quiet():
            empty = get_peft_model(build_empty(models, models[name]["base"]), PeftConfig.from_pretrained(str(folder)))
            wanted = {weight: list(values.shape) for weight, values in
                      get_peft_model_state_dict(empty, save_embedding_layers=False).items()}  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # PEFT raises many kinds; each becomes one line
        reason = show_line(" ".join(str(error).split())) or type(error).__name__
        raise InputError(f"{here} cannot be loaded: adapter_config.json makes no adapter ({reason})") from error
    shapes = {weight: tensor.shape for weight, tensor in found.items() if weight in wanted or "lora_" in weight}
    if odd := sorted(weight for weight in {*wanted, *shapes} if wanted.get(weight) != shapes.get(weight)):
        has, says = (f"shape {known[odd[0]]}" if odd[0] in known else "no place" for known in (shapes, wanted))
        raise InputError(f"{here} cannot be loaded: {odd[0]} has {has} among its weights, {says} by its config")


def _check_weights(files: Sequence[Path], missing: Collection[str], here: str) -> None:
    from safetensors import safe_open

    for file in files:
        read_header(file)
        with safe_open(file, "pt") as weights:
            each = ((weight, weights.get_tensor(weight)) for weight in weights.keys())  # noqa: SIM118 - no mapping
            check_whole(missing, each, here)
