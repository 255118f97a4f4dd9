"""Every two models against each other before one judge: verdicts, win rates and ratings, and the words for them.

Decision: each pair of models is asked on its own, on the prompts that both answered, so that one model more asks
nothing again of the others, and every row of win_rates.csv stands alone; ratings use all pairs at once.
Limit: one judge. Where it is one of the models it may prefer its own responses, which is said and not corrected.

Source: win rates as AlpacaEval 2 (arXiv 2404.04475), both orders as MT-Bench (arXiv 2306.05685).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.files.writing import atomic_path, save_json
from karma.labels.compared import Compared, show_prompt
from karma.labels.pairwise import JUDGE_PROMPT, judge_pair
from karma.labels.ratings import compute_ratings
from karma.labels.win_rates import UNREAD, check_sides, combine_orders, compute_win_rates
from karma.models.ask import CachedModel, Prompt
from karma.statistics.intervals import compute_comparison_share
from karma.study.escape import escape_markdown, quote_code, write_markdown

LEAST_CONSISTENCY = 0.6  # below it the verdicts say more of the places than of the responses; ours
MOST_UNREAD = 0.1  # share of verdicts; ours, as for answers of benchmarks


@dataclass(frozen=True, eq=False)
class Tournament:
    """What one judge said of several models.

    Attributes:
        verdicts: columns of `karma.labels.win_rates.VERDICTS`. rates: win_rates.csv.
        ratings: ratings.csv; None for two models, whose win rate says it all.
        books: accounting.json: the judge, each model's source, counts.
    """

    verdicts: pd.DataFrame
    rates: pd.DataFrame
    ratings: pd.DataFrame | None
    books: dict[str, Any]


def hold_tournament(
    models: Sequence[Compared], prompts: Mapping[str, Prompt], judge: CachedModel, tie: float, reply_tokens: int,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> Tournament:  # fmt: skip
    """Judge models two by two on the prompts that both answered.

    Args:
        models: two or more, of different names. prompts: prompt_id -> text or conversation. judge: who decides.
        tie: preferences for and against that are this close are ties. reply_tokens: of a judge that writes.
        pairs: names of the models to be set against each other; None: every two.

    Raises:
        InputError: fewer than two models, a name twice, a tie out of range, or two models without a common prompt; no
            judge has been asked then.
    """
    names = [model.name for model in models]
    check_sides(names, tie)
    known = {model.name: model for model in models}
    sides = [(known[a], known[b]) for a, b in (combinations(names, 2) if pairs is None else pairs)]
    for a, b in sides:
        if not a.responses.keys() & b.responses.keys() & prompts.keys():
            raise InputError(f"{a.name} and {b.name} have no common prompts: nothing can be compared")
    parts, costs, texts = [], {}, {name: show_prompt(prompt) for name, prompt in prompts.items()}
    for a, b in sides:
        pair = (a.name, b.name)
        table, cost = judge_pair(judge, texts, pair, (a.responses, b.responses), tie, reply_tokens)
        parts.append(table)
        costs[pair] = {"calls": cost.calls, "prompt_tokens": cost.prompt_tokens, "seconds": cost.seconds}
    verdicts = pd.concat(parts, ignore_index=True)
    comparisons = combine_orders(verdicts, tie)
    lengths = {model.name: {prompt: len(text) for prompt, text in model.responses.items()} for model in models}
    rates = compute_win_rates(comparisons, lengths, costs)
    ratings = compute_ratings(comparisons) if len(models) > 2 else None
    books = {
        "judge": judge.name, "judge_digest": judge.digest, "judge_backend": judge.backend.name,
        "judge_dtype": judge.dtype, "judge_device": judge.model_device, "asked_now": judge.n_asked,
        "kept_from_before": judge.n_cached, "tie": tie, "n_prompts": len(prompts),
        "models": {model.name: model.source for model in models}, **_count(verdicts, comparisons),
        "judges_itself": _find_itself(models, judge),
    }  # fmt: skip
    return Tournament(verdicts, rates, ratings, books)


def _count(verdicts: pd.DataFrame, comparisons: pd.DataFrame) -> dict[str, Any]:
    asked = verdicts[verdicts["p_first"] != 0.5]  # equal responses are no evidence on places
    judged = comparisons[comparisons["preference"].notna()]
    hits = judged.groupby("prompt_id")["is_consistent"].agg(["sum", "size"])
    sides = pd.concat([judged.set_index(side)["is_consistent"] for side in ("model_a", "model_b")])
    by_model = sides.groupby(level=0).agg(["sum", "size"])
    found = compute_comparison_share(hits["sum"], hits["size"], by_model["sum"], by_model["size"])
    return {
        "n_verdicts": len(verdicts), "n_unread": int((verdicts["verdict"] == UNREAD).sum()),
        "n_comparisons": len(comparisons), "n_judged": len(judged),
        "first_place": _plain(asked["p_first"].mean()), "consistency": {k: _plain(v) for k, v in found.items()},
    }  # fmt: skip


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _find_itself(models: Sequence[Compared], judge: CachedModel) -> list[str]:
    """Return the models that are the judge: the same weights, or of recorded responses the same name."""
    own = judge.name.rstrip("/").rpartition("/")[2].casefold()
    return [m.name for m in models
            if (m.digest == judge.digest if m.digest else m.name.rpartition("/")[2].casefold() == own)]  # fmt: skip


def save_tournament(found: Tournament, folder: Path, command: str = "") -> None:
    """Write verdicts.parquet, win_rates.csv, ratings.csv (of more than two), accounting.json, README.md, each whole."""
    with atomic_path(folder / "verdicts.parquet") as temporary:
        found.verdicts.to_parquet(temporary, index=False)
    tables = {"win_rates": found.rates} | ({} if found.ratings is None else {"ratings": found.ratings})
    for name, frame in tables.items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    if found.ratings is None:
        (folder / "ratings.csv").unlink(missing_ok=True)  # of an earlier run, of more models
    save_json(found.books, folder / "accounting.json")
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(build_card(found, command), "utf-8")


def describe_tournament(found: Tournament) -> list[str]:
    """Say in a few lines who won, how sure that is, and what to be wary of."""
    books = found.books
    first = "" if books["first_place"] is None else f"; it prefers the first place with {books['first_place']:.2f}"
    lines = [
        f"{books['judge']} judged {books['n_judged']:,} of {books['n_comparisons']:,} comparisons in both orders, "
        f"{books['n_unread']} of {books['n_verdicts']:,} verdicts unread{first}"
    ]
    for _, row in found.rates.iterrows():
        lines.append(f"{row['model_a']} over {row['model_b']}: {_show(row, 'win_rate', 'low', 'high')}, "
                     f"length-controlled {_show(row, 'length_controlled', 'lc_low', 'lc_high')}; "
                     f"{int(row['n_judged'])} prompts, {int(row['n_ties'])} ties, "
                     f"consistency {_number(row['consistency'])}")  # fmt: skip
    if found.ratings is not None:
        lines += [f"{row['model']}: rating {_number(row['rating'], '+.2f')} [{_number(row['low'], '+.2f')}, "
                  f"{_number(row['high'], '+.2f')}], win rate {_number(row['win_rate'])}"
                  for _, row in found.ratings.iterrows()]  # fmt: skip
    return [*lines, *(f"note: {note}" for note in list_notes(found))]


def list_notes(found: Tournament) -> list[str]:
    """Return what a reader should be wary of, a sentence each."""
    books, notes = found.books, []
    for name in books["judges_itself"]:
        notes.append(f"the judge is {name} itself, and judges prefer their own responses")
    consistency = books["consistency"]["value"]
    if consistency is not None and consistency < LEAST_CONSISTENCY:
        notes.append(f"both orders name the same winner in {consistency:.2f} of the comparisons only: "
                     "the judge mostly sees places, not responses")  # fmt: skip
    if books["n_unread"] > MOST_UNREAD * books["n_verdicts"]:
        share = books["n_unread"] / books["n_verdicts"]
        notes.append(f"{share:.0%} of the verdicts cannot be read, and their prompts are left out")
    for name, source in books["models"].items():
        if source.get("empty"):
            notes.append(f"{source['empty']} responses of {name} are empty, and their prompts are left out")
    if found.ratings is None:
        notes.append("two models alone do not tell how hard a prompt is: the length control has no difficulty term")
    elif found.ratings["rating"].isna().any():
        notes.append("some models win or lose every comparison with the rest: ratings have no bound, and none is given")
    return notes


def _show(row: pd.Series, value: str, low: str, high: str) -> str:
    if np.isnan(row[value]):
        return "unknown"
    return f"{row[value]:.3f} [{row[low]:.3f}, {row[high]:.3f}]"


def _number(value: float, form: str = ".2f") -> str:
    return "none" if np.isnan(value) else f"{value:{form}}"


def build_card(found: Tournament, command: str = "") -> str:
    """Return README.md: who was compared by whom, what came out, and how to read it; no date, no machine."""
    books = found.books
    facts = [(key.replace("_", " "), books[key]) for key in (
        "judge", "judge_digest", "judge_backend", "judge_dtype", "judge_device", "n_prompts", "n_comparisons",
        "n_judged", "n_verdicts", "n_unread", "first_place", "tie")]  # fmt: skip
    sources = [(name, ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in source.items()))
               for name, source in books["models"].items()]  # fmt: skip
    tables = ["## Win rates\n\n" + write_markdown(found.rates.round(4), index=False)]
    if found.ratings is not None:
        tables.append("## Ratings\n\n" + write_markdown(found.ratings.round(4), index=False))
    parts = [
        "# " + escape_markdown(f"Win rates of {' and '.join(books['models'])}, judged by {books['judge']}"),
        "Made with the KARMA kit. Each response was set against the other model's in both orders; "
        "`win_rate` is the mean preference for `model_a`, its interval (95 %) clustered by prompt; "
        "`length_controlled` is what it would be at equal lengths (arXiv 2404.04475); `consistency` the share of "
        "prompts on which both orders name the same winner. A prompt with an unread verdict is left out.",
        *tables,
        "\n".join(f"- {escape_markdown(note)}" for note in list_notes(found)),
        f"Command: {quote_code(command)}" if command else "",
        "## Made from\n\n" + _table(("what", "value"), facts),
        "## Models\n\n" + _table(("model", "source"), sources),
        "## The judge's question\n\n```\n" + JUDGE_PROMPT + "\n```",
        "## Columns of verdicts.parquet\n\n`order` is ab where model_a's response came first; `p_first` the "
        "probability that the first response is the better one (a written verdict: 1 or 0; empty: unread); `reply` "
        "what the judge wrote, empty where probabilities were compared.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(header: tuple[str, str], rows: Sequence[tuple[str, object]]) -> str:
    frame = pd.DataFrame([(k, str(v)) for k, v in rows], columns=list(header))
    return write_markdown(frame, index=False)
