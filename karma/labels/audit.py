"""Which labels the truth confirms: every pair of a study against what a program checked.

The truth of a response is the share of its prompt's verifiable instructions that it follows, read strictly
(`karma.evaluation.ifeval`), in [0, 1]. A pair is decided where the truths of its two responses differ, and right where
the chosen one's is higher: label accuracy = right / decided. One pair a prompt makes the pairs independent, so the
share carries Wilson's 95 % interval. The row `truth` pairs a prompt's best response with its worst: what a perfect
annotator of the same responses would reach, and how many prompts can be decided at all.
Decision: undecided pairs count neither way and are shown, since a coin would be right in half of them.
Limit: the truth is what the checkers see. A response that follows every instruction may still be worse in all else.

Paper: ours; section 2.4 (the labels), IFEval (arXiv 2311.07911) for the checkers.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from karma.errors import InputError
from karma.evaluation.ifeval import check_instructions
from karma.evaluation.prompts import Prompt
from karma.files.reading import compute_digest
from karma.files.writing import atomic_path
from karma.pool.pool import ResponsePool
from karma.pool.responses import to_hex
from karma.scores.names import canonical_model_name
from karma.statistics.intervals import compute_mean, compute_wilson
from karma.vocabulary import STRATEGIES

CEILING = "truth"  # in place of a strategy: the best response by the truth itself against the worst
COLUMNS = ["strategy", "n_pairs", "n_decided", "label_accuracy", "low", "high", "mean_s_pref_gap", "mean_truth_gap",
           "judge_calls"]  # fmt: skip


def compute_truth(prompts: Sequence[Prompt], pool: ResponsePool, excluded: Collection[str] = ()) -> pd.DataFrame:
    """Check every response of a pool.

    Args:
        prompts: verifiable, at least those of the pool. pool: whose instructions are the prompts' texts.
        excluded: origin models whose responses take no part in pairs.

    Returns:
        One row a response that names its origin model, in the pool's order: row_id, response_id, model, usable (not
        blank, its model not excluded), truth in [0, 1] (blank: 0).

    Raises:
        InputError: an instruction of the pool that is none of the prompts, or a prompt without instructions.

    Example:
        >>> from karma.evaluation.prompts import build_prompt
        >>> from karma.pool.pool import load_pool
        >>> prompt = build_prompt("Describe rain.", ["punctuation:no_comma"], "[{}]")
        >>> answers = [{"model": "a", "response": "Wet."}, {"model": "b", "response": "Wet, cold."}]
        >>> pool = load_pool([{"source": "s", "instruction": prompt.text, "completions": answers}])
        >>> compute_truth([prompt], pool)[["model", "truth"]].to_dict("records")
        [{'model': 'a', 'truth': 1.0}, {'model': 'b', 'truth': 0.0}]
    """
    known = {prompt.text: prompt for prompt in prompts}
    without = {canonical_model_name(name) for name in excluded}
    rows: list[dict[str, Any]] = []
    for batch in pool.batches():
        row_ids, ids = to_hex(batch.row_digest).to_pylist(), to_hex(batch.response_digest).to_pylist()
        asked, texts = batch.instruction.to_pylist(), pc.fill_null(batch.response, "").to_pylist()
        for k in range(len(texts)):
            if batch.model[k] < 0:
                continue
            row, name = int(batch.row[k]), batch.model_names[batch.model[k]]
            prompt = known.get(asked[row])
            if prompt is None or not prompt.instruction_ids:
                text = (asked[row] or "")[:60]
                raise InputError(f"the pool's '{text}' is no verifiable prompt of the study's: "
                                 "name its file in pool.instructions, or set labels.audit to false")  # fmt: skip
            verdicts = check_instructions(prompt.item, texts[k])["strict"]
            rows.append({"row_id": row_ids[row], "response_id": ids[k], "model": name,
                         "usable": bool(texts[k].strip()) and name not in without,
                         "truth": sum(verdicts) / len(verdicts)})  # fmt: skip
    return pd.DataFrame(rows, columns=["row_id", "response_id", "model", "usable", "truth"])


def audit_pairs(strategy: str, pairs: pd.DataFrame, responses: pd.DataFrame, s_pref: pd.Series) -> dict[str, Any]:
    """Measure one strategy's labels.

    Args:
        strategy: its name, for the row. pairs: row_id, chosen_id, rejected_id, one pair a prompt.
        responses: from `compute_truth`. s_pref: model -> S_pref in [0, 1].

    Returns:
        COLUMNS but judge_calls; None where nothing is decided, or there is no pair.

    Raises:
        InputError: two pairs of one prompt, a response that is not in the pool, or a model without S_pref.

    Example:
        >>> columns = ["row_id", "response_id", "model", "truth"]
        >>> responses = pd.DataFrame([("r", "x", "a", 1.0), ("r", "y", "b", 0.5)], columns=columns)
        >>> pairs = pd.DataFrame([("r", "x", "y")], columns=["row_id", "chosen_id", "rejected_id"])
        >>> row = audit_pairs("k_sim", pairs, responses, pd.Series({"a": 0.7, "b": 0.3}))
        >>> row["n_decided"], row["label_accuracy"], round(row["mean_s_pref_gap"], 3), row["mean_truth_gap"]
        (1, 1.0, 0.4, 0.5)
    """
    if pairs["row_id"].duplicated().any():
        raise InputError(f"{strategy}: two pairs of one prompt; the interval takes one pair a prompt")
    found = responses.drop_duplicates(["row_id", "response_id"]).set_index(["row_id", "response_id"])
    scores = s_pref.rename(canonical_model_name)
    sides = []
    for side in ("chosen_id", "rejected_id"):
        part = found.reindex(pd.MultiIndex.from_frame(pairs[["row_id", side]]))
        if part["truth"].isna().any():
            lost = part.index[part["truth"].isna()][0]
            raise InputError(f"{strategy}: response {lost[1]} of row {lost[0]} is not in the pool: "
                             "make the pairs of this pool again")  # fmt: skip
        gap = part["model"].map(canonical_model_name).map(scores)
        if gap.isna().any():
            name = part["model"][gap.isna()].iloc[0]
            raise InputError(f"{strategy}: origin model '{name}' has no S_pref: run 02_kinship_analysis again")
        sides.append((part["truth"].to_numpy(), gap.to_numpy(float)))
    (chosen, chosen_score), (rejected, rejected_score) = sides
    n_right, n_wrong = int((chosen > rejected).sum()), int((chosen < rejected).sum())
    n, n_decided = len(pairs), n_right + n_wrong
    share = n_right / n_decided if n_decided else None
    low, high = compute_wilson(share, n_decided) if share is not None else (None, None)
    return {"strategy": strategy, "n_pairs": n, "n_decided": n_decided, "label_accuracy": share, "low": low,
            "high": high, "mean_s_pref_gap": float((chosen_score - rejected_score).mean()) if n else None,
            "mean_truth_gap": float((chosen - rejected).mean()) if n else None}  # fmt: skip


def build_ceiling(responses: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Pair each prompt's best response by the truth with its worst; equal ones are drawn by (seed, row, response).

    Args:
        responses: from `compute_truth`. seed: the pool's.

    Returns:
        row_id, chosen_id, rejected_id of every prompt with two usable responses, equal truths included (undecided).

    Example:
        >>> rows = [("r", "x", True, 0.5), ("r", "y", True, 1.0), ("r", "z", False, 0.0)]
        >>> responses = pd.DataFrame(rows, columns=["row_id", "response_id", "usable", "truth"])
        >>> build_ceiling(responses, seed=0).to_dict("records")
        [{'row_id': 'r', 'chosen_id': 'y', 'rejected_id': 'x'}]
    """
    rows = []
    for row_id, part in responses[responses["usable"]].groupby("row_id", sort=False):
        if len(part) < 2:
            continue
        draws = [compute_digest([seed, row_id, response]) for response in part["response_id"]]
        order = part.assign(draw=draws).sort_values(["truth", "draw"])["response_id"]
        rows.append((row_id, order.iloc[-1], order.iloc[0]))
    return pd.DataFrame(rows, columns=["row_id", "chosen_id", "rejected_id"])


def audit_strategies(
    sets: Mapping[str, pa.Table], responses: pd.DataFrame, s_pref: pd.Series, judge_calls: int, seed: int
) -> pd.DataFrame:
    """Measure every strategy of a study, and the ceiling.

    Args:
        sets: strategy -> its pairs. responses: from `compute_truth`. s_pref: model -> S_pref in [0, 1].
        judge_calls: responses that were read to label rlaif's pairs. seed: of the ceiling's ties.

    Returns:
        COLUMNS, one row a strategy in the vocabulary's order, the ceiling last; missing values where nothing is
        decided.

    Raises:
        InputError: as `audit_pairs`.
    """
    names = [name for name in STRATEGIES if name in sets]
    tables = {name: sets[name].select(["row_id", "chosen_id", "rejected_id"]).to_pandas() for name in names}
    tables[CEILING] = build_ceiling(responses, seed)
    rows = [audit_pairs(name, table, responses, s_pref) | {"judge_calls": judge_calls if name == "rlaif" else 0}
            for name, table in tables.items()]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).astype({k: float for k in COLUMNS[3:8]})


def compare_models(responses: pd.DataFrame, s_pref: pd.Series) -> pd.DataFrame:
    """Put each origin model's S_pref beside the mean truth of its responses, best S_pref first.

    Args:
        responses: from `compute_truth`. s_pref: model -> S_pref in [0, 1].

    Returns:
        model, s_pref, n_prompts, n_responses, truth, low, high: Student's t with the prompt as the unit; no interval
        where a model answered one prompt.

    Example:
        >>> rows = [("r", "a", 1.0), ("s", "a", 0.5), ("r", "b", 0.5), ("s", "b", 0.5)]
        >>> responses = pd.DataFrame(rows, columns=["row_id", "model", "truth"])
        >>> compare_models(responses, pd.Series({"a": 0.2, "b": 0.9}))[["model", "s_pref", "truth"]].values.tolist()
        [['b', 0.9, 0.5], ['a', 0.2, 0.75]]
    """
    scores, rows = s_pref.rename(canonical_model_name), []
    for name, part in responses.groupby("model", sort=False):
        prompts = part.groupby("row_id")["truth"].agg(["sum", "size"])
        mean = compute_mean(prompts["sum"], prompts["size"])
        rows.append({"model": name, "s_pref": scores.get(canonical_model_name(str(name))), "n_prompts": len(prompts),
                     "n_responses": len(part), "truth": mean["value"], "low": mean["low"],
                     "high": mean["high"]})  # fmt: skip
    columns = ["model", "s_pref", "n_prompts", "n_responses", "truth", "low", "high"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["s_pref", "model"], ascending=[False, True], ignore_index=True)


def save_audit(strategies: pd.DataFrame, responses: pd.DataFrame, models: pd.DataFrame, folder: Path) -> None:
    """Write strategies.csv, responses.csv and models.csv, each whole; what is not known is an empty cell."""
    for name, frame in (("strategies", strategies), ("responses", responses), ("models", models)):
        with atomic_path(folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
