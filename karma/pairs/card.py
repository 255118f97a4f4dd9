"""The data card of a pair set: what a stranger must know before training on it, in the Hub's README format.

Everything in it is counted from the set itself. It carries no date and no path of a machine, so that the
same input gives the same bytes. Limit: licences are those of the origin models UltraFeedback names; other
models are listed as unknown.

Paper: the licence notes are ours; facts on UltraFeedback's origin models.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from karma.pairs.accounting import Accounting
from karma.pairs.lengths import Lengths, describe_length_bias
from karma.pairs.turns import show_turns
from karma.study.escape import escape_markdown, flatten, quote_code
from karma.vocabulary import find_strategy

LICENCE_GROUPS = {
    "vendor": ("gpt-4", "gpt-3.5-turbo", "bard"),
    "llama-2": ("llama-2-7b-chat", "llama-2-13b-chat", "llama-2-70b-chat"),
}
LICENCE_NOTES = {
    "vendor": "the vendor's terms of use restrict training competing models on its outputs",
    "llama-2": "the Llama 2 licence forbids improving other language models with its outputs",
}
LICENCES = {model: LICENCE_NOTES[group] for group, models in LICENCE_GROUPS.items() for model in models}
N_EXAMPLES, EXAMPLE_CHARACTERS = 2, 280
_Key = TypeVar("_Key", str, tuple[str, str])


@dataclass
class CardFacts:
    """What the card counts while pairs stream by."""

    by_models: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    n_several: int = 0
    n_system: int = 0

    def add(self, table: pa.Table) -> None:
        """Count some pairs."""
        groups = table.select(["chosen_model", "rejected_model"]).group_by(["chosen_model", "rejected_model"])
        for row in groups.aggregate([([], "count_all")]).to_pylist():
            self.by_models[row["chosen_model"], row["rejected_model"]] += row["count_all"]
        for chunk in table["prompt"].chunks:
            self.n_several += int((_count_roles(chunk, "user") > 1).sum())
            self.n_system += int((_count_roles(chunk, "system") > 0).sum())
        if len(self.examples) < N_EXAMPLES:
            self.examples += table.slice(0, N_EXAMPLES - len(self.examples)).to_pylist()

    def merge(self, other: "CardFacts") -> None:
        """Add what was counted of the pairs that follow."""
        self.by_models.update(other.by_models)
        self.n_several += other.n_several
        self.n_system += other.n_system
        self.examples += other.examples[: N_EXAMPLES - len(self.examples)]


def build_card(accounting: Accounting, facts: CardFacts, lengths: Lengths, command: str = "") -> str:
    """Return README.md for a pair set, whose `lengths` are those of `karma.pairs.lengths`."""
    s, strategy = accounting.settings, accounting.strategy
    made = find_strategy(strategy)
    parts = [
        f"---\n{yaml.safe_dump(_build_metadata(accounting), sort_keys=False)}---",
        f"# {escape_markdown(strategy)}: {accounting.pairs_out:,} preference pairs",
        f"Each pair is {made.rule}; chosen is the response with the higher score, "
        f"and the score is {made.label}. "
        "Made with the KARMA kit (method: arXiv 2502.18744).",
        _build_selection(s),
        _build_overlaps(accounting),
        "## Made from\n\n" + build_table(("what", "value"), [(k.replace("_", " "), v) for k, v in s.items()]),
        f"Command: {quote_code(command)}" if command else "",
        "## Counts\n\n" + build_table(("what", "n"), [(name, f"{n:,}") for name, n in accounting.as_counts().items()]),
        f"## Length\n\n{describe_length_bias(lengths)} Where this is far from a half, a policy learns length beside "
        "what the pairs are meant to teach; `karma binarize --max-length-ratio` pairs responses of like length.",
        _build_turns(facts),
        "## Pairs by origin model\n\n"
        + build_table(("chosen", "rejected", "pairs"), [(*k, f"{n:,}") for k, n in _by_count(facts.by_models)]),
        "## Licences\n\n" + build_licences(facts.by_models),
        "## Example rows\n\n" + "\n\n".join(_build_example(e) for e in facts.examples),
        "## Columns\n\n`prompt`, `chosen`, `rejected` are lists of role/content messages, "
        "as TRL's DPOTrainer takes them; for SFT "
        "rename `chosen` to `completion`. `kinship` is the cosine of the two origin models, `label_confidence` "
        f"{_CALIBRATED if s.get('calibration') else _UNCALIBRATED} (empty where it is unknown). "
        "`row_id`, `chosen_id` and "
        "`rejected_id` are hashes of content." + (_SELECTION_COLUMNS if "metric" in s else ""),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _count_roles(prompts: pa.ListArray, role: str) -> np.ndarray:
    """Return how many messages of a role each prompt has."""
    turns = pc.equal(pc.struct_field(prompts.flatten(), "role"), role).to_numpy(zero_copy_only=False)
    ends = np.r_[0, np.cumsum(prompts.value_lengths().to_numpy(zero_copy_only=False))].astype(int)
    return np.diff(np.r_[0, np.cumsum(turns)][ends])


def _build_turns(facts: CardFacts) -> str:
    """Say how many prompts are conversations, where any are."""
    if not (facts.n_several or facts.n_system):
        return ""
    return (
        f"## Conversations\n\n{facts.n_several:,} prompts have several turns of the user, {facts.n_system:,} a system "
        "message. The two sides of a pair differ in the last answer alone; what comes before it is `prompt`, and no "
        "answer in it is trained on."
    )


_UNCALIBRATED = "the probability that sampling error of their scores leaves the label as it is"
_CALIBRATED = "the probability that the label is right, by a model fitted on recorded judgments"
_SELECTION_COLUMNS = (
    " `explicit_margin` is how far the scores of chosen and rejected lie apart, `implicit_margin` how far the "
    "policy's log-probabilities do, and `potential` z(explicit) - weight z(implicit) over all candidates."
)


def _build_selection(settings: dict[str, Any]) -> str:
    """Say how the pairs were selected from a larger set, where they were."""
    if "metric" not in settings:
        return ""
    rule, policy = escape_markdown(settings["rule"]), quote_code(settings["policy"])
    kept = f"{settings['k']:,} of {settings['candidates']:,} candidate pairs"
    return (
        f"Selected: {kept} by {quote_code(settings['metric'])} ({rule}) for the policy {policy}. "
        "It was made for this policy and this pool, and says nothing about others."
    )


def _build_overlaps(accounting: Accounting) -> str:
    """Say what decontamination and near-duplicates left out, where they were asked for."""
    s, said = accounting.settings, []
    if "decontaminate" in s:
        prompts, responses = accounting.dropped["benchmark_prompt"], accounting.responses_unused["benchmark_response"]
        said.append(f"Decontaminated: {prompts:,} prompts and {responses:,} responses are left out for "
                    f"{escape_markdown(s['decontaminate'])}.")  # fmt: skip
    if "near_duplicates" in s:
        said.append(f"Near-duplicates: {accounting.dropped['near_duplicate']:,} prompts are left out that are "
                    f"{s['near_duplicates']:g} alike or more to one that is kept (Jaccard of 5-character pieces, by "
                    "MinHash).")  # fmt: skip
    return " ".join([*said, "Each is listed in `overlaps.csv`."]) if said else ""


def _build_metadata(accounting: Accounting) -> dict[str, Any]:
    n = accounting.pairs_out
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    size = next((name for limit, name in bounds if n < limit), "1M<n<10M")
    return {
        "pretty_name": f"KARMA pairs ({accounting.strategy})",
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "karma", accounting.strategy],
        "license": "other",
        "license_name": "see-licences-below",
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "pairs.parquet"}]}],
    }


def build_licences(by_models: Counter[tuple[str, str]]) -> str:
    """Return the table of licence notes with the pairs that each concerns, by the models of chosen and rejected."""
    total, rows = by_models.total(), Counter[str]()
    for models, n in by_models.items():
        rows.update(
            dict.fromkeys({LICENCES.get(m, "no note for this origin model: look up its licence") for m in models}, n)
        )
    notes = [(note, f"{n:,}", f"{n / total:.1%}") for note, n in _by_count(rows)]
    intro = (
        "The responses stay under the terms of the models that wrote them. "
        "`karma binarize --exclude-model NAME` leaves one out, `--exclude-licence` a group."
    )
    return f"{intro}\n\n" + build_table(("note", "pairs concerned", "share"), notes)


def _build_example(row: dict[str, Any]) -> str:
    chosen, rejected = (escape_markdown(row[key]) for key in ("chosen_model", "rejected_model"))
    lines = [f"**{chosen}** over **{rejected}**"]
    for name in ("prompt", "chosen", "rejected"):
        lines.append(f"- {name}: {_quote(show_turns(row[name]) if name == 'prompt' else row[name][-1]['content'])}")
    return "\n".join(lines)


def _quote(text: str) -> str:
    flat = flatten(text[: 20 * EXAMPLE_CHARACTERS])  # a long answer is not read to its end
    return escape_markdown(flat if len(flat) <= EXAMPLE_CHARACTERS else flat[: EXAMPLE_CHARACTERS - 1] + "…")


def _by_count(counter: Counter[_Key]) -> list[tuple[_Key, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def build_table(header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    """Return a Markdown table, its cells escaped."""
    lines = [header, ("---",) * len(header), *(map(escape_markdown, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
