"""What the report says of each figure and table: a title, how to read it, and a text for who cannot see it.

By the name of the file. Decision: all words stand here, in the order of the report, so that one person can read them in
one go, and `karma.results.pictures` shows no figure without them. Limit: a table's own caption, with its units, stands
where the table is made.
"""

from karma.statistics.verdicts import SMALLEST

FIGURES = {  # file -> (title, how to read it, what is seen); {braces} are filled by who draws
    "claims": (
        "The claims, put to this study.",
        "A dot is the measured difference, its line the 95 % interval, not corrected. In the grey band a difference is "
        "too small to count ({smallest:g}); colours are the verdicts, which are corrected for the tests of a question "
        "(Holm). A line that crosses zero and leaves the band tells nothing.",
        "Forest plot of {n} claims with their 95 % intervals: {counts}."),
    "figure1": (
        "Who labels what, and what it costs.",
        "Above, who reads what; below, tokens over the number of responses in the pool. A judge reads every response, "
        "so that its line rises; kinship asks each origin model the benchmarks once, whatever the pool. Left of the "
        "crossing the judge is cheaper, right of it kinship.",
        "Diagram of three ways to label a pool, and a plot of their cost in tokens: {even}."),
    "figure2": (
        "From origin models and prompts to pairs, and to trained policies.",
        "Read it from left to right: the upper row decides which two responses make a pair, the lower row holds the "
        "texts. Numbers are this study's own counts.",
        "Flow chart from origin models, benchmark scores and kinship to pairs and trained policies."),
    "figure3": (
        "S_pref, kinship and the strategies, worked out on a few models.",
        "Follow one row from its scores to its S_pref, then find the pair of the highest cosine; the frames mark which "
        "pair each strategy takes.",
        "Worked example: normalised scores, S_pref and cosines of a few origin models, the chosen pairs framed."),
    "figure4": (
        "Origin models by their scores, in two dimensions (PCA).",
        "Near points score alike. Arrows show which benchmarks pull where. With a few items a benchmark, places are "
        "mostly noise.",
        "Scatter plot of the origin models on the first two principal components of their normalised scores."),
    "figure5": (
        "Accuracy by capability.",
        "Dots are means over policies and runs with 95 % intervals. Below each, the paired difference from RLAIF: "
        "right of zero the data set did better; an interval that crosses zero cannot tell. {basis}",
        "Dot plot of {strategies} on {capabilities}, and their paired differences from RLAIF."),
    "figure6": (
        "Accuracy by policy and benchmark, {method}.",
        "Bars are shares of right answers with 95 % intervals over the items; the dotted line is chance, the black one "
        "the untrained policy. Intervals that overlap do not show equality. {chance}.",
        "Bar chart of accuracy by benchmark and data set, a panel a policy."),
    "figure7": (
        "Which origin models score alike, by capability (dendrograms).",
        "The further right two branches join, the less alike they score; the dashed line is where the tree is cut into "
        "groups.",
        "Dendrograms of the origin models by capability."),
    "figure8": (
        "One prompt exactly as a model saw it.",
        "Above, every character that was sent; below, the answer that came back, before anything is read from it.",
        "The text of one benchmark prompt and of the answer to it."),
    "figure9": (
        "How K_score and K_sim are computed.",
        "Each cell is a number of the calculation; the frames mark the two models that K_score (highest means) and "
        "K_sim (highest cosine above the threshold) take.",
        "Worked calculation of means and cosines of four origin models, the chosen ones framed."),
    "stability": (
        "How stable trainings are, by data set.",
        "Further left is more stable; a point without a line has no interval. A policy that learnt nothing is most "
        "stable of all: read it beside the accuracy.",
        "Four panels by data set: spread of held-out accuracy, loss spikes, KL to the untrained policy, length."),
    "premise": (
        "Are the responses of kin less unlike?",
        "A dot is two origin models, the line the mean gap of all pairs at least so akin. If the premise holds, gaps "
        "fall to the right, where models are more akin.",
        "Response gaps of pairs of origin models against their kinship."),
    "label_accuracy": (
        "How often programs confirm the labels.",
        "Right of the dotted line labels beat a coin; an interval that crosses it cannot tell. n counts the pairs that "
        "programs can decide.",
        "Dot plot of label accuracy by strategy with 95 % intervals, beside a coin at one half."),
    "recorded_label_accuracy": (
        "How often recorded judgments confirm the labels.",
        "Right of the dotted line labels beat a coin; an interval that crosses it cannot tell.",
        "Dot plot of label accuracy by strategy against recorded judgments, with 95 % intervals."),
    "square": (
        "Trained on one data set, tested on another.",
        "Read it by columns: each asks all policies the same pairs. On the diagonal a policy meets the labels it was "
        "taught. A star: the 95 % interval leaves one half out, uncorrected.",
        "Heat map of the share of held-out pairs moved the right way, data sets trained on against tested on."),
    "reward_models": (
        "Whose labels each reward model rates right.",
        "Right of one half a reward model prefers the chosen response more often than a coin. Compare the truth with "
        "the truth where lengths are alike.",
        "Dot plots of reward models' accuracy by pair set and length, and the truth of the best of n answers."),
    "win_rates": (
        "How often a training's answers are preferred.",
        "Right of one half a training wins. The second mark is at equal lengths: a win rate that falls to one half "
        "there was won by length.",
        "Dot plot of win rates against the baseline and the untrained policy, with 95 % intervals."),
    "selections": (
        "Held-out accuracy by selection metric, and its difference from random.",
        "Left, the accuracy after training on what each metric kept; right, its paired difference from random on the "
        "same pairs: right of zero the metric earned its keep, an interval that crosses zero cannot tell.",
        "Dot plot of {metrics} with their paired differences from random."),
    "selection_benchmarks": (
        "Scores on the benchmarks by selection metric, less those of random.",
        "Above the dotted line the metric's selection made the better policy; an interval that crosses it cannot tell.",
        "Dot plot of paired score differences from random by benchmark and metric."),
    "self_play": (
        "What the policy learnt from its own answers, by round.",
        "Arms whose intervals overlap much cannot be told apart; one half of the preference is a coin.",
        "Held-out score and preference by round of self-play, a line an arm."),
}  # fmt: skip

TABLES = {  # table -> how to read it
    "gaps": "Each row is a gap, with the command that fills it. An empty table means that the study is whole.",
    "settings": "Each value as it was used, and the file that set it.",
    "records": "Each folder with what was recorded of it: settings, commit, versions, device, digests of the data.",
    "table1": "A score near chance says nothing about a data set.",
    "table2": "Bold: the best data set of a row; shaded: at least RLAIF's. The untrained policy's column is ours: a "
              "data set below it did harm. Held-out pairs are each policy's own, and rank nothing.",
    "table2_intervals": "Two means whose intervals overlap much cannot be told apart by these items.",
    "spread": "How far trainings of one data set lie apart: a difference within it is noise of training.",
    "table2_beside_paper": "Policies and items differ from the paper's, so that a difference is no error of either.",
    "table3_beside_paper": "Items differ from the paper's, so that a difference is no error of either.",
    "table4_beside_paper": "Policies and items differ from the paper's, so that a difference is no error of either.",
    "table3": "One row an origin model; its average after min-max is S_pref, which decides the labels.",
    "table4": "One row a benchmark, policy and method. Bold: the best data set; small differences are mostly noise.",
    "claims": f"Cannot tell comes with the n there is and the n that would show a gain of {SMALLEST}.",
    "premise": "Mantel's r above 0: the less akin two origin models, the more unlike their responses.",
    "labels": "One half is a coin; the row of the truth is the most that any label can reach.",
    "recorded_labels": "One half is a coin. Intervals are clustered by prompt and by model.",
    "square": "Read it by columns: each asks all policies the same pairs with the same labels.",
    "stability": "Lower is more stable; a policy that learnt nothing is most stable of all.",
    "reward_models": "One half is a coin; compare the truth with the truth by length.",
    "win_rates": "One half is a draw. Where consistency is low the judge sees places rather than answers.",
    "selections": "An interval of the difference that crosses 0 cannot tell a metric from random.",
    "selection_rivals": "p_holm below .05 is a difference beyond chance.",
    "selection_trends": "Above 0 a metric's lead over random grows with the pairs kept.",
    "selection_agreement": "A correlation of 1: own scores and annotations would keep the same pairs.",
    "selection_union": "A difference above 0: training on the pairs' own scores did better.",
    "selection_benchmarks": "An interval of the difference that crosses 0 cannot tell a metric from random.",
    "selection_benchmark_rivals": "p_holm below .05 is a difference beyond chance.",
    "selection_benchmark_trends": "Above 0 a metric's lead over random grows with the pairs kept.",
    "ledger": "One row an activity. Tokens of different models are added as if they cost the same.",
    "self_play": "A gain whose interval crosses 0 cannot be told from none.",
    "self_play_trends": "Above 0 the held-out score grows from round to round.",
    "audit": "Each statement of the paper beside what its own tables give; the verdict follows from the numbers alone.",
}  # fmt: skip


def read_figure(name: str, facts: dict[str, object]) -> tuple[str, str, str]:
    """Return a figure's title, how to read it, and what is seen.

    Args:
        name: the file's stem; of several figures of a kind, `<kind>_<which>`. facts: what the words leave open.

    Example:
        >>> read_figure("self_play_smollm2", {})[0]
        'What the policy learnt from its own answers, by round.'
    """
    key = name if name in FIGURES else next((kind for kind in FIGURES if name.startswith(f"{kind}_")), name)
    title, reading, alt = (text.format(**facts) for text in FIGURES[key])
    return title, reading, alt
