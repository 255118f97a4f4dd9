"""What a study found, in plain sentences: the first screen of its report.

Every sentence is made from the tested claims, the label audit and the ledger: signal, interval, cost and caveat.
Decision: a question is answered by its corrected tests alone, so that a sentence cannot claim more than a verdict;
where its tests disagree, the sentence says each. Limit: five questions, those that every study of this kind is asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from karma.figures.claims import find_verdict
from karma.files.reading import load_object
from karma.results.ledger import build_ledger, compute_break_even, describe_break_even
from karma.results.study import Study
from karma.statistics.verdicts import SMALLEST
from karma.study.escape import escape_html
from karma.vocabulary import BASELINE

REPORT = "06_results"  # its own record says when the page was made, not the study
MEASURED, MISSING = "measured", "not measured"
ONE_SEED = "one seed: the noise of training is in no interval"


@dataclass(frozen=True)
class Finding:
    """An answer to one question.

    Attributes:
        question: as a reader would ask it. verdict: of `karma.figures.claims.VERDICTS`, MEASURED, MISSING, or any other
            short text. answer: one sentence with numbers and intervals. caveat: what it does not say.
    """

    question: str
    verdict: str
    answer: str
    caveat: str


@dataclass(frozen=True)
class Front:
    """The first screen: title, facts, findings; HTML in a notebook and on the page.

    Attributes:
        title: of the page. facts: what, value. findings: in order.
    """

    title: str
    facts: dict[str, str]
    findings: list[Finding]

    def _repr_html_(self) -> str:
        facts = "".join(f"<div><dt>{escape_html(k)}</dt><dd>{escape_html(v)}</dd></div>" for k, v in self.facts.items())
        items = "".join(
            f'<li><span class="chip" data-verdict="{escape_html(f.verdict)}">{escape_html(f.verdict)}</span>'
            f"<p><strong>{escape_html(f.question)}</strong> {escape_html(f.answer)}</p>"
            f'<p class="caveat">{escape_html(f.caveat)}</p></li>'
            for f in self.findings
        )
        return (
            f'<header class="front"><h1>{escape_html(self.title)}</h1><dl class="facts">{facts}</dl></header>'
            f'<section class="found"><h2>What we found</h2><ol class="findings">{items}</ol></section>'
        )


def build_front(study: Study, claims: pd.DataFrame) -> Front:
    """Return the first screen of a measured study.

    Args:
        study: measured, whole or not. claims: from `karma.results.claims.test_claims`.
    """
    return Front(f"Study {study.name}: what did kinship change?", describe_study(study), list_findings(study, claims))


def describe_study(study: Study) -> dict[str, str]:
    """Return what a study is made of, when, where and from which commit, from its folders' provenance."""
    assert study.folder is not None
    files = sorted(study.folder.glob("**/provenance.json"))
    records = [record for path in files for name, record in load_object(path).items() if name != REPORT]
    ended = sorted(record["finished_at"] for record in records if "finished_at" in record)
    devices = dict.fromkeys(record["device"] for record in records if "device" in record)
    commits = dict.fromkeys(record["commit"] for record in records if "commit" in record)
    made_of = {"policy": study.policies, "data set": study.strategies, "method": study.methods, "seed": study.seeds,
               "benchmark": study.benchmarks}  # fmt: skip
    parts = [_count(names, word) for word, names in made_of.items()]
    return {
        "study": f"{study.name}: {', '.join(parts)}",
        "finished": f"{datetime.fromisoformat(ended[-1]):%d %B %Y, %H:%M} UTC" if ended else "not recorded",
        "device": "; ".join(devices) or "not recorded",
        "commit": ", ".join(commit[:10] + commit[40:] for commit in commits) or "not recorded",
        "whole": "yes" if study.gaps.empty else f"no: {len(study.gaps)} files or scores are missing",
    }


def _count(names: tuple, word: str) -> str:
    many = "policies" if word == "policy" else f"{word}s"
    return f"{len(names)} {word if len(names) == 1 else many}"


def list_findings(study: Study, claims: pd.DataFrame) -> list[Finding]:
    """Return the answers to five questions: learning, kinship against RLAIF, labels, families, cost.

    Args:
        study: measured. claims: from `karma.results.claims.test_claims`.
    """
    seed = [ONE_SEED] if len(study.seeds) == 1 else []
    return [
        _find_training(claims, seed),
        _find_kinship(study, claims, seed),
        _find_labels(study, claims),
        _find_families(claims),
        _find_cost(study),
    ]


def _find_training(claims: pd.DataFrame, caveats: list[str]) -> Finding:
    rows = claims[(claims["question"] == "training") & claims["claim"].str.endswith("beats the untrained policy")]
    return _answer("Did training change what the policy knows?", rows, caveats)


def _find_kinship(study: Study, claims: pd.DataFrame, caveats: list[str]) -> Finding:
    rival = study.title(BASELINE)
    rows = claims[(claims["question"] == "RQ2") & claims["claim"].str.endswith(f" beats {rival}")]
    shared = "the benchmarks of policies are partly those that define the labels"
    own = set(study.benchmarks) & set(study.scores.scores) if study.scores is not None else set()
    return _answer(f"Do kinship labels beat those of {rival}?", rows, [*caveats, *([shared] if own else [])])


def _find_labels(study: Study, claims: pd.DataFrame) -> Finding:
    """Say how often programs confirm labels, or else how well they are learnt."""
    path = study.folder / "labels" / "strategies.csv" if study.folder else None
    if path is not None and path.is_file():
        rows = pd.read_csv(path).dropna(subset=["label_accuracy"])
        rows = rows[rows["strategy"] != "truth"]
        said = [f"{study.title(r.strategy)} {_share(r.label_accuracy, r.low, r.high)}" for r in rows.itertuples()]
        if said:
            n = f"n = {rows['n_decided'].min():,} to {rows['n_decided'].max():,} pairs"
            answer = f"Programs confirm, of the pairs they can decide: {'; '.join(said)}; a coin has 50 %."
            return Finding(
                "Are the labels right?", _weigh(rows), answer, f"{n}; instruction following only, uncorrected"
            )
    rows = claims[claims["claim"].str.contains("prefers held-out chosen answers")]
    own = "each data set's own labels: how easily they are learnt, not whether they are right"
    return _answer("Can the labels be learnt?", rows, [own])


def _weigh(rows: pd.DataFrame) -> str:
    """Say on which side of a half all intervals lie."""
    if (rows["low"] > 0.5).all():
        return "better than a coin"
    if (rows["high"] < 0.5).all():
        return "worse than a coin"
    return "mixed" if ((rows["low"] > 0.5) | (rows["high"] < 0.5)).any() else "cannot tell"


def _find_families(claims: pd.DataFrame) -> Finding:
    rows = claims[claims["question"] == "RQ1"]
    caveats = ["the origin models stand for no others"]
    return _answer("Do models of one family score alike?", rows, caveats, "distance")


def _find_cost(study: Study) -> Finding:
    bill, even = build_ledger(study).set_index("what"), compute_break_even(study)
    said = []
    for who, start in ((study.title(BASELINE), "labels, rlaif"), ("kinship", "labels, kinship")):
        row = bill[bill.index.str.startswith(start)].iloc[0]
        if row["prompt_tokens"] is not None:
            tokens = row["prompt_tokens"] + (row["new_tokens"] or 0)
            said.append(f"{who} {tokens:,.0f} tokens in {row['seconds'] or 0:,.0f} s")
    question = "What do the labels cost?"
    if even is None:
        answer = f"{_join(said) or 'Nothing'} was recorded, which is no comparison."
        return Finding(question, MISSING, answer, "no price is assumed")
    here = f"; this pool has {study.pairs['responses_in'].max():,.0f}" if "responses_in" in study.pairs else ""
    answer = f"{_join(said)}: {describe_break_even(even)}{here}."
    return Finding(question, MEASURED, answer, "tokens of different models are added as if they cost the same")


def _answer(question: str, rows: pd.DataFrame, caveats: list[str], unit: str = "points") -> Finding:
    """Say each tested claim with its interval, and the verdict they share."""
    known = rows[rows["effect"].notna()]
    if known.empty:
        why = rows["verdict"].iloc[0] if len(rows) else "cannot tell: nothing of the kind was run"
        return Finding(question, "cannot tell", f"{why[0].upper()}{why[1:]}.", "; ".join(caveats))
    verdicts = list(dict.fromkeys(find_verdict(v) or str(v) for v in known["verdict"]))
    said = [f"{_shorten(r.claim, question)} {_effect(r, unit)}" for r in known.itertuples()]
    if len(verdicts) > 1:
        said = [f"{text} ({find_verdict(v)})" for text, v in zip(said, known["verdict"], strict=True)]
    needed = known["needed_n"][known["needed_n"] > known["n"]].dropna()
    more = (
        [f"n = {known['n'].max():,}; {needed.min():,} or more would show {SMALLEST}"]
        if len(needed)
        else [f"n = {known['n'].max():,}"]
    )
    return Finding(question, verdicts[0] if len(verdicts) == 1 else "mixed", f"{_join(said)}.",
                   "; ".join([*more, *caveats]))  # fmt: skip


def _shorten(claim: str, question: str) -> str:
    """Return of whom a claim speaks, where the question already says the rest."""
    for tail in (" beats ", " prefers "):
        if tail in claim:
            return claim.partition(tail)[0]
    return "Between families less within:" if "family" in claim else claim


def _effect(row: Any, unit: str) -> str:
    if unit == "distance":
        return f"{row.effect:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
    return f"{100 * row.effect:+.1f} points [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _join(said: list[str]) -> str:
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}" if said else ""


def find_published(study: Study, audit: pd.DataFrame) -> Iterator[Finding]:
    """Yield what the paper's own tables say, recomputed.

    Args:
        study: the published one. audit: from `karma.results.audit.audit_paper`.
    """
    totals = study.results.groupby("strategy")["value"].mean().reindex(list(study.strategies))
    best = str(totals.idxmax())
    said = ", ".join(f"{study.title(str(s))} {100 * v:.1f} %" for s, v in totals.items())
    question, answer = "Does a kinship strategy beat RLAIF on the mean of Table 4?", f"{said}: the best is "
    caveat = "one training a cell; the number of items is not printed, so no interval"
    yield Finding(
        question, "contradicted" if best == BASELINE else "supported", f"{answer}{study.title(best)}.", caveat
    )
    rows = audit.set_index("claim")
    for question, claim in PUBLISHED.items():
        row = rows.loc[claim]
        found = f"{row['recomputed'][0].upper()}{row['recomputed'][1:]}."
        yield Finding(question, row["verdict"], found, f"{row['where']}: {claim}")


PUBLISHED = {  # question -> the audited statement that answers it
    "How large is the noise of one training?":
        "The same SFT data (if pairs are chosen per prompt) give the same scores",
    "Did SFT teach the policies anything?": "SFT lifts the policies above chance",
    "Do the paper's tables agree with each other?": "Table 2 holds the means of Table 4",
    "Is the human preference gain of the summary in the tables?": "Human preference alignment",
}  # fmt: skip
