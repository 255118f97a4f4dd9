"""Read votes on pairs: PandaLM's test set, MT-Bench's and Chatbot Arena's, and pair folders whose truth is known.

A vote of 1 is for the first response, -1 for the second, 0 a tie. Decision: the turns of an MT-Bench conversation are
prompts of their own, since other answers are compared, and one cluster. Limit: who voted is not kept.

Sources: PandaLM (arXiv 2306.05087), MT-Bench and Chatbot Arena (arXiv 2306.05685).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from karma.errors import InputError, quote
from karma.labels.judgments import Judgments, build_votes, count_characters, get_field, shorten
from karma.pairs.pairs import PairSet, load_pairs

Row = dict[str, Any]
PANDALM = "PandaLM's test set: instruction, cmp_key, annotator1, annotator2, ..."
PANDALM_VOTES = {1: 1.0, 2: -1.0, 0: 0.0}
WINNERS = {"model_a": 1.0, "model_b": -1.0, "tie": 0.0}


def read_pandalm(rows: list[Row], source: str) -> Judgments:
    """Read rows of PandaLM's test set: one prompt, two responses, a vote an annotator; cmp_key names the models.

    Example:
        >>> row = {"instruction": "Hi", "cmp_key": "a_b", "response1": "Hm", "annotator1": 2, "annotator2": 0}
        >>> read_pandalm([row], "test.json").votes[["gap", "n"]].values.tolist()
        [[-0.5, 2.0]]
    """
    votes, texts = [], []
    for row in rows:
        names = str(get_field(row, "cmp_key", source)).split("_")
        if len(names) != 2:
            raise InputError(f"{source}: cmp_key '{row['cmp_key']}' is no two names joined by an underscore")
        given = row.get("input")
        prompt = f"{get_field(row, 'instruction', source)}\n{given if isinstance(given, str) else ''}".rstrip()
        cast = {k: v for k, v in row.items() if re.fullmatch(r"annotator\d+", k)}
        if not cast:
            raise InputError(f"{source}: '{shorten(prompt)}' has no annotator1: expected {PANDALM}")
        for key, vote in cast.items():
            if vote is not None and not (isinstance(vote, int) and vote in PANDALM_VOTES):
                raise InputError(f"{source}: {key} of '{shorten(prompt)}' is {quote(vote)}: expected 1, 2 or 0 (a tie)")
            votes.append((prompt, prompt, *names, math.nan if vote is None else PANDALM_VOTES[vote]))
        texts += [(prompt, name, count_characters(row.get(f"response{k}"))) for k, name in enumerate(names, 1)]
    return _build(votes, texts, source, "pandalm")


def read_arena(rows: list[Row], source: str) -> Judgments:
    """Read votes on two conversations: model_a, model_b, winner, and where known question_id, turn, conversation_a, b.

    Example:
        >>> row = {"model_a": "x", "model_b": "y", "winner": "tie (bothbad)"}
        >>> read_arena([row, {**row, "winner": "model_a"}], "votes.jsonl").votes["gap"].tolist()
        [0.0, 1.0]
    """
    votes, texts = [], []
    for number, row in enumerate(rows, 1):
        turn, winner = row.get("turn") or 1, row.get("winner")
        group = row.get("question_id", number)
        if type(turn) is not int or turn < 1 or not isinstance(group, str | int):
            odd = f"turn {quote(turn)} of question {quote(group)}"
            raise InputError(f"{source}: a vote on {odd}: expected a turn of 1 or more, and a name or number")
        prompt = f"{group}, turn {turn}"
        kind = str(winner).split(" ")[0]  # ties come as "tie (bothbad)" and "tie (inconsistent)" as well
        if winner is not None and kind not in WINNERS:
            raise InputError(
                f"{source}: winner of question {prompt} is {quote(winner)}: expected model_a, model_b or tie"
            )
        names = [str(get_field(row, key, source)) for key in ("model_a", "model_b")]
        votes.append((prompt, group, *names, math.nan if winner is None else WINNERS[kind]))
        for name, key in zip(names, ("conversation_a", "conversation_b"), strict=True):
            turns = row[key] if isinstance(row.get(key), list) else []
            said = [part.get("content") for part in turns if isinstance(part, dict) and part.get("role") == "assistant"]
            texts.append((prompt, name, count_characters(said[turn - 1] if len(said) >= turn else None)))
    return _build(votes, texts, source, "mt_bench")


def _build(votes: list[tuple[Any, ...]], texts: list[tuple[Any, ...]], source: str, layout: str) -> Judgments:
    lengths = pd.DataFrame(texts, columns=["prompt", "model", "length"]).drop_duplicates(["prompt", "model"])
    columns = ["prompt", "group", "first", "second", "vote"]
    return build_votes(pd.DataFrame(votes, columns=columns), source, layout, lengths)


def read_pair_folders(folders: Sequence[Path], source: str) -> Judgments:
    """Read pair sets whose column `truth` says how much better the chosen response is.

    Args:
        folders: of pairs, one a strategy. source: for messages.

    Returns:
        Votes, one a pair of a prompt however many sets hold it, and each set's own pairs under `labelled`.

    Raises:
        InputError: no pair folder, no truth, or one out of range.
    """
    frames = {}
    for folder in folders:
        pairs = load_pairs(folder)
        if pairs.strategy in frames:
            raise InputError(f"{folder}: a second set of {pairs.strategy}: give one folder a strategy")
        frames[pairs.strategy] = _read_truth(pairs, folder)
    rows = pd.concat(frames.values(), ignore_index=True)
    sides = rows[["first", "second"]].apply(sorted, axis=1, result_type="expand")
    once = rows[~rows[["prompt"]].join(sides).duplicated()]
    judgments = build_votes(once, source, "pairs")
    place, at = ({name: i for i, name in enumerate(names)} for names in (judgments.models, judgments.prompts))
    labelled = {}
    for name, frame in frames.items():
        known = frame[frame["vote"].notna()]
        labelled[name] = pd.DataFrame({"prompt": known["prompt"].map(at), "chosen": known["first"].map(place),
                                       "rejected": known["second"].map(place), "gap": known["vote"]})  # fmt: skip
    return replace(judgments, labelled=labelled, unit="truth of one response less that of the other")


def _read_truth(pairs: PairSet, folder: Path) -> pd.DataFrame:
    if "truth" not in pairs.table.column_names:
        raise InputError(f"{folder} has no column 'truth': expected how much better the chosen response is, -1 to 1")
    given = pairs.table["truth"].to_pylist()
    if not all(value is None or isinstance(value, bool | int | float) for value in given):
        raise InputError(f"{folder}: truth is {pairs.table['truth'].type}: expected -1 to 1, or true and false")
    vote = [math.nan if v is None else (1.0 if v else -1.0) if isinstance(v, bool) else float(v) for v in given]
    if wrong := [v for v, g in zip(vote, given, strict=True) if g is not None and not -1 <= v <= 1]:  # NaN too
        raise InputError(f"{folder}: truth {wrong[0]:g} is out of range: expected -1 to 1")
    names = {
        side: pairs.table[f"{key}_model"].to_pylist() for side, key in (("first", "chosen"), ("second", "rejected"))
    }
    ids = pairs.table["row_id"].to_pylist()
    return pd.DataFrame({"prompt": ids, "group": ids, **names, "vote": vote})
