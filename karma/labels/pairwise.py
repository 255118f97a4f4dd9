"""Ask a judge which of two responses to a prompt is better, in both orders.

One question shows the prompt and two responses under the letters A and B. Where the backend tells log-probabilities,
the verdict is the probability of A against B as what follows "The answer is (", so that how sure the judge is counts;
else (a server) the judge writes, and `karma.evaluation.extraction` reads the letter; what it cannot read is no verdict
and is counted. Questions go through `karma.models.ask`: asked in batches of one pair of models, kept by content, so
that a killed run asks only what is missing, and that another model asks nothing again of the others.
Decision: two equal responses are a tie that no judge is asked about, since it could only tell the places apart.
Limit: a judge prefers its own style and longer texts; both orders cancel its love for a place and nothing else.

Source: both orders, MT-Bench (arXiv 2306.05685); next-token probabilities as preferences, AlpacaEval 2.
"""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from lm_eval.api.instance import Instance
from scipy.special import expit

from karma.evaluation.extraction import extract_choice
from karma.evaluation.protocol import write_statements
from karma.labels.win_rates import ORDERS, VERDICTS, name_verdicts
from karma.models.ask import CachedModel, Cost

JUDGE_PROMPT = """Which of two responses to an instruction is the better one? Judge how correct, helpful and clear \
they are; neither their order nor their length counts. Answer by ending with: the answer is (X), where X is A or B.

Instruction: {prompt}

Response A: {first}

Response B: {second}"""
OPTIONS = ["option A", "option B"]  # as `read_reply` calls them
LETTERS = {"A": 1.0, "B": 0.0}  # letter -> probability that the first response is better
BETTER = (
    r"\bis (?:clearly |much |slightly |far |significantly )?(?:the )?better(?: one| response)?"
    r"(?: than (?:Response )?[AB])?\b"
)

Question = tuple[str, str, str]  # prompt_id, order, what the judge is asked
Verdict = tuple[float, str | None]  # probability that the first response is better (NaN: unread), the judge's words


def judge_pair(
    judge: CachedModel,
    prompts: Mapping[str, str],
    names: tuple[str, str],
    responses: tuple[Mapping[str, str], Mapping[str, str]],
    tie: float,
    reply_tokens: int,
) -> tuple[pd.DataFrame, Cost]:
    """Judge two models' responses to the prompts that both answered, each in both orders.

    Args:
        judge: who is asked.
        prompts: prompt_id -> text. names: of the two models. responses: of each, prompt_id -> text, none of it empty.
        tie: a verdict is a tie where the two responses' probabilities differ by no more.
        reply_tokens: new tokens of a judge that writes.

    Returns:
        The verdicts (columns `karma.labels.win_rates.VERDICTS`; `reply` is None where probabilities were compared),
        both orders of every prompt, and what they cost, those kept from an earlier run included.
    """
    a, b = responses
    common = [prompt for prompt in prompts if prompt in a and prompt in b]
    questions = [question for prompt in common if a[prompt] != b[prompt]
                 for question in _write_questions(prompt, prompts[prompt], a[prompt], b[prompt])]  # fmt: skip
    judge.cost, task = Cost(), " and ".join(sorted(names))
    if judge.backend.has_logprobs:
        asked = _compare(judge, questions, task)
    else:
        asked = _read(judge, questions, task, reply_tokens)
    found = {(prompt, order): answer for (prompt, order, _), answer in zip(questions, asked, strict=True)}
    rows = [(prompt, *names, order, *found.get((prompt, order), (0.5, None))) for prompt in common for order in ORDERS]
    columns = [name for name in VERDICTS if name != "verdict"]
    table = pd.DataFrame(rows, columns=columns).astype({"p_first": float})
    table.insert(VERDICTS.index("verdict"), "verdict", name_verdicts(table["p_first"].to_numpy(), tie))
    return table, judge.cost


def _write_questions(prompt_id: str, prompt: str, a: str, b: str) -> list[Question]:
    sides = {"ab": (a, b), "ba": (b, a)}
    return [
        (prompt_id, order, JUDGE_PROMPT.format(prompt=prompt, first=sides[order][0], second=sides[order][1]))
        for order in ORDERS
    ]


def _compare(judge: CachedModel, questions: list[Question], task: str) -> list[Verdict]:
    """Return the probability of A against B of each question."""
    requests: list[Instance] = []
    for _, _, text in questions:
        context = judge.apply_chat_template([{"role": "user", "content": text}])
        space = "" if context[-1:].isspace() else " "
        for statement in write_statements({"options": OPTIONS}):
            asked = (context, space + statement)
            requests.append(Instance("loglikelihood", {}, asked, len(requests), metadata=(task, len(requests), 1)))
    logps = np.array([logp for logp, _ in judge.loglikelihood(requests)], float).reshape(-1, 2)
    return [(float(p), None) for p in expit(logps[:, 0] - logps[:, 1])]


def read_reply(reply: str) -> float:
    """Return the probability that the first response is better, as a written reply says it: 1, 0, or NaN (unread).

    Example:
        >>> [read_reply(text) for text in ("The answer is (B).", "Response A is better than B.", "Both are fine.")]
        [0.0, 1.0, nan]
    """
    said = re.sub(BETTER, "is the best", reply)  # the extraction knows questions with more than two options
    said = re.sub(r"\bresponse(?= \(?[AB]\b)", "option", said, flags=re.IGNORECASE)
    return LETTERS.get(extract_choice(said, OPTIONS) or "", np.nan)


def _read(judge: CachedModel, questions: list[Question], task: str, reply_tokens: int) -> list[Verdict]:
    """Return the letter that each reply says, as a probability (NaN: none can be read), and the reply."""
    how = {"until": [], "max_gen_toks": reply_tokens, "do_sample": False}
    texts = [judge.apply_chat_template([{"role": "user", "content": text}]) for _, _, text in questions]
    requests = [Instance("generate_until", {}, (text, how), i, metadata=(task, i, 1)) for i, text in enumerate(texts)]
    replies = judge.generate_until(requests)
    return [(read_reply(reply), reply) for reply in replies]
