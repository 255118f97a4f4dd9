"""How far each data set lies above or below the baseline, by capability, and what Figures 5 and 6 leave to say.

A lead is a difference paired over the items (`karma.results.estimates`), which two intervals beside each other do not
show. Decision: only the methods that every data set is trained by count. Limit: leads are not corrected for their
number; the claims are.

Paper: Figure 5, which shows means alone.
"""

import numpy as np
import pandas as pd

from karma.results.estimates import compute_difference, describe_chance
from karma.results.study import Study
from karma.vocabulary import BASELINE, title_of


def compute_leads(study: Study) -> pd.DataFrame:
    """Return each strategy's mean score on each capability less the baseline's, paired.

    Returns:
        Columns capability, strategy, strategy_title, value, low, high (all NaN where a run is missing), n.
    """
    capability, records = study.described["capability"], []
    methods = list(study.common_methods)
    for name in dict.fromkeys(capability[b] for b in study.benchmarks):
        where = {"benchmark": [b for b in study.benchmarks if capability[b] == name], "method": methods}
        for strategy in [s for s in study.strategies if s != BASELINE and BASELINE in study.strategies]:
            whole = len(study.policies) * len(methods) * len(study.seeds) * len(where["benchmark"])
            rows = study.results[
                study.results["benchmark"].isin(where["benchmark"]) & study.results["method"].isin(methods)
            ]
            counts = rows["strategy"].value_counts()
            there = counts.get(strategy, 0) == counts.get(BASELINE, 0) == whole
            found = compute_difference(study, strategy, BASELINE, **where) if there else None
            low, high = found.interval if found else (np.nan, np.nan)
            records.append({"capability": name, "strategy": strategy, "strategy_title": study.title(strategy),
                            "value": found.value if found else np.nan, "low": low, "high": high,
                            "n": found.n if found else 0})  # fmt: skip
    columns = ["capability", "strategy", "strategy_title", "value", "low", "high", "n"]
    return pd.DataFrame(records, columns=columns)


def describe_figures(study: Study, method: str) -> dict[str, str]:
    """Return what the words beside Figures 5 and 6 leave open (`karma.results.readings`).

    Args:
        study: measured or published. method: of Figure 6.
    """
    capability = study.described["capability"]
    inferred = ("Intervals rest on item counts inferred from the fractions (none where no count explains them), and "
                "take runs as failing on the same items; the noise of training is not in them.")  # fmt: skip
    seeds = (
        "The noise of training is in them."
        if len(study.seeds) > 1
        else "One seed: the noise of training is not in them."
    )
    chance = describe_chance(study)
    return {
        "strategies": ", ".join(map(study.title, study.strategies)),
        "capabilities": ", ".join(dict.fromkeys(str(capability[b]) for b in study.benchmarks)),
        "method": title_of(method),
        "chance": chance[0].upper() + chance[1:],
        "basis": inferred if study.is_published else seeds,
    }
