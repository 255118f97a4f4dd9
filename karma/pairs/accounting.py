"""The books of a pair set: every row and every response of the pool is counted once, by what became of it.

rows_in = pairs_out + sum(dropped), and responses_in = responses_usable + sum(responses_unused). The two
sums are checked before anything is written; a set whose books do not balance is a bug, and raises.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from karma.errors import InputError, KarmaError, quote

_NAME = re.compile(r"[\w.+-]{1,100}")
DROPPED = {
    "no_prompt": "the instruction is missing or blank",
    "truthfulqa": "the row comes from TruthfulQA, or repeats one of its questions (filter)",
    "contaminated": "the instruction is on the list of contaminated instructions (filter)",
    "benchmark_prompt": "the instruction shares a run of words with a benchmark's item (decontaminate)",
    "near_duplicate": "the instruction nearly repeats that of a row that is kept (near_duplicates)",
    "fewer_than_two_responses": "fewer than two usable responses",
    "fewer_than_two_annotated": "two usable responses or more, but fewer than two of them annotated",
    "one_origin_model": "all usable responses are by one origin model",
    "below_tau": "no pair of origin models reaches tau",
    "unlike_lengths": "no eligible pair's lengths lie within the ratio asked for (max_length_ratio)",
    "unknown_quality": "no eligible pair's quality is known (affinity)",
    "no_sure_label": "no eligible pair's label is sure enough (k_sure)",
    "equal_s_pref": "the pair the strategy picks has equal S_pref: no preference",
    "equal_annotation": "all annotations are equal: no preference",
    "unsure_label": "the label of the pair the strategy picks is less sure than asked for (min_confidence)",
    "identical_responses": "chosen and rejected are the same text",
    "near_identical_responses": "chosen and rejected share nearly all their words (filter)",
    "differing_system_prompt": "chosen and rejected obeyed different hidden system prompts (filter)",
    "empty_answer": "one of the policy's answers is empty (self-play)",
    "identical_answers": "all of the policy's answers are the same text (self-play)",
    "equal_scores": "all of the policy's answers score the same: no preference (self-play)",
    "not_drawn": "a pair beyond the number of candidates, which are drawn at random (self-play)",
    "not_shared": "another requested strategy dropped the row (match_rows)",
    "beyond_smallest": "a pair beyond the number that the smallest set trains on, by draw (equal_numbers)",
    "held_out": "kept out of training (split)",
    "in_training": "trained on, in the other part of the split",
    "empty_text": "chosen or rejected is blank",
    "empty_turn": "a message of the user's or the assistant's before the last one is blank",
    "refused_by_template": "the policy's chat template refuses the conversation, or leaves a message out",
    "no_explicit_margin": "a score is missing or not finite: no explicit margin (selection)",
    "no_implicit_margin": "the prompt fills max_length, or the log-probability is not finite: no implicit margin",
    "not_selected": "a candidate that the metric ranked too low (selection)",
}
UNUSED = {
    "no_model": "the completion names no origin model",
    "excluded_origin_model": "its origin model is excluded",
    "empty_response": "the response is missing or blank",
    "over_length": "the response is longer than the limit (filter)",
    "benchmark_response": "the response shares a run of words with a benchmark's item (decontaminate)",
    "not_annotated": "the response has no annotation (rlaif), or no log-probabilities (density_ratio)",
}


@dataclass
class Accounting:
    """Counts of one strategy's pair set.

    Attributes:
        strategy: a key of `karma.vocabulary.STRATEGIES`; binarized: pairs that others made.
        rows_in, pairs_out: prompts read, pairs made.
        dropped: reason (a key of DROPPED) -> rows.
        responses_in, responses_usable: completions read, completions a pair could be made of.
        responses_unused: reason (a key of UNUSED) -> completions.
        settings: what the set was made with.
    """

    strategy: str
    rows_in: int = 0
    pairs_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    responses_in: int = 0
    responses_usable: int = 0
    responses_unused: Counter[str] = field(default_factory=Counter)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, other: "Accounting") -> None:
        """Add the counts of another part of the same pool."""
        for name in ("rows_in", "pairs_out", "responses_in", "responses_usable"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.responses_unused.update(other.responses_unused)

    def check(self) -> None:
        """Raise where the books do not balance."""
        if self.rows_in != self.pairs_out + self.dropped.total():
            raise KarmaError(
                f"{self.strategy}: {self.rows_in} rows in, but {self.pairs_out} pairs "
                f"and {self.dropped.total()} dropped"
            )
        if self.responses_in != self.responses_usable + self.responses_unused.total():
            raise KarmaError(f"{self.strategy}: {self.responses_in} responses in do not add up")

    def check_expected(self, expected: Collection[str]) -> None:
        """Raise where rows or responses were lost for a reason that nobody listed (`--strict`)."""
        unknown = sorted(set(expected) - set(DROPPED) - set(UNUSED))
        if unknown:
            raise InputError(
                f"expected '{unknown[0]}' is no reason to drop: choose from {', '.join([*DROPPED, *UNUSED])}"
            )
        for reason, n in (self.dropped + self.responses_unused).items():
            if reason not in expected:
                what = "rows" if reason in DROPPED else "responses"
                raise InputError(
                    f"{self.strategy}: {what} lost as '{reason}': {n} ({(DROPPED | UNUSED)[reason]}), "
                    f"which strict mode does not expect: repair the pool, or pass --expect {reason}"
                )

    def as_dict(self) -> dict[str, Any]:
        """Return what accounting.json holds, reasons in a fixed order."""
        return {
            "strategy": self.strategy,
            "rows_in": self.rows_in,
            "pairs_out": self.pairs_out,
            "dropped": {k: self.dropped[k] for k in DROPPED if self.dropped[k]},
            "responses_in": self.responses_in,
            "responses_usable": self.responses_usable,
            "responses_unused": {k: self.responses_unused[k] for k in UNUSED if self.responses_unused[k]},
            "settings": self.settings,
        }

    def as_counts(self) -> dict[str, int]:
        """Return every count under a name for people, for a table: rows first, then responses."""
        return {
            "prompts in the pool": self.rows_in,
            "pairs": self.pairs_out,
            **{f"dropped: {text}": self.dropped[k] for k, text in DROPPED.items() if self.dropped[k]},
            "responses in the pool": self.responses_in,
            "usable responses": self.responses_usable,
            **{f"unused: {text}": self.responses_unused[k] for k, text in UNUSED.items() if self.responses_unused[k]},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "accounting.json") -> "Accounting":
        """Read what `as_dict` wrote.

        Raises:
            InputError: a count is missing or the counts do not add up.
        """
        _check_books(values, where)
        values = {key: value for key, value in values.items() if key != "length_bias"}  # of the folder, not the books
        try:
            accounting = cls(**{**values, "dropped": Counter(values["dropped"]),
                                "responses_unused": Counter(values["responses_unused"])})  # fmt: skip
            accounting.check()
        except (TypeError, KeyError, KarmaError) as error:
            raise InputError(f"{where} is no accounting of a pair set: {error}") from error
        return accounting


def _check_books(values: Any, where: str) -> None:
    """Raise an InputError where a member of accounting.json is not of its kind."""
    wrong = None
    if not isinstance(values, dict):
        wrong = f"it holds {type(values).__name__}"
    elif not isinstance(name := values.get("strategy"), str) or not _NAME.fullmatch(name):
        wrong = f"strategy is {quote(values.get('strategy'))}, expected a name"
    elif not isinstance(values.get("settings"), dict):
        wrong = f"settings is {quote(values.get('settings'))}, expected an object"
    else:
        reasons = {key: values.get(key) for key in ("dropped", "responses_unused")}
        counts = {key: values.get(key) for key in ("rows_in", "pairs_out", "responses_in", "responses_usable")}
        for key, held in reasons.items():
            if not isinstance(held, dict):
                wrong = f"{key} is {quote(held)}, expected counts by reason"
                break
            known = DROPPED if key == "dropped" else UNUSED
            if unknown := [reason for reason in held if reason not in known]:
                wrong = f"{key} names {quote(unknown[0])}, which is no reason"
                break
            counts |= {f"{key}.{reason}": n for reason, n in held.items()}
        odd = [key for key, n in counts.items() if type(n) is not int or not 0 <= n < 2**53]
        if wrong is None and odd:
            wrong = f"{odd[0]} is {quote(counts[odd[0]])}, expected a count"
    if wrong is not None:
        raise InputError(f"{where} is no accounting of a pair set: {wrong}")
