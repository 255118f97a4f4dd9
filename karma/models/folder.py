"""A model's folder before anything of it is loaded: its parts, the headers of its weights, and whether they are whole.

Weights are safetensors alone: a pickle could run code, and is refused. `from_pretrained` is the one call by which
transformers opens a folder or a Hub model: without code of the model's own, and with one line for whatever it raises.
"""

import logging
import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from karma.errors import InputError, show_line
from karma.files.reading import check_file, load_json, parse_json, read_text

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_LARGEST = {  # beyond which a shape is a mistake, and would take hours to build even without weights
    "num_hidden_layers": 10_000, "hidden_size": 1_000_000, "intermediate_size": 10_000_000, "vocab_size": 100_000_000,
    "num_attention_heads": 100_000,
}  # fmt: skip

_POSITIVE = {  # setting -> its least value, below which every answer is NaN, or the first one fails
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "repetition_penalty",
                     "lora_alpha"), sys.float_info.min),
    **dict.fromkeys(("head_dim", "num_beams", "num_return_sequences", "r"), 1),
    "max_position_embeddings": 32,  # fewer hold no prompt
}  # fmt: skip
_NO_OBJECT = "{here} cannot be loaded: {file} is no JSON object: fetch or save the model again"
_TOKEN_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")


class Tensor(NamedTuple):
    """What a file's header says of a tensor: its type as safetensors calls it ("F32", "BF16", "I8"), and its shape."""

    dtype: str
    shape: list[int]


def check_whole(missing: Collection[str], weights: Iterable[tuple[str, Any]], here: str) -> None:
    """Raise an InputError, which begins with `here`, where weights are missing, or one is no finite number."""
    import torch

    if missing:
        raise InputError(f"{here}: {len(missing)} weights are missing, {min(missing)} among them")
    for weight, values in weights:
        if not torch.isfinite(values).all():
            raise InputError(f"{here}: {weight} holds NaN or infinite weights")


def check_parts(folder: Path, name: str) -> dict[str, Tensor]:
    """Return a folder's weights by name; raise as `check_folder` where a part is missing or broken."""
    here = f"model '{name}' ({folder})"
    if not (folder / "config.json").exists():
        adapter = (folder / "adapter_config.json").exists()
        what = "it is an adapter alone, give the folder that it was trained in" if adapter else "it has no config.json"
        raise InputError(f"{here} cannot be loaded: {what}")
    config = load_config(folder / "config.json", here)
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{here} cannot be loaded: its config.json names no model_type")
    for key, most in _LARGEST.items():
        if key in config and not (type(config[key]) is int and 1 <= config[key] <= most):
            raise InputError(f"{here} cannot be loaded: {key} in its config.json is {config[key]!r:.40}")
    if not any((folder / file).exists() for file in _TOKENIZERS):
        raise InputError(f"{here} cannot be loaded: it has no tokenizer ({', '.join(_TOKENIZERS[:3])}, ...)")
    for file in (*_TOKENIZERS, "chat_template.jinja"):
        if (folder / file).exists():
            check_file(folder / file)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).exists() and not read_text(folder / file).lstrip().startswith("{"):
            raise InputError(_NO_OBJECT.format(here=here, file=file))
    for file in ("config.json", "generation_config.json"):
        if (folder / file).exists():
            _check_ids(load_config(folder / file, here), config.get("vocab_size"), f"its {file}", here)
    return list_weights(folder, here)


def _check_ids(config: dict[str, Any], size: int | None, where: str, here: str) -> None:
    for key in _TOKEN_IDS:
        for one in _as_list(config.get(key)):
            if size is not None and one is not None and one >= size:
                raise InputError(f"{here} cannot be loaded: {key} in {where} is {one}, of {size:,} tokens")


def load_config(file: Path, here: str) -> dict[str, Any]:
    """Return one of a model's JSON files; raise an InputError, which begins with `here`, of an impossible value."""
    config = load_json(file)
    if not isinstance(config, dict):
        raise InputError(_NO_OBJECT.format(here=here, file=file.name))
    for key, value in _list_values(config):
        number, name = isinstance(value, int | float) and not isinstance(value, bool), key.rpartition(".")[2]
        broken = isinstance(value, float) and not math.isfinite(value)
        low = name in _POSITIVE and value is not None and not (number and value >= _POSITIVE[name])
        ids = name in _TOKEN_IDS and not all(type(one) is int or one is None for one in _as_list(value))
        if broken or low or ids:
            raise InputError(f"{here} cannot be loaded: {key} in its {file.name} is {value!r:.40}")
    return config


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _list_values(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting, of those within settings too."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _list_values(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def list_weights(folder: Path, here: str) -> dict[str, Tensor]:
    """Return a folder's weights by name, from the headers of its files."""
    return {weight: tensor for file in list_files(folder, here) for weight, tensor in read_header(file).items()}


def list_files(folder: Path, here: str) -> list[Path]:
    """Return the files that a folder's weights lie in; raise an InputError, which begins with `here`, without any."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = load_json(index)
        shards = shards.get("weight_map") if isinstance(shards, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise InputError(f"{here} cannot be loaded: {index.name} has no weight_map of names to files")
        files = [folder / Path(file).name for file in sorted(set(shards.values()))]
    else:
        files = [folder / "model.safetensors"]
        if not files[0].exists():
            files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
        what = f"{pickled.name} is pickled, and could run code: save it as safetensors" if pickled else "no weights"
        raise InputError(f"{here} cannot be loaded: {what}")
    return files


def read_header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name; one that is none, or was cut off, is an InputError."""
    size = check_file(file).stat().st_size
    with file.open("rb") as stream:
        n_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= n_bytes <= min(size - 8, 100_000_000):
            raise InputError(f"{file} is no safetensors file, or was cut off: fetch it again")
        try:
            header = parse_json(stream.read(n_bytes).decode())
            weights = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
            end = max((tensor["data_offsets"][1] for tensor in weights.values()), default=0)
            found = {name: Tensor(str(tensor["dtype"]), list(tensor["shape"])) for name, tensor in weights.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise InputError(f"{file} is no safetensors file: its header cannot be read") from None
    if size != 8 + n_bytes + end:
        raise InputError(f"{file} was cut off: it has {size:,} of {8 + n_bytes + end:,} bytes; fetch it again")
    return found


def from_pretrained(kind: Any, location: str, name: str, **options: Any) -> Any:
    """Call transformers' `from_pretrained` without code of the model's own; whatever it raises is an InputError."""
    try:
        with quiet():
            return kind.from_pretrained(location, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many kinds; each becomes one line
        reason = show_line(" ".join(str(error).split())) or type(error).__name__
        where = "" if Path(location).is_dir() else f"; if a folder is meant, there is no {location} here"
        raise InputError(f"model '{name}' ({location}) cannot be loaded: {reason}{where}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings of loading to itself: what is wrong is said by who loads."""
    from transformers.utils import logging as theirs

    logger, level, bars = logging.getLogger("transformers"), theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            theirs.enable_progress_bar()


def check_folder(folder: Path, name: str) -> None:
    """Raise an InputError where a folder is no model that can be loaded; no weights are read, only their header.

    Args:
        folder: config.json, weights as safetensors, and a tokenizer. name: the model's, for the message.
    """
    _check_shapes(check_parts(folder, name), folder, name)


def _check_shapes(weights: dict[str, Tensor], folder: Path, name: str) -> None:
    """Raise where weights have other shapes than the model that config.json describes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    here = f"model '{name}' ({folder})"
    wanted = from_pretrained(AutoConfig, str(folder), name)
    try:
        with torch.device("meta"), quiet():
            model = AutoModelForCausalLM.from_config(wanted)
            expected = model.state_dict()
    except Exception as error:  # transformers and torch raise many kinds of an odd shape; each becomes one line
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{here} cannot be loaded: config.json makes no model ({show_line(reason)})") from error
    quantized = getattr(wanted, "quantization_config", None) is not None
    for weight, (dtype, shape) in weights.items():
        if weight in expected and list(expected[weight].shape) != shape:
            raise InputError(
                f"{here} cannot be loaded: {weight} has shape {shape}, config.json says {list(expected[weight].shape)}"
            )
        whole = dtype.startswith(("I", "U", "BOOL")) and not quantized
        if whole and weight in expected and expected[weight].is_floating_point():
            raise InputError(f"{here} cannot be loaded: {weight} holds whole numbers ({dtype}), no weights")
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    own = (weight for weight in weights if not any(re.search(pattern, weight) for pattern in ignored))
    if more := _list_layers(own) - _list_layers(expected):
        n, layers = len(_list_layers(expected)), "layer" if len(more) == 1 else "layers"
        raise InputError(f"{here} cannot be loaded: it has {len(more)} {layers} beyond the {n} of its config.json")
    if not set(expected) & set(weights):
        raise InputError(f"{here} cannot be loaded: its weights are those of another model than config.json describes")


def _list_layers(weights: Iterable[str]) -> set[int]:
    """Return the numbers of the layers that weights belong to, by their names."""
    return {int(found[1]) for weight in weights if (found := re.search(r"\blayers\.(\d+)\.", weight))}
