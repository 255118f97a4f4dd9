"""The right answers to the notebooks' exercises, computed from the files of a study and never typed.

Each function takes an experiment and returns a `Solution`: what is accepted, and one or two sentences with the numbers
of this study. Decision: an answer that a study decides is read from its files, so that a solution cannot contradict
the study it is printed beside; what the method decides is computed with the package on a small example. Limit: a number
that was measured is accepted within its 95 % interval, since a prediction cannot be expected to know the noise.
"""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from karma.errors import InputError
from karma.evaluation.compare import build_score_frame
from karma.files.reading import load_json
from karma.pairs.build import build_pair_sets, build_pairs
from karma.pool.pool import load_pool
from karma.potential.margins import Candidates, compute_potential, select
from karma.scores.read import load_score_table
from karma.self_play.evolution import REFUSED
from karma.statistics.intervals import compute_wilson
from karma.statistics.verdicts import compute_smallest_difference
from karma.study.experiment import Experiment, load_experiment

PAGE_MODELS = ("gpt-4", "llama-2-13b-chat", "llama-2-7b-chat", "pythia-12b")  # of notebook 00


@dataclass(frozen=True)
class Solution:
    """What is accepted as an answer, and why.

    Attributes:
        right: the answer: a number, a name, or (chosen, rejected).
        text: the solution in sentences, with this study's numbers.
        low, high: of a number: the range that is accepted.
        ties: of a name: others that are as right.
    """

    right: Any
    text: str
    low: float = math.nan
    high: float = math.nan
    ties: tuple[str, ...] = ()

    def accepts(self, answer: Any) -> bool:
        """Tell whether an answer is right; a text's case, and `-` for `_`, do not count.

        Example:
            >>> Solution("k_sim", "").accepts("K-sim"), Solution(0.5, "", 0.4, 0.6).accepts(0.7)
            (True, False)
        """
        if isinstance(self.right, tuple):
            return _spell(answer) == _spell(self.right)
        if isinstance(self.right, str):
            return isinstance(answer, str) and _spell(answer) in _spell([self.right, *self.ties])
        return is_number(answer) and bool(self.low <= answer <= self.high)


def is_number(answer: Any) -> bool:
    """Tell whether an answer is a finite number, numpy's among them; True and False are none.

    Example:
        >>> import numpy as np
        >>> is_number(np.int64(7)), is_number(True), is_number(float("nan"))
        (True, False, False)
    """
    return isinstance(answer, numbers.Real) and not isinstance(answer, bool) and math.isfinite(answer)


def _spell(answer: Any) -> Any:
    if isinstance(answer, list | tuple):
        return [_spell(one) for one in answer]
    return str(answer).strip().casefold().replace("-", "_")


def _count(n: int, text: str) -> Solution:
    return Solution(n, text, n, n)


def _near(value: float, text: str, low: float, high: float) -> Solution:
    return Solution(value, text, low, high)


def _need(experiment: Experiment, name: str, maker: str) -> Path:
    path = experiment.outputs / name
    if not path.exists():
        where = f"outputs/{experiment.settings.name}/{name}"
        raise InputError(f"{where} is missing: run notebooks/{maker}.ipynb first, or `karma demo --recorded FILE`")
    return path


# --- 00: one page ----------------------------------------------------------------------------------------------------


def _build_page(models: tuple[str, ...], tau: float) -> Any:
    completions = [{"model": name, "response": f"an answer of {name}"} for name in models]
    pool = load_pool([{"source": "one page", "instruction": "Why is the sky blue?", "completions": completions}])
    return build_pairs(pool, load_score_table("paper"), "k_sim", tau=tau, seed=0)


def solve_without_gpt4(experiment: Experiment) -> Solution:
    """00-1: the pair of k_sim without gpt-4."""
    pair = _build_page(PAGE_MODELS[1:], 0.1).table.to_pylist()[0]
    chosen, rejected = pair["chosen_model"], pair["rejected_model"]
    text = (f"{chosen} over {rejected}, as before: k_sim takes the closest kin (kinship {pair['kinship']:.3f}), and "
            "gpt-4 was never one of them.")  # fmt: skip
    return Solution((chosen, rejected), text)


def solve_high_tau(experiment: Experiment) -> Solution:
    """00-2: how many pairs k_sim keeps of this prompt at tau .999."""
    n = len(_build_page(PAGE_MODELS, 0.999))
    closest = _build_page(PAGE_MODELS, 0.1).table.to_pylist()[0]["kinship"]
    return _count(n, f"{n}: the closest two of these models have a kinship of {closest:.4f}, so no pair reaches .999. "
                     "The row is dropped, and counted as below tau.")  # fmt: skip


# --- 01 and 02: origin models ----------------------------------------------------------------------------------------


def _read_origin(experiment: Experiment, model: str) -> pd.DataFrame:
    path = _need(experiment, f"origins/{model}/scores.json", "01_origin_evaluation")
    return build_score_frame(load_json(path))


def solve_widest(experiment: Experiment) -> Solution:
    """01-1: the benchmark with the widest interval."""
    model = experiment.settings.origin_models[0]
    frame = _read_origin(experiment, model)
    width = frame["high"] - frame["low"]
    name = str(width.idxmax())
    told = ", ".join(f"{b} {100 * w:.0f} points (n = {frame.loc[b, 'n']:.0f})" for b, w in width.items())
    return Solution(name, f"{name}. Widths of the 95 % intervals of {model}: {told}. Fewer items, wider interval; a "
                          "score near one half is widest for its n.")  # fmt: skip


def solve_damaged(experiment: Experiment) -> Solution:
    """01-2: the score of a damaged copy on its first benchmark of questions."""
    models = experiment.settings.origin_models
    model = "smollm2-drop-2" if "smollm2-drop-2" in models else models[-1]
    frame = _read_origin(experiment, model)
    name = "arc_easy" if "arc_easy" in frame.index else str(frame.index[-1])
    row = frame.loc[name]
    return _near(float(row["value"]), f"{model} scores {row['value']:.3f} on {name}, 95 % interval {row['low']:.2f} to "
                 f"{row['high']:.2f} (n = {row['n']:.0f}).", row["low"], row["high"])  # fmt: skip


def solve_pairs_left(experiment: Experiment) -> Solution:
    """02-1: how many pairs of origin models have a kinship of at least .9."""
    kinship = pd.read_csv(_need(experiment, "kinship/kinship.csv", "02_kinship_analysis"), index_col=0).to_numpy()
    upper = kinship[np.triu_indices(len(kinship), 1)]
    n = int((upper >= 0.9).sum())
    text = f"{n} of the {len(upper)} pairs: kinship runs from {upper.min():.3f} to {upper.max():.3f} here."
    return _near(n, text, n - max(1, round(0.05 * len(upper))), n + max(1, round(0.05 * len(upper))))


def solve_redrawn(experiment: Experiment) -> Solution:
    """02-2: the strategy whose pick changes most often when the scores are redrawn."""
    path = _need(experiment, "kinship/choices.csv", "02_kinship_analysis")
    share = pd.read_csv(path, index_col=0)["p_other_overall"]
    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in share.items())
    most = [str(name) for name in share.index[share == share.max()]]
    text = f"{' and '.join(most)}. Another pair is picked in so many of the redraws: {told}."
    return Solution(most[0], text, ties=tuple(most[1:]))


# --- 03: pairs -------------------------------------------------------------------------------------------------------


def _build_sets(experiment: Experiment, names: list[str], tau: float | None = None) -> dict[str, Any]:
    pool = load_pool(_need(experiment, "pool/pool.parquet", "03_binarization"))
    scores = load_score_table(_need(experiment, "kinship/scores.csv", "02_kinship_analysis"))
    settings = experiment.settings
    return build_pair_sets(pool, scores, names, tau=settings.kinship.tau if tau is None else tau,
                           seed=settings.pairs.seed,
                           excluded_origin_models=settings.pool.excluded_origin_models)  # fmt: skip


def solve_wider_gap(experiment: Experiment) -> Solution:
    """03-1: whether k_sim or least_kin has the larger mean gap in S_pref."""
    sets = _build_sets(experiment, ["k_sim", "least_kin"])
    gaps = {name: float(np.mean(pairs.table["chosen_score"].to_numpy() - pairs.table["rejected_score"].to_numpy()))
            for name, pairs in sets.items() if len(pairs)}  # fmt: skip
    name = max(gaps, key=lambda key: gaps[key])
    told = ", ".join(f"{key} {value:.3f}" for key, value in gaps.items())
    return Solution(name, f"{name}. Mean gap in S_pref: {told}. Cosine ignores level, so the order is no law.")


def solve_rows_left(experiment: Experiment) -> Solution:
    """03-2: how many pairs k_sim keeps at tau .9."""
    before, after = (len(_build_sets(experiment, ["k_sim"], tau)["k_sim"]) for tau in (None, 0.9))
    text = f"{after} of {before}: at .9 a prompt is lost where no two of its models are that close."
    return _near(after, text, after - max(1, round(0.1 * before)), after + max(1, round(0.1 * before)))


# --- 04 and 05: policies ---------------------------------------------------------------------------------------------


def _find_run(experiment: Experiment, method: str) -> str:
    settings = experiment.settings
    strategy = next((s for s in ("k_sim", *settings.strategies) if s in settings.list_trained(method)), "k_sim")
    return f"runs/{settings.policies[0]}/{strategy}/{method}/seed{settings.seeds[0]}"


def _read_training(experiment: Experiment, method: str) -> tuple[str, dict[str, Any]]:
    run = _find_run(experiment, method)
    return run, load_json(_need(experiment, f"{run}/training.json", "04_alignment_training"))


def solve_sft_accuracy(experiment: Experiment) -> Solution:
    """04-1: the held-out accuracy of SFT."""
    run, record = _read_training(experiment, "sft")
    held = record["held_out"]
    low, high = compute_wilson(held["accuracy"], held["n"])
    verdict = "a coin cannot be ruled out" if low <= 0.5 <= high else "not a coin's"
    text = (f"{held['accuracy']:.2f} on {held['n']} held-out pairs ({run}), 95 % interval {low:.2f} to {high:.2f}: "
            f"{verdict}. The mean margin is {held['margin_mean']:+.3f} nats. SFT never sees a rejected "
            "response: it moves this far by the chosen ones alone.")  # fmt: skip
    return _near(held["accuracy"], text, low, high)


def solve_margins(experiment: Experiment) -> Solution:
    """04-2: which of SFT and DPO has the larger mean margin on held-out pairs."""
    found = {method: _read_training(experiment, method)[1]["held_out"] for method in ("sft", "dpo")}
    name = max(found, key=lambda method: found[method]["margin_mean"])
    told = ", ".join(f"{method} {held['margin_mean']:+.3f} nats (accuracy {held['accuracy']:.2f})"
                     for method, held in found.items())  # fmt: skip
    return Solution(name, f"{name}. Mean held-out margins: {told}. DPO's loss is about the margin itself, SFT's about "
                          "the chosen response alone; at one learning rate either may move it further.")  # fmt: skip


def solve_most_changed(experiment: Experiment) -> Solution:
    """05-1: the benchmark that changes most after SFT."""
    start = _need(experiment, f"runs/{experiment.settings.policies[0]}/start/scores.json", "05_policy_evaluation")
    run = _find_run(experiment, "sft")
    scores = [build_score_frame(load_json(path))["value"]
              for path in (start, _need(experiment, f"{run}/scores.json", "05_policy_evaluation"))]  # fmt: skip
    change = scores[1] - scores[0]
    name = str(change.abs().idxmax())
    told = ", ".join(f"{benchmark} {100 * value:+.1f} points" for benchmark, value in change.items())
    return Solution(name, f"{name}. Changes after {run}: {told}. One training, so a change of few points may be luck.")


def solve_items_needed(experiment: Experiment) -> Solution:
    """05-2: how many items an interval of +-.02 needs where a tenth of them change."""
    changed, error = 0.1, 0.02 / 2
    n = round(changed / error**2)
    return _near(n, f"About {n:,}: SE(d) is about sqrt({changed:g} / n), and an interval of ±.02 needs an SE of "
                    f"{error:g}, so n = {changed:g} / {error:g}².", 0.9 * n, 1.1 * n)  # fmt: skip


# --- 07 and 08: selection and self-play ------------------------------------------------------------------------------


def _draw_margins(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, n), rng.normal(0, 1, n)


def _select(explicit: np.ndarray, implicit: np.ndarray, weight: float, metric: str) -> set[int]:
    ids, reasons = [f"row {k:03d}" for k in range(len(explicit))], np.full(len(explicit), "")
    return set(select(Candidates(ids, explicit, implicit, weight, reasons), metric, 0.4).tolist())


def solve_no_weight(experiment: Experiment) -> Solution:
    """07-1: the overlap of m_ap with explicit_large at a weight of 0."""
    explicit, implicit = _draw_margins()
    kept = [_select(explicit, abs(implicit), 0.0, metric) for metric in ("m_ap", "explicit_large")]
    large = [_select(explicit, abs(implicit), 100.0, metric) for metric in ("m_ap", "implicit_small")]
    share, other = (len(one & two) / len(one) for one, two in (kept, large))
    text = (f"{share:.2f}: without its second term m_ap ranks by the explicit margin alone (200 drawn margins). At a "
            f"weight of 100 its overlap with implicit_small is {other:.2f}.")  # fmt: skip
    return _near(share, text, share - 0.01, share + 0.01)


def solve_signed(experiment: Experiment) -> Solution:
    """07-2: which response the policy prefers in the pairs that m_ap_signed alone keeps."""
    explicit, implicit = _draw_margins()
    own = compute_potential(explicit, implicit, 2.0)
    signed = set(np.argsort(-own, kind="stable")[: int(0.4 * len(own))].tolist())
    alone = sorted(signed - _select(explicit, abs(implicit), 2.0, "m_ap"))
    share = float((implicit[alone] < 0).mean())
    name = "rejected" if share > 0.5 else "chosen"
    return Solution(name, f"{name}: in {share:.0%} of the pairs that only m_ap_signed keeps (200 drawn margins) the "
                          "policy finds the rejected response likelier. The bars of m_ap hide the sign.")  # fmt: skip


def solve_length_factor(experiment: Experiment) -> Solution:
    """08-1: which verdict grows most when rewritten topics may differ less in length."""
    found = sorted(experiment.outputs.glob("self_play/*/*/round*/evolution.json"))
    if not found:
        raise InputError(f"{experiment.path.name}: no round of self-play is finished: run `karma run self_play` first")
    own = experiment.settings.self_play.length_factor
    attempts = [attempt for path in found for attempt in load_json(path)]
    lengths = [len(a["after"]) / max(len(a["before"]), 1) for a in attempts if a["after"]]
    more = {"too_long": sum(1.5 < x <= own for x in lengths), "too_short": sum(1 / own <= x < 1 / 1.5 for x in lengths)}
    name = max(more, key=lambda verdict: more[verdict])
    told = ", ".join(f"{verdict} ({REFUSED[verdict]}) {n} more" for verdict, n in more.items())
    return Solution(name, f"{name}. Of {len(lengths)} rewritings with a factor of 1.5 instead of {own:g}: {told}.")


def solve_margin_kept(experiment: Experiment) -> Solution:
    """08-2: which margin decides what is kept at a weight of 0."""
    explicit, implicit = _draw_margins()
    own = compute_potential(explicit, abs(implicit), 0.0)
    by = {"explicit": np.corrcoef(own, explicit)[0, 1], "implicit": np.corrcoef(own, -abs(implicit))[0, 1]}
    name = max(by, key=lambda margin: by[margin])
    text = (f"{name}: at a weight of 0 the potential is the explicit margin (correlation {by[name]:.2f} over 200 drawn "
            "margins), so the top rows are kept, left and right.")  # fmt: skip
    return Solution(name, text)


# --- 09: labels ------------------------------------------------------------------------------------------------------


def solve_truth_gap(experiment: Experiment) -> Solution:
    """09-1: which of k_sim and delta (else another strategy) has the larger mean truth gap."""
    frame = pd.read_csv(_need(experiment, "labels/strategies.csv", "09_label_audit")).set_index("strategy")
    rival = "delta" if "delta" in frame.index else next(s for s in frame.index if s not in ("k_sim", "truth"))
    gaps = frame.loc[["k_sim", rival], "mean_truth_gap"]
    name = str(gaps.idxmax())
    told = ", ".join(f"{key} {value:+.3f}" for key, value in gaps.items())
    return Solution(name, f"{name}. Mean truth gaps (chosen less rejected): {told}.")


def solve_decided(experiment: Experiment) -> Solution:
    """09-2: how many decided pairs would show a label accuracy of .55."""
    n = next(n for n in range(6, 10_000) if (compute_smallest_difference(n) or 1) <= 0.05)
    return _near(n, f"{n}: with so many decided pairs a distance of .05 from a coin is shown with 80 % power. It falls "
                    "with the square root: half the distance needs four times as many.", 0.9 * n, 1.1 * n)  # fmt: skip


SOLVERS: dict[str, Callable[[Experiment], Solution]] = {
    "00-1": solve_without_gpt4, "00-2": solve_high_tau, "01-1": solve_widest, "01-2": solve_damaged,
    "02-1": solve_pairs_left, "02-2": solve_redrawn, "03-1": solve_wider_gap, "03-2": solve_rows_left,
    "04-1": solve_sft_accuracy, "04-2": solve_margins, "05-1": solve_most_changed, "05-2": solve_items_needed,
    "07-1": solve_no_weight, "07-2": solve_signed, "08-1": solve_length_factor, "08-2": solve_margin_kept,
    "09-1": solve_truth_gap, "09-2": solve_decided,
}  # fmt: skip


def solve(exercise: str, experiment: str | Path = "params/demo.yaml") -> Solution:
    """Return the solution of an exercise, computed from a study's files.

    Args:
        exercise: its id, e.g. "02-1". experiment: the study whose files decide it.

    Raises:
        InputError: no such exercise, or the study lacks what decides it (the message says what makes it).

    Example:
        >>> solve("09-2", "params/paper.yaml").right
        783
    """
    if exercise not in SOLVERS:
        raise InputError(f"there is no exercise {exercise!r}; there are {', '.join(SOLVERS)}")
    return SOLVERS[exercise](load_experiment(experiment))
