"""Check a reader's answer to a notebook's exercise: kind feedback, two hints, and the solution when it is asked for.

What is right is computed from the study's files (`karma.results.solutions`); here stand the form of each answer and
its hints. Decision: a wrong answer costs nothing, the first two of an exercise get a hint each, and no answer is ever
shown unasked. Limit: hints are counted in this process; a restarted kernel begins anew. The exercises of 06 are open:
they ask for a change of the study, so no number is checked.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma.results.solutions import Solution, is_number, solve

NUMBER, NAME, PAIR = "a number", "a name in quotes", "two names: (chosen, rejected)"


@dataclass(frozen=True)
class Exercise:
    """One exercise: its id, the form of its answer, an example of that form, and two hints."""

    id: str
    form: str
    example: str
    hints: tuple[str, str]


EXERCISES = {
    exercise.id: exercise
    for exercise in (
        Exercise("00-1", PAIR, '("gpt-4", "bard")', (
            "k_sim looks for the two most alike. Look at the table of kinship without gpt-4's row and column.",
            "The largest number left there names the two; the one with the higher S_pref is chosen.")),
        Exercise("00-2", NUMBER, "1", (
            "A pair is eligible only if its kinship is at least tau.",
            "Is any number in the table of kinship, off its diagonal, at least .999?")),
        Exercise("01-1", NAME, '"arc_easy"', (
            "An interval is about as wide as 1 divided by the square root of n.",
            "Look for the benchmark with the fewest items in column n.")),
        Exercise("01-2", NUMBER, "0.25", (
            "The damaged copy lacks two of its layers: it is worse than the model itself. Is it better than a guess?",
            "The answer lies between chance and the score of the undamaged model.")),
        Exercise("02-1", NUMBER, "10", (
            "Look at the heat map of kinship: how many cells above the diagonal are as bright as .9?",
            "Count in kinship.csv, above the diagonal: the diagonal itself is 1, and each pair stands there twice.")),
        Exercise("02-2", NAME, '"k_sim"', (
            "A pick changes easily where the first and the second best are nearly equal.",
            "Compare the gaps between the highest kinships with those between the highest S_pref.")),
        Exercise("03-1", NAME, '"k_sim"', (
            "The gap in S_pref is chosen_score less rejected_score, averaged over the pairs.",
            "Unlike profiles tend to differ in height too. Then look at the two columns.")),
        Exercise("03-2", NUMBER, "100", (
            "A prompt is lost only if no two of its models reach the threshold.",
            "Count the pairs of k_sim whose column `kinship` is at least .9.")),
        Exercise("04-1", NUMBER, "0.5", (
            "One half would be a coin. SFT raises the chosen responses; do the rejected ones rise as much?",
            "Look at `held_out` in the training.json of the SFT run, with its interval.")),
        Exercise("04-2", NAME, '"sft"', (
            "The margin counts what chosen gained over what rejected gained.",
            "DPO's loss is about this margin, SFT's is not; but which one moved it further in so few updates?")),
        Exercise("05-1", NAME, '"ifeval"', (
            "SFT changes the form of answers more than what the model knows.",
            "Compare scores.json of the SFT run with that of the untrained policy, benchmark by benchmark.")),
        Exercise("05-2", NUMBER, "100", (
            "A 95 % interval of ±.02 needs a standard error of about .01.",
            "If a share c of the items changes, SE(d) is about the square root of c / n. Solve it for n.")),
        Exercise("07-1", NUMBER, "0.4", (
            "Put w = 0 into the equation of the potential: which term is left?",
            "z only shifts and scales, so it keeps the order.")),
        Exercise("07-2", NAME, '"chosen"', (
            "The signed implicit margin is below 0 where the policy finds the rejected response likelier.",
            "The potential subtracts it: which sign makes the potential large?")),
        Exercise("08-1", NAME, '"not_new"', (
            "The length factor bounds how much longer or shorter a new topic may be.",
            "Do the five strategies ask to add something to a topic, or to cut it?")),
        Exercise("08-2", NAME, '"explicit"', (
            "Put w = 0 into the equation of the potential.",
            "What is left says how far apart the scores of best and worst lie.")),
        Exercise("09-1", NAME, '"k_sim"', (
            "The truth gap is the truth of the chosen less that of the rejected response.",
            "Which of the two pairs the models that lie farthest apart?")),
        Exercise("09-2", NUMBER, "100", (
            "With 100 decided pairs compute_smallest_difference says about .14; it falls with the square root.",
            "(.14 / .05)² is about 8, so 100 pairs are about eight times too few.")),
    )
}  # fmt: skip
_WRONG: Counter[str] = Counter()


class Feedback(str):
    """What `check_exercise` says: a text, shown as it is in a notebook, with `is_right`."""

    is_right: bool

    def __new__(cls, text: str, is_right: bool) -> "Feedback":
        """Make a text that knows whether the answer was right."""
        made = super().__new__(cls, text)
        made.is_right = is_right
        return made

    def __repr__(self) -> str:
        """Return the text itself, so that a cell that ends with it shows sentences."""
        return str(self)


def check_exercise(exercise: str, answer: Any, experiment: str | Path = "params/demo.yaml") -> Feedback:
    """Check an answer to a notebook's exercise against a study's files.

    Args:
        exercise: its id: the notebook's number and the exercise's, e.g. "02-1".
        answer: a number, a name, or (chosen, rejected), as the exercise asks; None or ... while there is none yet.
        experiment: the study that decides it; the notebook's own, where it is not the demo.

    Returns:
        What to say to who answered: a text with `is_right`.

    Raises:
        InputError: no such exercise, or the study lacks what decides it (the message says what makes it).

    Example:
        >>> check_exercise("09-2", 785, "params/paper.yaml").is_right
        True
        >>> check_exercise("09-2", 100, "params/paper.yaml").partition(". ")[0]
        'Not yet, but predicting first is the point: too low'
    """
    solution = solve(exercise, experiment)  # an unknown id is refused there
    asked = EXERCISES[exercise]
    if answer is None or answer is ...:
        return Feedback(f"Write your prediction first: {asked.form}, for example {asked.example}.", False)
    if solution.accepts(answer):
        _WRONG[exercise] = 0
        return Feedback(f"Right. {solution.text}", True)
    if not _has_form(answer, solution):
        return Feedback(f"This one asks for {asked.form}, for example {asked.example}. Try again.", False)
    _WRONG[exercise] += 1
    n = _WRONG[exercise]
    if n <= len(asked.hints):
        help_ = f"Hint {n} of {len(asked.hints)}: {asked.hints[n - 1]}"
    else:
        help_ = f'Both hints are used. karma.explain_exercise("{exercise}") shows the solution whenever you like.'
    opening = "Not yet, but predicting first is the point" if n == 1 else "Still not it"
    return Feedback(f"{opening}{_say_where(answer, solution)}. {help_}", False)


def explain_exercise(exercise: str, experiment: str | Path = "params/demo.yaml") -> Feedback:
    """Return the solution of an exercise in sentences, with a study's own numbers.

    Args:
        exercise: its id, e.g. "02-1". experiment: the study that decides it.

    Raises:
        InputError: no such exercise, or the study lacks what decides it.

    Example:
        >>> explain_exercise("05-2", "params/paper.yaml")
        About 1,000: SE(d) is about sqrt(0.1 / n), and an interval of ±.02 needs an SE of 0.01, so n = 0.1 / 0.01².
    """
    return Feedback(solve(exercise, experiment).text, True)


def _has_form(answer: Any, solution: Solution) -> bool:
    if isinstance(solution.right, tuple):
        return isinstance(answer, list | tuple) and len(answer) == len(solution.right)
    if isinstance(solution.right, str):
        return isinstance(answer, str)
    return is_number(answer)


def _say_where(answer: Any, solution: Solution) -> str:
    if isinstance(solution.right, tuple):
        same = sorted(map(str, answer)) == sorted(map(str, solution.right))
        return ": the right two, the other way round" if same else ""
    if isinstance(solution.right, str):
        return ""
    return ": too low" if answer < solution.low else ": too high"
