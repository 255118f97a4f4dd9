"""The corpus of bad inputs: what each argument of each command takes, and every way in which such a thing can be bad.

An argument is declared with its kind (`ARGUMENTS`); a kind lists classes of badness (`KINDS`); a class is a function
that writes the bad thing into a folder and returns what stands on the command line (`MAKERS`, by kind and class). So a
new argument is one line and meets every class of its kind. `tests/test_bad_inputs.py` runs them.

A class whose name ends in "?" may also be fine to a command: such a case is to be refused well or done well.
"""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.recorded_files import build

MODELS = ["GPT-4", "bard", "Alpaca-7b", "Starchat", "Vicuna-33b"]
MARKED = "new\nline [bold red]mark[/bold red] \x1b[31m<b>"
TINY = {"random": {"hidden_size": 16, "layers": 1, "heads": 1}}
Make = Callable[[Path, Path], str]  # (folder to write to, folder of good things) -> the value on the command line


@dataclass(frozen=True)
class Case:
    """One bad value of one argument."""

    command: str
    argument: str
    kind: str
    badness: str
    make: Make
    besides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.command} {self.argument}: {self.kind}, {self.badness}"

    @property
    def must_refuse(self) -> bool:
        return not self.badness.endswith("?")

    def build_words(self, folder: Path, good: Path) -> tuple[list[str], str]:
        """Write the bad thing; return the command line and the bad value."""
        value = self.make(folder, good)
        return build_words(self.command, good, {**self.besides, self.argument: value}), value


def build_words(command: str, good: Path, changed: dict[str, Any]) -> list[str]:
    """Return a command's good line with some arguments changed; "@x" is the good thing x, positional ones have no dash."""
    words, places = [command], []
    for name, value in {**LINES[command], **changed}.items():
        for one in value if isinstance(value, list) else [value]:
            text = str(good / one[1:]) if str(one).startswith("@") else str(one)
            if not name.startswith("-"):
                places.append(text)
            elif one is True:
                words.append(name)
            elif one is not None:
                words += [f"{name}={text}"] if name.startswith("--") else [name, text]
    return [words[0], *places, *words[1:]] if all(not p.startswith("-") for p in places) else [*words, "--", *places]


# --- what is good ---------------------------------------------------------------------------------------------------


def write_good(folder: Path) -> None:
    """Write what every command's good line names."""
    rows = [make_row(i) for i in range(24)]
    write_lines(folder / "pool.jsonl", rows)
    build(folder / "recorded.tar.gz")
    (folder / "scores.csv").write_text(
        "origin_model,ifeval,arc_easy,mmlu_pro\n"
        + "".join(f"{m},{20 + 13 * k},{90 - 4 * k * k},{30 + (17 * k) % 40}\n" for k, m in enumerate(MODELS))
    )
    (folder / "other.csv").write_text(
        "who,GSM8K,BBH\n" + "".join(f"{m},{9 * k + 5},{40 - k * k}\n" for k, m in enumerate(MODELS))
    )
    one = {"column": "GSM8K", "unit": "percent", "title": "GSM8K", "capability": "reasoning"}
    columns = {"origin_model": ["who"], "benchmarks": {"gsm8k": one, "bbh": {**one, "column": "BBH", "title": "BBH"}}}
    (folder / "columns.yaml").write_text(yaml.safe_dump(columns))
    (folder / "contaminated.txt").write_text("question 3?\n")
    write_lines(folder / "contaminated.jsonl", [{"instruction": "Question 3?"}])
    score = {"value": 0.2, "low": 0.1, "high": 0.3}
    held = {
        "n_prompts": 9,
        "n_decided": 9,
        "brier_calibrated": score,
        "brier_sampling_error": None,
        "brier_constant": score,
    }
    terms = [{"fact": "s_pref_gap", "coefficient": 4.0, "lowest": 0.0, "highest": 0.5}]
    (folder / "calibration.json").write_text(json.dumps(
        {"version": 1, "source": "x", "score_table": "t.csv", "tie": 0.02, "n_models": 3, "n_prompts": 9,
         "n_decided": 20, "intercept": 0.0, "terms": terms, "held_out": held}))  # fmt: skip
    write_lines(folder / "pairs.jsonl", [
        {"prompt": f"Count to {i}.", "chosen": f"One to {i}, yes.", "rejected": f"No {i}.", "score_chosen": 8.0 + i % 2,
         "score_rejected": 3.0} for i in range(30)])  # fmt: skip
    choices = [{"text": t, "label": c} for t, c in zip(("ice", "fire", "sand", "tea"), "ABCD", strict=True)]
    items = [{"id": f"q{i}", "question": {"stem": f"What is hot, {i}?", "choices": choices}, "answerKey": "B"}
             for i in range(8)]  # fmt: skip
    (folder / "items").mkdir()
    write_lines(folder / "items" / "arc_easy.jsonl", items)
    write_lines(folder / "answers.jsonl", [{"item_id": f"q{i}", "answer": "The answer is B."} for i in range(8)])
    write_lines(folder / "cards.jsonl", [{"id": name, "base_model": "org/base"} for name in MODELS[:3]])
    write_lines(folder / "own_answers.jsonl", [{"origin_model": name, "item_id": i, "extracted": "ABCD"[(i + k) % 4]}
                                               for k, name in enumerate(MODELS[:3]) for i in range(4)])  # fmt: skip
    write_lines(folder / "prompts.jsonl", [{"prompt": f"Name {i} things."} for i in range(6)])
    for name in ("one", "two"):
        write_lines(folder / f"{name}.jsonl",
                    [{"prompt": f"Name {i} things.", "response": f"{name} {i} things"} for i in range(6)])  # fmt: skip
    write_lines(folder / "votes.jsonl", [
        {"question_id": i, "turn": 1, "model_a": MODELS[i % 5], "model_b": MODELS[(i + 1 + i // 5) % 5],
         "winner": ("model_a", "model_b", "tie")[i % 3]} for i in range(60) if i % 5 != (i + 1 + i // 5) % 5])  # fmt: skip
    (folder / "study.yaml").write_text(
        "name: bad-input\nmodels: {a: {random: {hidden_size: 16, layers: 1, heads: 1}}}\npolicies: [a]\n"
        "scores: {table: paper}\n"
    )
    write_model(folder / "model")
    write_tables(folder)
    shutil.copytree(folder / "pairs", folder / "study" / "pairs" / "k_sim")


def write_tables(folder: Path) -> None:
    from karma.commands.binarize import run_binarize
    from karma.pool.parts import EVERYTHING
    from karma.pool.pool import load_pool, save_pool
    from karma.pool.responses import to_hex
    from karma.study.experiment import load_base

    pool = load_pool(folder / "pool.jsonl")
    save_pool((row for batch in pool.read(EVERYTHING) for row in batch.to_pylist()), folder / "pool.parquet")
    (batch,) = pool.batches(None)
    ids = {"row_id": to_hex(batch.row_digest[batch.row]), "response_id": to_hex(batch.response_digest)}
    table = pa.table({**ids, "score": pa.array([float(k % 7) for k in range(len(batch.response))])})
    for name in ("annotations", "densities"):
        pq.write_table(table, folder / f"{name}.parquet")
    base, unset = load_base(), dict.fromkeys(
        ("columns", "revision", "annotations", "densities", "exclude_licence", "contaminated", "decontaminate", "benchmark_data", "ngram", "overlap",
         "near_duplicates", "calibration", "expect",
         "also", "push_to_hub", "max_response_tokens", "near_identical", "max_length_ratio", "min_confidence"))  # fmt: skip
    for _ in run_binarize(
        out=folder / "pairs", pool=str(folder / "pool.jsonl"), strategy=["k_sim"], scores=str(folder / "scores.csv"),
        order="pool", stages=3, annotation="overall_score", exclude_model=[], strict=False, match_rows=False,
        command="karma", tau=-1.0, seed=0, rejected=base.pairs.rejected, drop_truthfulqa=False,
        same_system_prompt=False, affinity_quality="s_pref", affinity_weight=0.5, missing="refuse", measure=None, weight=None, engine="local", address=None, cores=1,
        **unset,
    ):  # fmt: skip
        pass


def write_model(folder: Path) -> None:
    """A whole model of few weights, with a tokenizer of its own."""
    from karma.models.made import build_random, build_tokenizer

    build_random({**TINY, "seed": 1}).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def make_row(i: int) -> dict[str, Any]:
    answers = [
        {"model": m, "response": f"{m} on {i}", "overall_score": float(len(m) + k)} for k, m in enumerate(MODELS)
    ]
    return {"source": "own", "instruction": f"Question {i}?", "completions": answers}


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


# --- paths, whatever they lead to -----------------------------------------------------------------------------------


def _fifo(folder: Path, good: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def _loop(folder: Path, good: Path) -> str:
    (folder / "loop").symlink_to(folder / "loop")
    return str(folder / "loop")


def _broken_link(folder: Path, good: Path) -> str:
    (folder / "link").symlink_to(folder / "nowhere")
    return str(folder / "link")


def _folder(folder: Path, good: Path) -> str:
    (folder / "some-folder").mkdir()
    return str(folder / "some-folder")


PATHS: dict[str, Make] = {
    "absent": lambda f, g: str(f / "nowhere"),
    "300 characters": lambda f, g: str(f / ("n" * 300)),
    "5,000 characters": lambda f, g: str(f / "/".join(["n" * 99] * 50)),
    "a FIFO": _fifo,
    "an endless device": lambda f, g: "/dev/zero",
    "an empty device": lambda f, g: "/dev/null",
    "a link to itself": _loop,
    "a link to nothing": _broken_link,
    "beneath a file": lambda f, g: str(g / "scores.csv" / "inside"),
    "marked-up name": lambda f, g: str(f / MARKED.replace("/", "")),
    "empty": lambda f, g: "",
}
OF_FILES = {**PATHS, "a folder": _folder}


def with_suffix(makers: dict[str, Make], suffix: str) -> dict[str, Make]:
    """The same paths with a suffix that commands tell formats by."""

    def rename(make: Make) -> Make:
        def renamed(folder: Path, good: Path) -> str:
            path = make(folder, good)
            if not path or path.startswith("/dev"):
                return path
            target = Path(path + suffix)
            if os.path.lexists(path):
                Path(path).rename(target)
            return str(target)

        return renamed

    def relink(make: Make) -> Make:
        def renamed(folder: Path, good: Path) -> str:
            (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
            return str(folder / f"loop{suffix}")

        return renamed

    return {name: (relink if name == "a link to itself" else rename)(make) for name, make in makers.items()}


# --- texts ----------------------------------------------------------------------------------------------------------


def content(suffix: str, raw: bytes | str) -> Make:
    def make(folder: Path, good: Path) -> str:
        (folder / f"bad{suffix}").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return str(folder / f"bad{suffix}")

    return make


def texts(suffix: str) -> dict[str, Make]:
    return {
        "empty file": content(suffix, b""),
        "blank file": content(suffix, b" \n\n  \n"),
        "random bytes": content(suffix, bytes((k * k * 31 + 7 * k) % 256 for k in range(5000))),
        "UTF-16": content(suffix, '{"a": "b"}\n'.encode("utf-16")),
        "invalid UTF-8": content(suffix, b'{"instruction": "caf\xe9"}\norigin_model,caf\xe9\n'),
        "zero bytes": content(suffix, b"\0" * 300),
    }


def damaged(good_file: str, change: Callable[[list[Any]], Any], suffix: str = ".jsonl") -> Make:
    """A good file of JSON lines with something changed in its rows."""

    def make(folder: Path, good: Path) -> str:
        rows = [json.loads(line) for line in (good / good_file).read_text().splitlines()]
        found = change(rows)
        return write_lines(folder / f"bad{suffix}", rows if found is None else found)

    return make


def replaced(good_file: str, old: str, new: str, suffix: str = ".jsonl") -> Make:
    """A good file with its text changed in one place."""

    def make(folder: Path, good: Path) -> str:
        text = (good / good_file).read_text()
        assert old in text, (good_file, old)
        (folder / f"bad{suffix}").write_bytes(text.replace(old, new, 1).encode())
        return str(folder / f"bad{suffix}")

    return make


def json_values(suffix: str) -> dict[str, Make]:
    return {
        "deep lists": content(suffix, "[" * 100_000),
        "deep objects": content(suffix, '{"a":' * 100_000),
        "closed deep lists": content(suffix, "[" * 100_000 + "]" * 100_000),
        "400 digits": content(suffix, "9" * 400),
        "5,000 digits": content(suffix, "9" * 5000),
        "a number": content(suffix, "17\n"),
        "a text": content(suffix, '"text"\n'),
        "null": content(suffix, "null\n"),
        "an empty list": content(suffix, "[]\n"),
        "an empty object": content(suffix, "{}\n"),
        "a list of lists": content(suffix, "[[[1]]]\n"),
        "a repeated key": content(suffix, '{"a": 1, "a": 2}\n'),
        "a lone surrogate": content(suffix, '{"\\ud800": "\\udfff"}\n'),
    }


def json_lines(good_file: str, text: str, number: str | None = None) -> dict[str, Make]:
    """Ways in which JSON lines are bad, by a key that holds a text, and one that holds a number."""

    def put(key: str, value: Any) -> Make:
        return damaged(good_file, lambda rows: rows[1].__setitem__(key, value))

    def drop(key: str) -> Make:
        return damaged(good_file, lambda rows: rows[1].pop(key) and None)

    def raw(key: str, literal: str) -> Make:
        def make(folder: Path, good: Path) -> str:
            lines = (good / good_file).read_text().splitlines()
            row = json.loads(lines[1])
            row[key] = "@@"
            lines[1] = json.dumps(row).replace('"@@"', literal)
            (folder / "bad.jsonl").write_text("\n".join(lines))
            return str(folder / "bad.jsonl")

        return make

    def cut(folder: Path, good: Path) -> str:
        (folder / "bad.jsonl").write_bytes((good / good_file).read_bytes()[:-9])
        return str(folder / "bad.jsonl")

    found = {
        **texts(".jsonl"), **json_values(".jsonl"), "cut short": cut,
        f"{text} is null": put(text, None), f"{text} is a number": put(text, 17), f"{text} is a list": put(text, [[1]]),
        f"{text} is an object": put(text, {"a": 1}), f"without {text}": drop(text),
        f"{text} holds a lone surrogate?": raw(text, '"half \\ud800"'), f"{text} is marked up?": put(text, MARKED),
        f"{text} has 5,000 digits": raw(text, "9" * 5000), f"{text} is deep": raw(text, "[" * 50_000 + "]" * 50_000),
        "a row is a list": damaged(good_file, lambda rows: [*rows, [1]]),
        "a row is null": damaged(good_file, lambda rows: [*rows, None]),
    }  # fmt: skip
    if number:
        found |= {
            f"{number} is text?": put(number, "much"), f"{number} is a list?": put(number, [1]),
            f"{number} is NaN?": raw(number, "NaN"), f"{number} is infinite?": raw(number, "Infinity"),
            f"{number} has 400 digits?": raw(number, "9" * 400), f"{number} has 5,000 digits": raw(number, "9" * 5000),
            f"{number} is negative?": put(number, -3),
        }  # fmt: skip
    return found


SCORES = "origin_model,ifeval,arc_easy\nGPT-4,0.4,0.9\nbard,{},0.6\nAlpaca-7b,0.3,0.5\n"
CSV: dict[str, Make] = {
    **with_suffix(OF_FILES, ".csv"), **texts(".csv"),
    **{f"a cell is {name}": content(".csv", SCORES.format(cell)) for name, cell in {
        "nan": "nan", "infinite": "inf", "minus infinite": "-inf", "400 digits": "9" * 400, "5,000 digits": "9" * 5000,
        "1e400": "1e400", "text": "good", "empty": "", "negative": "-1", "200,000 characters": "x" * 200_000,
        "marked up": '"a\n[bold]b"', "too large": "101", "with an underscore": "0.3_4", "in other digits": "\u0660.\u0663"}.items()},
    "a cell with a zero byte": content(".csv", SCORES.format("0.\0005")), "a model with a zero byte": content(
        ".csv", SCORES.format("0.5").replace("bard", "ba\0rd")),
    "an open quote": content(".csv", SCORES.format('"0.5')),
    "header alone": content(".csv", "origin_model,ifeval\n"),
    "one model": content(".csv", "origin_model,ifeval\nGPT-4,0.4\n"),
    "no benchmark": content(".csv", "origin_model\nGPT-4\nbard\n"),
    "a ragged row": content(".csv", SCORES.format("0.5,0.6,0.7")),
    "a column twice": content(".csv", "origin_model,ifeval,ifeval\na,0.1,0.2\nb,0.2,0.3\n"),
    "a model twice": content(".csv", "origin_model,ifeval\na,0.1\na,0.2\n"),
    "a model without name": content(".csv", "origin_model,ifeval\n,0.1\nb,0.2\n"),
    "all equal": content(".csv", "origin_model,ifeval\na,0.1\nb,0.1\n"),
    "marked-up unknown column": content(".csv", f'origin_model,"{MARKED}"\na,0.1\nb,0.2\n'),
    "marked-up model twice": content(".csv", f'origin_model,ifeval\n"{MARKED}",0.1\n"{MARKED}",0.2\n'),
    "another first column": content(".csv", "model,ifeval\na,0.1\nb,0.2\n"),
    "one long line": content(".csv", "a," * 200_000),
}  # fmt: skip
COLUMNS_MAP = "origin_model: [who]\nbenchmarks:\n  gsm8k: {{column: GSM8K, unit: percent, title: G, capability: r{}}}\n"


def yaml_texts() -> dict[str, Make]:
    return {
        **with_suffix(OF_FILES, ".yaml"), **texts(".yaml"),
        **{name: content(".yaml", text) for name, text in {
            "deep lists": "[" * 20_000, "deep maps": "{a: " * 20_000, "closed deep lists": "a: " + "[" * 3000 + "]" * 3000,
            "deep blocks": "".join(" " * k + "a:\n" for k in range(1500)),
            "a map within itself": "a: &a\n  b: *a\n", "a list within itself": "&a [*a]\n",
            "exploding anchors": EXPLODING, "exploding keys": EXPLODING_KEYS,
            "a date as key": "2024-01-01: 1\n", "a number as key": "17: 1\n", "null as key": "~: 1\n",
            "a list as key": "[a, b]: 1\n", "a map as key": "{a: b}: 1\n", "true as key": "yes: 1\n",
            "a key twice": "name: a\nname: b\n", "a Python object": "name: !!python/object/apply:os.system ['true']\n",
            "an unknown tag": "name: !mine x\n", "5,000 digits": "name: " + "9" * 5000 + "\n",
            "a list": "- a\n", "a text": "text\n", "a number": "17\n", "two documents": "a: 1\n---\nb: 2\n",
            "a tab": "a:\n\tb: 1\n", "an unknown alias": "a: *b\n", "a bad escape": 'a: "\\q"\n',
            "an impossible date": "name: 2024-99-99\n", "binary that is none": "name: !!binary '***'\n",
            "a merge of text": "<<: text\n", "a colon too many": "a: b: c\n",
        }.items()},
    }  # fmt: skip


EXPLODING = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
EXPLODING_KEYS = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{{', '.join(f'k{k}: *{a}' for k in range(9))}}}\n"
    for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
COLUMN_MAPS: dict[str, Make] = {
    **yaml_texts(),
    **{name: content(".yaml", text) for name, text in {
        "no benchmarks": "origin_model: [who]\nbenchmarks: {}\n", "no model column": "origin_model: []\nbenchmarks: {}\n",
        "an unknown key": COLUMNS_MAP.format("") + "more: 1\n", "chance of 25": COLUMNS_MAP.format(", chance: 25"),
        "chance is NaN": COLUMNS_MAP.format(", chance: .nan"), "chance is negative": COLUMNS_MAP.format(", chance: -1"),
        "items are true": COLUMNS_MAP.format(", n_items: true"), "no items": COLUMNS_MAP.format(", n_items: 0"), "negative items": COLUMNS_MAP.format(", n_items: -5"),
        "400 digits of items": COLUMNS_MAP.format(", n_items: " + "9" * 400),
        "an absent column": COLUMNS_MAP.format("").replace("GSM8K", "ABSENT"),
        "an absent model column": COLUMNS_MAP.format("").replace("who", "ABSENT"),
        "an unknown answer form": COLUMNS_MAP.format(", answer_form: nope"),
        "a marked-up title": COLUMNS_MAP.format("").replace("title: G", f"title: {json.dumps(MARKED)}"),
        "an empty title": COLUMNS_MAP.format("").replace("title: G", "title: ' '"),
        "a marked-up capability": COLUMNS_MAP.format("").replace("capability: r", f"capability: {json.dumps(MARKED)}"),
        "a marked-up benchmark": COLUMNS_MAP.format("").replace("gsm8k", json.dumps(MARKED)),
        "a scale of true and false": COLUMNS_MAP.format("").replace("percent", "[false, true]"),
        "an infinite scale": COLUMNS_MAP.format("").replace("percent", "[0, .inf]"),
        "an unknown measure": COLUMNS_MAP.format("") + "kinship: {measure: nope}\n",
        "a weight of nothing": COLUMNS_MAP.format("") + "kinship: {weights: {nope: 1}}\n",
        "a negative weight": COLUMNS_MAP.format("") + "kinship: {weights: {gsm8k: -1}}\n",
        "an unknown unit": COLUMNS_MAP.format("").replace("percent", "permille"),
        "marked-up unit": COLUMNS_MAP.format("").replace("percent", json.dumps(MARKED)),
        "a column twice": COLUMNS_MAP.format("") + "  again: {column: GSM8K, unit: percent, title: G, capability: r}\n",
    }.items()},
}  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------------------------


def table_file(good_file: str, change: Callable[[pa.Table], pa.Table], name: str = "bad.parquet") -> Make:
    def make(folder: Path, good: Path) -> str:
        pq.write_table(change(pq.read_table(good / good_file)), folder / name)
        return str(folder / name)

    return make


def spoil_text(values: Any) -> pa.Array:
    """Return a column of text whose second value is not UTF-8."""
    raw = pa.array([str(v).encode() if k != 1 else b"caf\xe9" for k, v in enumerate(values.to_pylist())], pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


def replace_column(table: pa.Table, name: str, column: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def parquet_files(good_file: str, text: str, number: str | None = None) -> dict[str, Make]:
    def cut(share: float) -> Make:
        def make(folder: Path, good: Path) -> str:
            whole = (good / good_file).read_bytes()
            (folder / "bad.parquet").write_bytes(whole[: int(len(whole) * share)])
            return str(folder / "bad.parquet")

        return make

    def flip(folder: Path, good: Path) -> str:
        whole = bytearray((good / good_file).read_bytes())
        for place in range(20, min(len(whole) - 20, 400)):
            whole[place] ^= 0x5A
        (folder / "bad.parquet").write_bytes(whole)
        return str(folder / "bad.parquet")

    def flip_footer(folder: Path, good: Path) -> str:
        whole = bytearray((good / good_file).read_bytes())
        for place in range(len(whole) - 60, len(whole) - 12):
            whole[place] ^= 0x5A
        (folder / "bad.parquet").write_bytes(whole)
        return str(folder / "bad.parquet")

    found = {
        **with_suffix(OF_FILES, ".parquet"), **texts(".parquet"),
        "cut in the middle": cut(0.5), "cut at the end": cut(0.98), "magic alone": content(".parquet", b"PAR1"),
        "flipped bytes": flip, "flipped footer": flip_footer,
        "no rows": table_file(good_file, lambda t: t.slice(0, 0)),
        "other columns": table_file(good_file, lambda t: pa.table({"x": [1, 2]})),
        "marked-up columns": table_file(good_file, lambda t: pa.table({MARKED: [1, 2]})),
        f"{text} is not UTF-8": table_file(good_file, lambda t: replace_column(t, text, spoil_text(t[text]))),
        f"{text} is numbers": table_file(good_file, lambda t: replace_column(t, text, pa.array(range(len(t))))),
        f"{text} is lists": table_file(good_file, lambda t: replace_column(t, text, pa.array([[[1]]] * len(t)))),
        f"{text} is null": table_file(good_file, lambda t: replace_column(t, text, pa.nulls(len(t)))),
        f"without {text}": table_file(good_file, lambda t: t.drop_columns([text])),
        f"{text} twice": table_file(good_file, lambda t: t.append_column(text, t[text])),
    }  # fmt: skip
    if number:
        found |= {
            f"{number} is text": table_file(good_file, lambda t: replace_column(t, number, pa.array(["x"] * len(t)))),
            f"{number} is NaN?": table_file(
                good_file, lambda t: replace_column(t, number, pa.array([float("nan")] * len(t)))
            ),
            f"{number} is infinite": table_file(
                good_file, lambda t: replace_column(t, number, pa.array([float("inf")] * len(t)))
            ),
            f"{number} is lists": table_file(
                good_file, lambda t: replace_column(t, number, pa.array([[1.0]] * len(t)))
            ),
        }
    return found


# --- folders of pairs -----------------------------------------------------------------------------------------------


def pair_folder(change: Callable[[Path], Any]) -> Make:
    def make(folder: Path, good: Path) -> str:
        shutil.copytree(good / "pairs", folder / "bad-pairs")
        change(folder / "bad-pairs")
        return str(folder / "bad-pairs")

    return make


def books(change: Callable[[dict[str, Any]], Any] | str) -> Make:
    def write(folder: Path) -> None:
        path = folder / "accounting.json"
        if isinstance(change, str):
            path.write_text(change)
            return
        values = json.loads(path.read_text())
        found = change(values)
        path.write_text(json.dumps(values if found is None else found))

    return pair_folder(write)


def rows_of_pairs(change: Callable[[list[dict[str, Any]]], Any]) -> Make:
    def write(folder: Path) -> None:
        table = pq.read_table(folder / "pairs.parquet")
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "pairs.parquet")

    return pair_folder(write)


def other_file_of_pairs(make: Make, name: str) -> Make:
    """A pair folder in which one file is another class's bad file."""

    def put(folder: Path, good: Path) -> str:
        path = make(folder, good)
        shutil.copytree(good / "pairs", folder / "bad-pairs")
        Path(path).replace(folder / "bad-pairs" / name)
        return str(folder / "bad-pairs")

    return put


def _no_file(name: str) -> Make:
    return pair_folder(lambda f: (f / name).unlink())


def _odd_file(name: str, make: Callable[[Path], Any]) -> Make:
    return pair_folder(lambda f: ((f / name).unlink(), make(f / name)))


COUNTS = ("rows_in", "pairs_out", "responses_in", "responses_usable")
PAIRS: dict[str, Make] = {
    **{name: make for name, make in PATHS.items()}, "an empty folder": _folder,
    "no pairs.parquet": _no_file("pairs.parquet"), "no accounting.json": _no_file("accounting.json"),
    "pairs.parquet is a folder": _odd_file("pairs.parquet", Path.mkdir),
    "pairs.parquet is a FIFO": _odd_file("pairs.parquet", os.mkfifo),
    "accounting.json is a folder": _odd_file("accounting.json", Path.mkdir),
    "accounting.json is a FIFO": _odd_file("accounting.json", os.mkfifo),
    **{f"accounting: {name}": other_file_of_pairs(make, "accounting.json")
       for name, make in {**texts(".json"), **json_values(".json")}.items()},
    **{f"pairs.parquet: {name}": other_file_of_pairs(make, "pairs.parquet")
       for name, make in parquet_files("pairs/pairs.parquet", "row_id").items()
       if name not in OF_FILES and not name.endswith("?")},
    **{f"{key} is {name}": books(lambda b, k=key, v=value: b.__setitem__(k, v)) for key in COUNTS for name, value in
       {"null": None, "negative": -1, "a list": [1], "text": "many", "true": True, "a fraction": 1.5}.items()},
    **{f"{key} is {name}": books(lambda b, k=key, v=value: b.__setitem__(k, v)) for key in ("dropped", "responses_unused")
       for name, value in {"null": None, "a list": [1], "text": "x", "of text": {"held_out": "x"},
                           "of null": {"held_out": None}, "negative": {"held_out": -1}, "of lists": {"held_out": [1]},
                           "of an unknown reason": {MARKED: 0}}.items()},
    "rows_in has 400 digits": books(lambda b: b.__setitem__("rows_in", int("9" * 400))),
    "no strategy": books(lambda b: b.pop("strategy") and None),
    "strategy is null": books(lambda b: b.__setitem__("strategy", None)),
    "strategy is a list": books(lambda b: b.__setitem__("strategy", ["k_sim"])),
    "strategy is unknown?": books(lambda b: b.__setitem__("strategy", "k_best")),
    "strategy is marked up": books(lambda b: b.__setitem__("strategy", MARKED)),
    "settings is null": books(lambda b: b.__setitem__("settings", None)),
    "settings is a list": books(lambda b: b.__setitem__("settings", [1])),
    "an unknown member": books(lambda b: b.__setitem__(MARKED, 1)),
    "counts that do not add up": books(lambda b: b.__setitem__("rows_in", b["rows_in"] + 1)),
    "a prompt is empty": rows_of_pairs(lambda rows: rows[0].__setitem__("prompt", [])),
    "a prompt is null": rows_of_pairs(lambda rows: rows[0].__setitem__("prompt", None)),
    "a message is null": rows_of_pairs(lambda rows: rows[0].__setitem__("chosen", [None])),
    "a text is null?": rows_of_pairs(lambda rows: rows[0].__setitem__("chosen", [{"role": "assistant", "content": None}])),
    **{f"{key} is {value:g}": rows_of_pairs(lambda rows, k=key, v=value: rows[0].__setitem__(k, v)) for key, value in
       (("chosen_score", float("inf")), ("rejected_score", -1e308), ("kinship", float("nan")), ("kinship", -5.0),
        ("label_confidence", 1e308), ("label_confidence", -0.1))},
    "a pair without an id": rows_of_pairs(lambda rows: rows[0].__setitem__("row_id", None)),
    "two pairs with one id": rows_of_pairs(lambda rows: rows[0].__setitem__("row_id", rows[1]["row_id"])),
    "a role is odd": rows_of_pairs(lambda rows: rows[0].__setitem__("chosen", [{"role": MARKED, "content": "x"}])),
    "a prompt by nobody": rows_of_pairs(lambda rows: rows[0].__setitem__("prompt", [{"role": None, "content": "x"}])),
}  # fmt: skip
PAIR_FILES = {
    **{f"lines: {name}": make for name, make in {**with_suffix(OF_FILES, ".jsonl"),
                                                  **json_lines("pairs.jsonl", "chosen", "score_chosen")}.items()},
    "lines: prompt is null": damaged("pairs.jsonl", lambda rows: rows[0].__setitem__("prompt", None)),
    "lines: prompt is a list of texts": damaged("pairs.jsonl", lambda rows: rows[0].__setitem__("prompt", ["a"])),
    "lines: another suffix": content(".txt", "x"),
}  # fmt: skip
for _name in ("text is null", "chosen is null"):
    PAIR_FILES.pop(f"lines: {_name}", None)


# --- models ---------------------------------------------------------------------------------------------------------


def model_folder(change: Callable[[Path], Any]) -> Make:
    def make(folder: Path, good: Path) -> str:
        shutil.copytree(good / "model", folder / "bad-model")
        change(folder / "bad-model")
        return str(folder / "bad-model")

    return make


def config(**values: Any) -> Make:
    def write(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return model_folder(write)


def template(text: str) -> Make:
    return model_folder(lambda f: (f / "chat_template.jinja").write_text(text))


def _weights(change: Callable[[dict[str, Any]], Any]) -> Make:
    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return model_folder(write)


def _cut_weights(n: int) -> Make:
    def write(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:n] if n > 0 else path.read_bytes()[: path.stat().st_size + n])

    return model_folder(write)


def _pickle_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _adapter_only(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nowhere/none"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def adapter(change: Callable[[dict[str, Any]], Any] = lambda config: None, **shapes: tuple[int, int]) -> Make:
    """An adapter of the good model in a folder of its own, its settings changed, or the shapes of its weights."""

    def make(folder: Path, good: Path) -> str:
        import torch
        from safetensors.torch import save_file

        place, width = folder / "bad-adapter", TINY["random"]["hidden_size"]
        place.mkdir()
        settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
                    "base_model_name_or_path": str(good / "model")}  # fmt: skip
        found = change(settings)
        (place / "adapter_config.json").write_text(json.dumps(settings if found is None else found))
        sizes = {"lora_A": (2, width), "lora_B": (width, 2), **shapes}
        layer = "base_model.model.model.layers.0.self_attn.q_proj"
        save_file(
            {f"{layer}.{part}.weight": torch.ones(size) for part, size in sizes.items()},
            place / "adapter_model.safetensors",
        )
        return str(place)

    return make


def _drop_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def _nan(weights: dict[str, Any]) -> None:
    name = next(iter(weights))
    weights[name] = weights[name] * float("nan")


def _one_nan(weights: dict[str, Any]) -> None:
    weights[next(iter(weights))].view(-1)[3] = float("inf")


def _whole_numbers(weights: dict[str, Any]) -> None:
    for name in weights:
        weights[name] = (weights[name] * 100).int()


def _drop_one(weights: dict[str, Any]) -> None:
    weights.pop(next(name for name in weights if "mlp" in name))


def _other_shape(weights: dict[str, Any]) -> None:
    name = next(name for name in weights if "q_proj" in name)
    weights[name] = weights[name][:8].contiguous()


MODEL_NAMES: dict[str, Make] = {
    **{name: make for name, make in PATHS.items() if name not in ("absent", "beneath a file")},
    "absent folder": lambda f, g: str(f / "nowhere"), "beneath a file": PATHS["beneath a file"],
    "a file": lambda f, g: str(g / "scores.csv"), "an empty folder": _folder,
    "another case": lambda f, g: "SmolLM2-135M", "misspelt": lambda f, g: "smolm2-135m",
    "unknown": lambda f, g: "no-such-model", "unknown on the Hub": lambda f, g: "no-such-user/no-such-model",
    "no name": lambda f, g: " ", "three parts": lambda f, g: "a/b/c",
}  # fmt: skip
MODELS_OF_FOLDERS: dict[str, Make] = {
    **MODEL_NAMES,
    "no config": model_folder(lambda f: (f / "config.json").unlink()),
    "no tokenizer": model_folder(_drop_tokenizer),
    "no weights": model_folder(lambda f: (f / "model.safetensors").unlink()),
    "config is garbage": model_folder(lambda f: (f / "config.json").write_text("{garbage")),
    "config is a list": model_folder(lambda f: (f / "config.json").write_text("[1]")),
    "config is empty": model_folder(lambda f: (f / "config.json").write_text("{}")),
    "config is deep": model_folder(lambda f: (f / "config.json").write_text("[" * 100_000)),
    "config is a FIFO": model_folder(lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json"))),
    "an unknown kind": config(model_type="unheard-of"),
    "another kind": config(model_type="bert"), "remote code?": config(auto_map={"AutoConfig": "evil.Config"}),
    "remote code of an unknown kind": config(model_type="evil", auto_map={"AutoConfig": "evil.Config",
                                                                      "AutoModelForCausalLM": "evil.Model"}),
    "no layers": config(num_hidden_layers=0), "negative width": config(hidden_size=-16), "width of text": config(hidden_size="x"),
    "heads that do not divide": config(num_attention_heads=3, num_key_value_heads=3),
    "vast vocabulary": config(vocab_size=10**12), "vast layers": config(num_hidden_layers=10**9),
    "small vocabulary": config(vocab_size=100), "large vocabulary": config(vocab_size=50_000),
    "tokenizer is garbage": model_folder(lambda f: (f / "tokenizer.json").write_text("{garbage")),
    "tokenizer config is garbage": model_folder(lambda f: (f / "tokenizer_config.json").write_text("{garbage")),
    "tokenizer with remote code": model_folder(lambda f: (f / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))),
    "weights are garbage": model_folder(lambda f: (f / "model.safetensors").write_bytes(b"garbage" * 99)),
    "weights are empty": _cut_weights(1), "weights are cut": _cut_weights(-500), "weights are cut in the header": _cut_weights(60),
    "weights of another shape": _weights(_other_shape), "a weight is missing": _weights(_drop_one),
    "weights are NaN": _weights(_nan), "a weight is infinite": _weights(_one_nan),
    "weights are pickled": model_folder(_pickle_weights), "an adapter alone": model_folder(_adapter_only),
    "an index of absent shards": model_folder(lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})))),
    "a template that is broken": template("{% for x in"), "a template that raises": template("{{ raise_exception('no\nway') }}"),
    "a template that prints nothing": template("{# nothing #}"), "a template without the message": template("Hello."),
    "a template that reaches for Python": template("{{ messages.__class__.__mro__[1].__subclasses__() }}"),
    "a template without the answer": template("{{ messages[0]['content'] }}"),
    "a template that is a folder": model_folder(lambda f: ((f / "chat_template.jinja").unlink(missing_ok=True),
                                                            (f / "chat_template.jinja").mkdir())),
    "negative eps": config(rms_norm_eps=-1.0), "eps of text": config(rms_norm_eps="nan"), "eps is NaN": config(rms_norm_eps=float("nan")),
    "no theta": config(rope_theta=0), "no theta within": config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
    "no positions": config(max_position_embeddings=0), "an end of text": config(eos_token_id="x"),
    "few positions": config(max_position_embeddings=4), "an end beyond the vocabulary": config(eos_token_id=10**6),
    "no token that ends a text": model_folder(lambda f: (f / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in json.loads((f / "tokenizer_config.json").read_text()).items()
                    if k not in ("eos_token", "pad_token")}))),
    "a longest text of words": model_folder(lambda f: (f / "tokenizer_config.json").write_text(json.dumps(
        {**json.loads((f / "tokenizer_config.json").read_text()), "model_max_length": "long"}))),
    "generation is a list": model_folder(lambda f: (f / "generation_config.json").write_text("[]")),
    "negative beams": model_folder(lambda f: (f / "generation_config.json").write_text('{"num_beams": -2}')),
    "tokenizer is a list": model_folder(lambda f: (f / "tokenizer.json").write_text("[1]")),
    "tokenizer config is a list": model_folder(lambda f: (f / "tokenizer_config.json").write_text("[]")),
    "weights are whole numbers": _weights(_whole_numbers),
    "adapter config is a list": adapter(lambda c: []),
    "an adapter of itself": adapter(lambda c: c.__setitem__("base_model_name_or_path", "bad-adapter")),
    "an adapter of nothing": adapter(lambda c: c.pop("base_model_name_or_path") and None),
    "an adapter of a number": adapter(lambda c: c.__setitem__("base_model_name_or_path", 17)),
    "an adapter of rank 0": adapter(lambda c: c.__setitem__("r", 0)),
    "an adapter of another rank": adapter(lambda c: c.__setitem__("r", 7)),
    "an adapter of another width": adapter(lora_A=(2, 8)),
    "an adapter of unknown layers": adapter(lambda c: c.__setitem__("target_modules", ["no_such_layer"])),
    "an adapter of other layers": adapter(lambda c: c.__setitem__("target_modules", ["v_proj"])),
    "an adapter of an unknown kind": adapter(lambda c: c.__setitem__("peft_type", "NONE_SUCH")),
    "an adapter's alpha is NaN": adapter(lambda c: c.__setitem__("lora_alpha", float("nan"))),
    "a template that never ends": template("{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}"),
}  # fmt: skip
MODELS_OF_FOLDERS.pop("a template that never ends")  # left out: nothing bounds the time that Jinja takes


# --- numbers, words, places to write ---------------------------------------------------------------------------------


def values(*bad: str) -> dict[str, Make]:
    return {value if len(value) < 20 else f"{value[:8]}... ({len(value)})": (lambda f, g, v=value: v) for value in bad}


_NO_NUMBER = ("", "abc", "1,5", "1e400", "nan", "-inf", "9" * 5000, MARKED, "0x10", "1_0 0", "1_0", "\u0663")
_NO_INTEGER = (*_NO_NUMBER, "1.5", "9" * 400, "inf")


def numbers(*bad: str, whole: bool = False) -> dict[str, Make]:
    return values(*dict.fromkeys([*(_NO_INTEGER if whole else _NO_NUMBER), *bad]))


WORDS = values("", "no-such-word", MARKED, "x" * 300, "../x", "K_SIM", "{}", "🙂‮")
COUNT = numbers("0", "-1", "99999999999999999999", whole=True)
SEED = numbers("-1", "99999999999999999999", whole=True)
COSINE = numbers("-1.01", "1.01", "5", "inf")
SHARE = numbers("-0.01", "1.01", "2", "inf")
DEVICE = values("", "tpu", "CUDA", "cuda:99", MARKED)
DTYPE = values("", "float16", "int8", "float64", MARKED)
URL = values("", "localhost", "ftp://x/v1", "http://", "http://user:secret@host/v1", "http://a b/v1", "file:///etc/passwd",
             "http://127.0.0.1:1/v1", "http://[::1/v1", "http://127.0.0.1:99999/v1", MARKED)  # fmt: skip


def _read_only(folder: Path, good: Path) -> str:
    return "/proc/karma-out"


def _out_file(folder: Path, good: Path) -> str:
    (folder / "mine").write_text("mine")
    return str(folder / "mine")


def _full(folder: Path, good: Path) -> str:
    return os.environ.get("KARMA_FULL_DISK", "") + "/out"


OUT: dict[str, Make] = {
    "a file": _out_file, "beneath a file": PATHS["beneath a file"], "empty": PATHS["empty"], "a FIFO": _fifo,
    "a device": PATHS["an empty device"], "300 characters": PATHS["300 characters"],
    "5,000 characters": PATHS["5,000 characters"], "cannot be made": _read_only, "a link to itself": _loop,
    "a link to nothing": _broken_link, "on a full disk": _full,
}  # fmt: skip
REPOSITORY = values(
    "", "a/b/c", "name with space", "-x/y", "x" * 200, "me/" + "x" * 200, MARKED, "me/..", "https://x/y"
)
SETTINGS = values("", "no-equals", "=1", "nonsense=1", "epochs=inf", "epochs=.nan", "epochs=0", "beta=.inf", "beta=-1",
                  "learning_rate=5e-7", "learning_rate=1.0", "learning_rate=[", "max_length=0", "max_length=" + "9" * 400,
                  "per_device_batch_size=0", "gradient_accumulation=-1", "loss_type=no-such", "loss_type=[sigmoid]",
                  "accelerate=nowhere.yaml", "accelerate=params/base.yaml", "lora={rank: 0}", "lora={rank: 4, alpha: 8, dropout: 2, last_layers: 1}",
                  "lora=*a", "simpo=1", "scheduler=none", "devices=0", "label_smoothing=2.0", "warmup_steps=-1",
                  "epochs=2024-01-01", "epochs=" + "[" * 5000, "epochs=" + "9" * 5000, "epochs={2024-01-01: 1}",
                  "checkpoint_steps=" + "9" * 30, f"loss_type={MARKED}", "gradient_checkpointing=maybe")  # fmt: skip


def snippets(**texts: str) -> dict[str, Make]:
    return {name.replace("_", " "): content(".yaml", f"{STUDY}{text}\n") for name, text in texts.items()}


STUDY = "name: bad-input\n"
_M = "models: {a: {random: {hidden_size: 16, layers: 1, heads: 1}}}\npolicies: [a]\nscores: {table: paper}\n"
EXPERIMENT: dict[str, Make] = {
    **yaml_texts(), "a bare name": lambda f, g: "no-such-experiment",
    "extends itself": lambda f, g: content(".yaml", f"extends: {f}/bad.yaml\nname: x\n")(f, g),
    **snippets(
        no_models="policies: [ghost]", a_name_that_leaves="name2: x", unknown_loss_type=_M + "training: {loss_type: none}",
        absent_accelerate_file=_M + "training: {accelerate: nowhere.yaml}",
        absent_benchmark_folder=_M + "benchmarks: {folder: nowhere}",
        absent_instructions="models: {a: {hub: x/a}, b: {hub: x/b}}\norigin_models: [a, b]\n"
                            "pool: {source: generate, instructions: nowhere.jsonl, models_per_prompt: 2}",
        absent_table=_M.replace("paper", "nowhere.csv"), absent_pool=_M + "pool: {source: nowhere.jsonl, revision: null}",
        absent_prompts=_M + "self_play: {rounds: 1, prompts: nowhere.jsonl}",
        absent_model_path=_M.replace("random: {hidden_size: 16, layers: 1, heads: 1}", "path: /nowhere/model"),
        absent_calibration=_M + "pairs: {calibration: nowhere.json}",
        absent_judgments=_M + "pool: {instructions: karma/data/demo/instructions.jsonl}\nlabels: {audit: true, judgments: nowhere, scores: paper}",
        no_hub_name="models: {a: {hub: ../x}}\npolicies: [a]\nscores: {table: paper}",
        no_revision="models: {a: {hub: a/b, revision: 'a b'}}\npolicies: [a]\nscores: {table: paper}",
        rows_matched_to_no_strategy=_M + "strategies: [k_sim]\npairs: {match_rows: [rlaif]}",
        a_scorer_without_a_model=_M + "self_play: {rounds: 1, scorer: judge}",
        absent_columns="models: {a: {random: {hidden_size: 16, layers: 1, heads: 1}}}\npolicies: [a]\nscores: {table: paper, columns: zz}",
        absent_origin_models=_M + "pool: {excluded_origin_models: [GPT-4, GPT-3.5-turbo, bard, Vicuna-33b, Ultralm-65b, "
                                  "Llama-2-70b-chat, Llama-2-13b-chat, Llama-2-7b-chat, Wizardlm-70b, Wizardlm-13b, Wizardlm-7b, "
                                  "Ultralm-13b, Alpaca-7b, Pythia-12b, Falcon-40b-instruct, Starchat, Mpt-30b-chat]}",
        infinite_epochs=_M + "training: {epochs: .inf}", infinite_beta=_M + "training: {beta: .inf}",
        infinite_cut=_M + "kinship: {cut: .inf}", NaN_tau=_M + "kinship: {tau: .nan}", tau_of_5=_M + "kinship: {tau: 5.0}",
        infinite_noise="models: {a: {hub: x/a}, b: {perturbed: a, noise: .inf}}\npolicies: [b]\nscores: {table: paper}",
        unknown_linkage=_M + "kinship: {linkage: none}", unknown_device=_M + "compute: {device: tpu}",
        many_threads=_M + "compute: {threads: 100000}", a_vast_number=_M + f"training: {{max_length: {'9' * 400}}}",
        a_negative_seed=_M + "seeds: [-1]", a_vast_seed=_M + f"seeds: [{'9' * 30}]",
        marked_up_name=f"models: {{{json.dumps(MARKED)}: {{hub: x/a}}}}", marked_up_setting=f"{json.dumps(MARKED)}: 1",
        marked_up_value=_M + f"compute: {{device: {json.dumps(MARKED)}}}",
        a_vast_random_model="models: {a: {random: {hidden_size: 1000000000, layers: 1, heads: 1}}}\npolicies: [a]\nscores: {table: paper}",
        a_random_model_that_does_not_divide="models: {a: {random: {hidden_size: 16, layers: 1, heads: 3}}}\npolicies: [a]\nscores: {table: paper}",
        a_misspelt_packaged_model="models: {a: {packaged: SmolLM2-135M}}\npolicies: [a]\nscores: {table: paper}",
        layers_that_are_not_there="models: {a: {hub: x/a}, b: {perturbed: a, drop_layers: [-1]}}\npolicies: [b]\nscores: {table: paper}",
    ),
}  # fmt: skip
EXPERIMENT.pop("a name that leaves")
EXPERIMENT_NAMES = {k: v for k, v in EXPERIMENT.items() if not k.startswith("absent ") and k != "unknown loss type"}


def _judgments_folder(change: Callable[[Path], Any]) -> Make:
    def make(folder: Path, good: Path) -> str:
        place = folder / "results" / "model-x" / "weighted_alpaca_eval_gpt4_turbo"
        place.mkdir(parents=True)
        change(place / "annotations.json")
        return str(folder / "results")

    return make


JUDGMENTS: dict[str, Make] = {
    **with_suffix(PATHS, ".jsonl"), "an empty folder": _folder, **json_lines("votes.jsonl", "model_a"),
    "winner is odd": damaged("votes.jsonl", lambda rows: rows[0].__setitem__("winner", MARKED)),
    "turn is a list": damaged("votes.jsonl", lambda rows: rows[0].__setitem__("turn", [1])),
    "another suffix": content(".txt", "x"),
    **{f"csv: {n}": m for n, m in {**texts(".csv"), "other columns": content(".csv", "a,b\n1,2\n"),
                                   "truth is text": content(".csv", "row_id,model,truth\na,b,c\nd,e,f\n"),
                                   "marked up": content(".csv", f'"{MARKED}",b\n1,2\n')}.items()},
    **{f"parquet: {n}": m for n, m in parquet_files("pool.parquet", "instruction").items() if n not in OF_FILES
       and n != "instruction is null"},
    **{f"AlpacaEval: {n}": _judgments_folder(lambda p, t=t: p.write_bytes(t if isinstance(t, bytes) else t.encode())) for n, t in {
        "empty": "", "garbage": b"\xff\xfe\x00", "a number": "17", "deep": "[" * 99_999, "no preference": '[{"instruction": "a"}]',
        "preference is text": '[{"instruction": "a", "generator_2": "x", "preference": "high"}]',
        "a model is a number": '[{"instruction": "a", "generator_2": 4, "preference": 1.5}]',
        "a baseline is a number": '[{"instruction": "a", "generator_1": 4, "preference": 1.5}]',
        "preference is 5": '[{"instruction": "a", "generator_2": "x", "preference": 5}]',
        "preference is NaN": '[{"instruction": "a", "generator_2": "x", "preference": NaN}]',
        "preference is vast": '[{"instruction": "a", "generator_2": "x", "preference": %s}]' % ("9" * 400),
        "instruction is a list": '[{"instruction": [1], "generator_2": "x", "preference": 1.5}]'}.items()},
    "AlpacaEval: a FIFO": _judgments_folder(os.mkfifo), "AlpacaEval: a folder": _judgments_folder(Path.mkdir),
}  # fmt: skip
ITEMS: dict[str, Make] = {**PATHS, "an empty folder": _folder, "a file": lambda f, g: str(g / "scores.csv")}
for _name, _make in {**json_lines("items/arc_easy.jsonl", "answerKey"), **with_suffix(OF_FILES, ".jsonl")}.items():
    if _name in ("absent", "empty", "an endless device", "an empty device", "marked-up name", "300 characters",
                 "5,000 characters", "beneath a file") or _name.endswith("?"):  # fmt: skip
        continue

    def _inside(folder: Path, good: Path, make: Make = _make) -> str:
        path = Path(make(folder, good))
        (folder / "items").mkdir()
        path.rename(folder / "items" / "arc_easy.jsonl")
        return str(folder / "items")

    ITEMS[f"arc_easy.jsonl: {_name}"] = _inside
ITEMS["an id twice"] = lambda f, g: (
    (f / "items").mkdir(),
    damaged("items/arc_easy.jsonl", lambda rows: rows[1].__setitem__("id", "q0"))(f / "items", g),
    (f / "items" / "bad.jsonl").rename(f / "items" / "arc_easy.jsonl"),
    str(f / "items"),
)[-1]
for _name, _key, _value in (("stem is null", "stem", None), ("stem is blank", "stem", " "),
                            ("one choice", "choices", [{"text": "fire", "label": "B"}]),
                            ("two choices of one label", "choices", [{"text": t, "label": "B"} for t in "ab"])):  # fmt: skip

    def _other_question(folder: Path, good: Path, key: str = _key, value: Any = _value) -> str:
        change = damaged("items/arc_easy.jsonl", lambda rows: rows[1]["question"].__setitem__(key, value))
        (folder / "items").mkdir()
        Path(change(folder, good)).rename(folder / "items" / "arc_easy.jsonl")
        return str(folder / "items")

    ITEMS[f"arc_easy.jsonl: {_name}"] = _other_question


def ifeval_item(name: Any, arguments: Any, **more: Any) -> Make:
    def make(folder: Path, good: Path) -> str:
        item = {"key": 1, "prompt": "Write.", "instruction_id_list": [name], "kwargs": [arguments], **more}
        (folder / "items").mkdir()
        write_lines(folder / "items" / "ifeval.jsonl", [item])
        return str(folder / "items")

    return make


_WORDS, _THERE = "length_constraints:number_words", "keywords:existence"
IFEVAL_ITEMS = {
    "a count of text": ifeval_item(_WORDS, {"relation": "at least", "num_words": "many"}),
    "a negative count": ifeval_item(_WORDS, {"relation": "at least", "num_words": -3}),
    "a fraction": ifeval_item(_WORDS, {"relation": "at least", "num_words": 1.5}),
    "an unknown relation": ifeval_item(_WORDS, {"relation": "about", "num_words": 3}),
    "an unknown argument": ifeval_item(_WORDS, {"words": 3}), "an unknown instruction": ifeval_item(MARKED, {}),
    "an instruction that is a number": ifeval_item(17, {}), "no arguments": ifeval_item(_WORDS, {}, kwargs=[]),
    "no instructions": ifeval_item(_WORDS, {}, instruction_id_list=[], kwargs=[]),
    "arguments that are a number": ifeval_item(_WORDS, 17), "a word that is no pattern": ifeval_item(_THERE, {"keywords": ["("]}),
    "words that are a number": ifeval_item(_THERE, {"keywords": 17}), "a prompt of numbers": ifeval_item(_THERE, {"keywords": ["a"]}, prompt=17),
    "an unknown language": ifeval_item("language:response_language", {"language": "xx"}),
}  # fmt: skip
JSON_FILE = {**with_suffix(OF_FILES, ".json"), **texts(".json"), **json_values(".json")}
CALIBRATION = {
    **JSON_FILE,
    **{n: replaced("calibration.json", old, new, ".json") for n, (old, new) in {
        "another version": ('"version": 1', '"version": 2'), "version is marked up": ('"version": 1', f'"version": {json.dumps(MARKED)}'),
        "NaN": ('"intercept": 0.0', '"intercept": NaN'), "infinite": ('"intercept": 0.0', '"intercept": 1e999'),
        "400 digits": ('"intercept": 0.0', '"intercept": ' + "9" * 400), "an unknown fact": ("s_pref_gap", "taste"),
        "reversed": ('"lowest": 0.0', '"lowest": 9.0'), "negative count": ('"n_models": 3', '"n_models": -3'),
        "text for a number": ('"intercept": 0.0', '"intercept": "0"')}.items()},
}  # fmt: skip


def harness_results(metric: Any = 0.7, **changed: Any) -> Make:
    """Result files of lm-evaluation-harness by two models, the second of which is changed."""

    def make(folder: Path, good: Path) -> str:
        for k, model in enumerate(("org/a", "org/b")):
            values = {"acc,none": 0.4 + k / 10, "acc_norm,none": metric if k else 0.5, "alias": "arc_easy"}
            whole = {"model_name": model, "results": {"arc_easy": values},
                     "n-samples": {"arc_easy": {"effective": 60}}, **(changed if k else {})}  # fmt: skip
            (folder / "runs" / model[-1]).mkdir(parents=True)
            (folder / "runs" / model[-1] / "results_1.json").write_text(json.dumps(whole))
        return str(folder / "runs")

    return make


HARNESS_RESULTS: dict[str, Make] = {
    **{f"a metric is {name}": harness_results(value) for name, value in {
        "true": True, "text": "0.7", "null": None, "a list": [0.7], "NaN": float("nan"), "infinite": float("inf")}.items()},
    **{f"items are {name}": harness_results(**{"n-samples": {"arc_easy": {"effective": value}}}) for name, value in {
        "text": "x", "true": True, "a fraction": 9.5, "a list": [1], "negative": -1, "NaN": float("nan")}.items()},
    **{f"{key} is {name}": harness_results(**{key: value}) for name, value in {"a list": [1], "text": "x"}.items()
       for key in ("results", "n-samples", "higher_is_better", "versions", "n-shot", "group_subtasks", "config_general")},
    "a task is a list": harness_results(results={"arc_easy": [1]}),
    "a group is a part of itself": harness_results(group_subtasks={"arc_easy": ["arc_easy"]}),
    "a model is a list": harness_results(model_name=["org/b"]), "no model": harness_results(model_name=None),
}  # fmt: skip
POOL: dict[str, Make] = {
    **with_suffix(PATHS, ".jsonl"), "an empty folder": _folder, **json_lines("pool.jsonl", "instruction"),
    "a saved folder that is none": lambda f, g: (_folder(f, g), (f / "some-folder" / "state.json").write_text("{}"),
                                                 str(f / "some-folder"))[-1],
    "a saved folder of garbage": lambda f, g: (_folder(f, g), (f / "some-folder" / "state.json").write_text("{garb"),
                                               str(f / "some-folder"))[-1],
    "two formats in a folder": lambda f, g: (_folder(f, g), content("", "x"), (f / "some-folder" / "a.jsonl").write_text("{}"),
                                             (f / "some-folder" / "a.parquet").write_text("x"), str(f / "some-folder"))[-1],
    "completions is text": damaged("pool.jsonl", lambda rows: rows[0].__setitem__("completions", "x")),
    "completions is null?": damaged("pool.jsonl", lambda rows: rows[0].__setitem__("completions", None)),
    "a completion is text": damaged("pool.jsonl", lambda rows: rows[0].__setitem__("completions", ["x"])),
    "a response is a number": damaged("pool.jsonl", lambda rows: rows[0]["completions"][0].__setitem__("response", 1)),
    "a response is a list": damaged("pool.jsonl", lambda rows: rows[0]["completions"][0].__setitem__("response", [1])),
    "a model is a number": damaged("pool.jsonl", lambda rows: rows[0]["completions"][0].__setitem__("model", 1)),
    "a model is marked up": damaged("pool.jsonl", lambda rows: rows[0]["completions"][0].__setitem__("model", MARKED)),
    "a score has 400 digits?": damaged("pool.jsonl", lambda rows: rows[0]["completions"][0].__setitem__("overall_score", int("9" * 400))),
    "annotations is text?": damaged("pool.jsonl", lambda rows: rows[0]["completions"][0].__setitem__("annotations", "x")),
    "unknown to the Hub": lambda f, g: "no-such-user/no-such-pool", "another suffix": content(".txt", "x"),
    **{f"parquet: {n}": m for n, m in parquet_files("pool.parquet", "instruction").items() if n not in OF_FILES
       and n != "instruction is null"},
}  # fmt: skip
POOL.pop("instruction is null")  # a row without instruction is dropped, and counted
POOL["instruction is null?"] = damaged("pool.jsonl", lambda rows: rows[1].__setitem__("instruction", None))
INSTRUCTIONS = {
    **{f"text: {n}": m for n, m in {**with_suffix(OF_FILES, ".txt"), **texts(".txt")}.items() if n not in ("zero bytes",)},
    **{n: m for n, m in json_lines("contaminated.jsonl", "instruction").items() if "instruction" not in n and "row" not in n},
    "numbers": content(".jsonl", '{"instruction": 17}\n'), "a list": content(".jsonl", '["a"]\n'),
}  # fmt: skip
WIN = {
    **with_suffix(OF_FILES, ".jsonl"),
    **json_lines("one.jsonl", "response"),
    **{f"model: {n}": m for n, m in MODEL_NAMES.items()},
}
RESPONSES = {k: v for k, v in WIN.items() if k not in ("empty",)}


def study_folder(make: Make) -> Make:
    """A study's folder whose only pairs are another class's bad ones."""

    def put(folder: Path, good: Path) -> str:
        path = make(folder, good)
        (folder / "bad-study" / "pairs").mkdir(parents=True)
        Path(path).replace(folder / "bad-study" / "pairs" / "k_sim")
        return str(folder / "bad-study")

    return put


STUDIES: dict[str, Make] = {
    **PATHS, "an empty folder": _folder,
    **{f"pairs: {name}": study_folder(make) for name, make in PAIRS.items()
       if name not in PATHS and name not in ("an empty folder", "no pairs.parquet", "pairs.parquet is a FIFO")},
}  # fmt: skip
KINDS: dict[str, dict[str, Make]] = {
    "study folder": STUDIES,
    "pool": POOL, "score table": CSV, "column map": COLUMN_MAPS,
    "any score table": {k + "?" * (k in ("another first column", "marked-up unknown column")): v for k, v in CSV.items()},
    "variable": {k: v for k, v in WORDS.items() if k != "K_SIM"},
    "annotations": parquet_files("annotations.parquet", "row_id", "score"), "instructions": INSTRUCTIONS,
    "calibration": CALIBRATION, "pair folder": PAIRS, "pairs": PAIR_FILES,
    "pairs as parquet": {k: v for k, v in parquet_files("pairs/pairs.parquet", "chosen").items() if k not in OF_FILES},
    "model": MODELS_OF_FOLDERS, "model name": MODEL_NAMES, "ifeval items": IFEVAL_ITEMS,
    "answers": {**with_suffix(OF_FILES, ".jsonl"), **json_lines("answers.jsonl", "answer")}, "items": ITEMS,
    "judgments": JUDGMENTS, "responses": RESPONSES, "harness results": HARNESS_RESULTS,
    "cards": {**with_suffix(OF_FILES, ".jsonl"), **json_lines("cards.jsonl", "id")},
    "kinship answers": {**with_suffix(OF_FILES, ".jsonl"), **json_lines("own_answers.jsonl", "origin_model")},
    "prompts": {**with_suffix(OF_FILES, ".jsonl"), **json_lines("prompts.jsonl", "prompt")},
    "out file": {**with_suffix({k: v for k, v in OUT.items() if k not in ("a file", "a device")}, ".csv"), "a folder": _folder,
                 "a device": OUT["a device"]},
    "experiment": EXPERIMENT, "experiment's name": EXPERIMENT_NAMES, "out": OUT, "count": COUNT, "seed": SEED,
    "cosine": COSINE, "share": SHARE, "word": WORDS, "device": DEVICE, "dtype": DTYPE, "server": URL,
    "repository": REPOSITORY, "settings": SETTINGS,
    "recorded study": {**with_suffix(OF_FILES, ".tar.gz"), "no archive": content(".tar.gz", b"no archive"),
                       "no archive inside": content(".tar.gz", gzip.compress(b"no archive" * 99)),
                       "nothing inside": content(".tar.gz", gzip.compress(bytes(10240))),
                       "marked-up text": content(".tar.gz", MARKED)},
}  # fmt: skip

# --- commands and their arguments -----------------------------------------------------------------------------------

LINES: dict[str, dict[str, Any]] = {
    "demo": {"--recorded": "@recorded.tar.gz", "--replace": True},
    "binarize": {"--pool": "@pool.jsonl", "--strategy": "k_sim", "--scores": "@scores.csv", "--tau": "-1", "--out": "out",
                 "--exclude-model": None},
    "select": {"--pairs": "@pairs", "--policy": "@model", "--ratio": "0.5", "--device": "cpu", "--dtype": "float32", "--out": "out"},
    "evaluate": {"--answers": "@answers.jsonl", "--benchmark": "arc_easy", "--benchmark-data": "@items", "--out": "out"},
    "train": {"--pairs": "@pairs", "--policy": "@model", "--method": "sft", "-p": ["warmup_steps=0", "sample_tokens=2",
              "per_device_batch_size=2", "gradient_accumulation=1", "devices=1"], "--device": "cpu", "--dtype": "float32", "--out": "out"},
    "export": {"--pairs": "@pairs", "--format": "llama_factory", "--out": "out"},
    "push": {"--study": "@study", "--repo": "me/pairs", "--dry-run": True},
    "kinship": {"--scores": "@scores.csv", "--out": "out"},
    "audit-labels": {"--judgments": "@votes.jsonl", "--scores": "@scores.csv", "--tau": "-1", "--out": "out"},
    "win-rate": {"A": "@one.jsonl", "B": "@two.jsonl", "--judge": "@model", "--device": "cpu", "--dtype": "float32", "--out": "out"},
    "report": {"A": "paper", "--out": "out"}, "read-scores": {"A": "@scores.csv", "--out": "out.csv"},
    "shard": {"A": "pool", "B": "@study.yaml", "--shard": "1/2"},
    "run": {"A": "@study.yaml", "--dry-run": True}, "status": {"A": "@study.yaml"}, "models": {"A": "@study.yaml"},
    "notebook": {"A": "02_kinship_analysis", "B": "@study.yaml"}, "pool": {"A": "@study.yaml"},
    "annotation": {"A": "@study.yaml"}, "density_ratio": {"A": "@study.yaml"}, "cross_evaluation": {"A": "@study.yaml"},
    "reward_evaluation": {"A": "@study.yaml"},
    "selection_evaluation": {"A": "@study.yaml"}, "pairwise_evaluation": {"A": "@study.yaml"},
}  # fmt: skip
STAGE_COMMANDS = (
    "pool",
    "annotation",
    "density_ratio",
    "cross_evaluation",
    "reward_evaluation",
    "selection_evaluation",
    "pairwise_evaluation",
)
ASKED = {"--answers": None, "--model": "@model", "--device": "cpu", "--dtype": "float32", "--limit": "2"}
# command, argument, kind, what else is changed
ARGUMENTS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("binarize", "--pool", "pool", {}), ("binarize", "--scores", "score table", {}),
    ("binarize", "--columns", "column map", {"--scores": "@other.csv"}),
    ("binarize", "--annotations", "annotations", {"--strategy": "rlaif"}),
    ("binarize", "--densities", "annotations", {"--strategy": "density_ratio"}),
    ("binarize", "--decontaminate", "instructions", {}), ("binarize", "--benchmark-data", "items", {"--decontaminate": "arc_easy"}),
    ("binarize", "--affinity-quality", "annotations", {"--strategy": "affinity"}),
    ("binarize", "--affinity-weight", "share", {"--strategy": "affinity"}),
    ("binarize", "--ngram", "count", {"--decontaminate": "@topics.jsonl"}),
    ("binarize", "--overlap", "share", {"--decontaminate": "@topics.jsonl"}), ("binarize", "--near-duplicates", "share", {}),
    ("binarize", "--contaminated", "instructions", {}), ("binarize", "--calibration", "calibration", {}),
    ("binarize", "--out", "out", {}), ("binarize", "--tau", "cosine", {}), ("binarize", "--seed", "seed", {}),
    ("binarize", "--stages", "count", {"--order": "curriculum"}), ("binarize", "--max-response-tokens", "count", {}),
    ("binarize", "--near-identical", "share", {}), ("binarize", "--min-confidence", "share", {}),
    ("binarize", "--max-length-ratio", "ratio", {}), ("binarize", "--strategy", "word", {}),
    ("binarize", "--annotation", "word", {"--strategy": "rlaif"}), ("binarize", "--rejected", "word", {"--strategy": "rlaif"}),
    ("binarize", "--exclude-model", "word", {}), ("binarize", "--exclude-licence", "word", {}), ("binarize", "--order", "word", {}),
    ("binarize", "--expect", "word", {"--strict": True}), ("binarize", "--also", "word", {}),
    ("binarize", "--push-to-hub", "repository", {}), ("binarize", "--revision", "word", {}),
    ("select", "--pairs", "pair folder", {}), ("select", "--pairs", "pairs", {}), ("select", "--pairs", "pairs as parquet", {}),
    ("select", "--policy", "model", {}), ("select", "--reference", "model", {"--implicit": "dpo"}),
    ("select", "--scores", "score table", {"--explicit": "kinship"}),
    ("select", "--columns", "column map", {"--explicit": "kinship", "--scores": "@other.csv"}),
    ("select", "--annotations", "annotations", {"--explicit": "annotation"}),
    ("select", "--metric", "word", {}), ("select", "--explicit", "word", {}), ("select", "--combine", "word", {}), ("select", "--implicit", "word", {}),
    ("select", "--ratio", "ratio of pairs", {}), ("select", "--k", "count", {"--ratio": None}), ("select", "--weight", "weight", {}),
    ("select", "--seed", "seed", {}), ("select", "--threads", "threads", {}), ("select", "--max-length", "count", {}),
    ("select", "--batch-tokens", "count", {}), ("select", "--device", "device", {}), ("select", "--dtype", "dtype", {}),
    ("select", "--out", "out", {}), ("select", "--cache", "out", {}),
    ("evaluate", "--answers", "answers", {}), ("evaluate", "--benchmark-data", "items", {}), ("evaluate", "--benchmark", "word", {}),
    ("evaluate", "--benchmark-data", "ifeval items", {**ASKED, "--benchmark": "ifeval"}), ("evaluate", "--out", "out", {}), ("evaluate", "--limit", "count", {}), ("evaluate", "--model", "model", ASKED),
    ("evaluate", "--protocol", "word", ASKED), ("evaluate", "--device", "device", ASKED), ("evaluate", "--dtype", "dtype", ASKED),
    ("evaluate", "--threads", "threads", ASKED), ("evaluate", "--batch-size", "count", ASKED), ("evaluate", "--backend", "word", ASKED),
    ("evaluate", "--choice-tokens", "tokens", ASKED), ("evaluate", "--cache", "out", ASKED),
    ("evaluate", "--base-url", "server", {**ASKED, "--model": "m"}),
    ("evaluate", "--key-env", "variable", {**ASKED, "--model": "m", "--base-url": "http://127.0.0.1:1/v1"}),
    ("train", "--pairs", "pair folder", {}), ("train", "--pairs", "pairs", {}), ("train", "--pairs", "pairs as parquet", {}),
    ("train", "--policy", "model", {}), ("train", "--method", "word", {}), ("train", "--out", "out", {}),
    ("train", "--held-out", "held out", {}), ("train", "--seed", "seed", {}), ("train", "-p", "settings", {"--method": "dpo"}),
    ("train", "--instructions", "instructions", {"--method": "rloo"}),
    ("train", "--device", "device", {}), ("train", "--dtype", "dtype", {}), ("train", "--threads", "threads", {}),
    ("export", "--pairs", "pair folder", {}), ("export", "--pairs", "pairs", {}), ("export", "--pairs", "pairs as parquet", {}),
    ("export", "--format", "word", {}), ("export", "--out", "out", {}), ("export", "--held-out", "held out", {}),
    ("export", "--instructions", "instructions", {"--format": "trl"}),
    ("push", "--study", "study folder", {}), ("push", "--repo", "repository", {}),
    ("kinship", "--scores", "score table", {}), ("kinship", "--columns", "column map", {"--scores": "@other.csv"}),
    ("kinship", "--tau", "cosine", {}), ("kinship", "--cut", "weight", {}), ("kinship", "--distance", "word", {}),
    ("kinship", "--linkage", "word", {}), ("kinship", "--seed", "seed", {}), ("kinship", "--out", "out", {}),
    ("audit-labels", "--judgments", "judgments", {}), ("audit-labels", "--beside", "judgments", {}),
    ("audit-labels", "--scores", "score table", {}), ("audit-labels", "--columns", "column map", {"--scores": "@other.csv"}),
    ("audit-labels", "--tie", "tie width", {}), ("audit-labels", "--tau", "cosine", {}), ("audit-labels", "--seed", "seed", {}),
    ("audit-labels", "--answers", "kinship answers", {"--judgments": "@pool.jsonl"}),
    ("audit-labels", "--annotations", "annotations", {"--judgments": "@pool.jsonl"}),
    ("audit-labels", "--annotation", "word", {"--judgments": "@pool.jsonl"}), ("audit-labels", "--out", "out", {}),
    ("win-rate", "A", "responses", {}), ("win-rate", "--judge", "model", {}), ("win-rate", "--prompts", "prompts", {}),
    ("win-rate", "--experiment", "experiment's name", {}), ("win-rate", "--tie", "tie", {}), ("win-rate", "--seed", "seed", {}),
    ("win-rate", "--temperature", "temperature", {}), ("win-rate", "--top-p", "ratio", {}), ("win-rate", "--batch-size", "count", {}),
    ("win-rate", "--max-new-tokens", "count", {}), ("win-rate", "--reply-tokens", "count", {}), ("win-rate", "--threads", "threads", {}),
    ("win-rate", "--device", "device", {}), ("win-rate", "--dtype", "dtype", {}), ("win-rate", "--backend", "word", {}),
    ("win-rate", "--base-url", "server", {"--judge": "m"}), ("win-rate", "--out", "out", {}), ("win-rate", "--cache", "out", {}),
    ("report", "A", "experiment's name", {}), ("report", "--out", "out", {}), ("report", "--price", "price", {"A": "@study.yaml"}),
    ("report", "B", "experiment's name", {"A": "@study.yaml"}),
    *((name, "--missing", "word", {}) for name in ("binarize", "kinship", "audit-labels", "read-scores")),
    *((name, option, "word", {}) for name in ("binarize", "kinship", "audit-labels") for option in ("--measure", "--weight")),
    ("select", "--missing", "word", {"--explicit": "kinship", "--scores": "@scores.csv"}),
    ("binarize", "--engine", "word", {}), ("binarize", "--cores", "count", {}),
    ("read-scores", "A", "any score table", {}), ("read-scores", "A", "harness results", {}), ("read-scores", "--columns", "column map", {"A": "@other.csv"}),
    ("read-scores", "--cards", "cards", {}), ("read-scores", "--out", "out file", {}),
    ("read-scores", "--ignore", "word", {}), ("read-scores", "--unit", "word", {}),
    ("shard", "--shard", "word", {}), ("shard", "-p", "word", {}),
    ("run", "--executor", "word", {}), ("run", "--profile", "word", {}), ("run", "--jobs", "count", {}),
    ("demo", "--recorded", "recorded study", {}),
    ("run", "A", "experiment", {}), ("run", "--cores", "cores", {"--dry-run": None}), ("run", "--until", "word", {}),
    ("status", "A", "experiment's name", {}), ("models", "A", "experiment", {}),
    ("notebook", "A", "word", {}), ("notebook", "B", "experiment's name", {}), ("notebook", "-p", "word", {}),
    *((name, "A", "experiment's name", {}) for name in STAGE_COMMANDS),
    *((name, "-p", "word", {}) for name in ("cross_evaluation", "reward_evaluation", "selection_evaluation",
                                                    "pairwise_evaluation")),
]  # fmt: skip
KINDS |= {
    "ratio": numbers("-1", "inf", "0.0", "-0.1"), "ratio of pairs": numbers("0", "-0.1", "1.1", "inf", "1e-300"),
    "weight": numbers("-1", "inf", "-0.0001"), "tie width": numbers("-1", "inf", "-0.0001", "2", "1e300"), "threads": {**COUNT, **values("100000", "4097")},
    "held out": numbers("1", "1.5", "-0.1", "inf"), "tie": numbers("1", "-0.1", "inf"),
    "temperature": numbers("-1", "inf", "5.1"), "price": numbers("-1", "inf"),
    "tokens": {**COUNT, **values("2048", "3000")},  # the good model has 2,048 positions
    "cores": numbers("0", "-1", "100000", whole=True),
}  # fmt: skip


@cache
def list_cases() -> list[Case]:
    """Every (argument, class)."""
    return list(_build_cases())


def _build_cases() -> Iterator[Case]:
    for command, argument, kind, besides in ARGUMENTS:
        for badness, make in KINDS[kind].items():
            if badness == "on a full disk" and not os.environ.get("KARMA_FULL_DISK"):
                continue
            yield Case(command, argument, kind, badness, make, besides)
