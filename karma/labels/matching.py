"""Who stands in the score table: names of judged models against those of a table, which spell them otherwise.

AlpacaEval writes `gemma-7b-it`, a leaderboard `google/gemma-7b-it`. Two names are the same model where their last path
parts agree in letters and digits, case folded. Where a column map names a model by several columns, the first is its
repository and the others tell evaluations of it apart (bfloat16, float16). Decision: only names that occur in the
judgments are matched, so that doubles among a table's other thousands do not matter; what is ambiguous among those is
an error, never a guess. Limit: a quantised or merged copy of the same last name counts as the model.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from karma.errors import InputError
from karma.scores.table import ScoreTable


@dataclass(frozen=True)
class Match:
    """Judged models and their rows.

    Attributes:
        rows: judged name -> the table's name, in the order of the judged names.
        unmatched: judged names that the table has not.
    """

    rows: dict[str, str]
    unmatched: list[str]


def compute_key(name: str) -> str:
    """Return what names are compared by: letters and digits of the last path part, case folded.

    Example:
        >>> compute_key("google/Gemma-7b_it") == compute_key("gemma-7B-IT")
        True
    """
    return "".join(c for c in name.rstrip("/").rpartition("/")[2].casefold() if c.isalnum())


def match_models(names: Sequence[str], table: ScoreTable, prefer: str | None = None) -> Match:
    """Find each judged model in a score table.

    Args:
        names: judged models. table: its rows may carry a precision behind the repository.
        prefer: the precision to take where a repository has several rows.

    Raises:
        InputError: a name that is several repositories, or several precisions and `prefer` does not decide; two judged
            names of one row; fewer than two models in both.

    Example:
        >>> from karma.scores.read import load_score_table
        >>> match_models(["openai/gpt4", "BARD", "someone"], load_score_table("paper"))
        Match(rows={'openai/gpt4': 'GPT-4', 'BARD': 'bard'}, unmatched=['someone'])
    """
    rows = [str(name) for name in table.scores.index]
    repositories = rows
    if "repository" in table.facts:
        repositories = [str(name) for name in table.facts["repository"].reindex(table.scores.index)]
    by_key: dict[str, list[int]] = defaultdict(list)
    for place, repository in enumerate(repositories):
        by_key[compute_key(repository)].append(place)
    found: dict[str, str] = {}
    for name in names:
        places = by_key.get(compute_key(name), [])
        owners = sorted({repositories[place] for place in places})
        if len(owners) > 1:
            raise InputError(
                f"{table.source}: judged model '{name}' may be {' or '.join(owners)}: remove all but one row"
            )
        if len(places) > 1:
            places = _choose_precision(
                name, {rows[p].removeprefix(owners[0]).strip(): p for p in places}, table, prefer
            )
        if places:
            found[name] = rows[places[0]]
    owner: dict[str, str] = {}
    for name, row in found.items():
        if row in owner:
            raise InputError(
                f"judged models '{owner[row]}' and '{name}' are the same model, {row}: rename or remove one"
            )
        owner[row] = name
    unmatched = [name for name in names if name not in found]
    if len(found) < 2:
        raise InputError(
            f"{table.source} has scores of {len(found)} of {len(names)} judged models, two are needed; judged are "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: add rows to the table"
        )
    return Match(found, unmatched)


def _choose_precision(name: str, places: dict[str, int], table: ScoreTable, prefer: str | None) -> list[int]:
    if prefer in places:
        return [places[prefer]]
    choices, first = " and ".join(sorted(places)), sorted(places)[0]
    raise InputError(f"{table.source}: judged model '{name}' stands there as {choices}: choose, e.g. --prefer {first}")
