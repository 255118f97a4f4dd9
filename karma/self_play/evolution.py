"""Prompt evolution: the policy rewrites its own prompts, and what is no usable rewriting is refused and counted.

Each prompt is rewritten once by each of five strategies. Only the topic is shown and rewritten; verifiable
instructions are put behind the new topic again, so that their checkers still apply. A new topic is kept if it is not
empty, its length in characters is within a factor of the old one's, and nothing like it was asked before. Limit:
these are tests of form; a small policy often answers a topic instead of rewriting it, and that is not seen here.

Paper: the self-play data generation of arXiv 2503.01864; the wording of the instructions is ours.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from karma.evaluation.prompts import Prompt, build_prompt

STRATEGIES = {
    "breadth": "Invent one new writing task. It belongs to the same field as the task below, but asks for something "
    "different and less common.",
    "deepen": "Rewrite the task below so that it goes deeper: ask for causes, details or consequences.",
    "constrain": "Rewrite the task below and add one more condition that an answer has to meet.",
    "concretise": "Rewrite the task below so that it is concrete: replace general words by particular persons, things "
    "or places.",
    "reason": "Rewrite the task below so that an answer needs several steps of reasoning.",
}
REFUSED = {
    "empty": "the policy wrote nothing",
    "too_short": "shorter than the old topic by more than the factor",
    "too_long": "longer than the old topic by more than the factor",
    "not_new": "asked before, or a topic of the prompt file",
}
KEPT = "kept"
_QUOTES = "\"'“”‘’*` "
_LABELS = ("new task:", "task:", "new writing task:", "rewritten task:")


@dataclass(frozen=True)
class Attempt:
    """One rewriting: of which prompt, by which strategy, what came out, and `KEPT` or a key of REFUSED."""

    prompt: Prompt
    strategy: str
    topic: str
    verdict: str


def write_request(topic: str, strategy: str) -> str:
    """Return what the policy is asked in order to rewrite a topic.

    Example:
        >>> print(write_request("Describe a garden.", "deepen"))
        Rewrite the task below so that it goes deeper: ask for causes, details or consequences.
        <BLANKLINE>
        Task: Describe a garden.
        <BLANKLINE>
        Write only the new task, in one or two sentences.
    """
    return f"{STRATEGIES[strategy]}\n\nTask: {topic}\n\nWrite only the new task, in one or two sentences."


def clean_topic(answer: str) -> str:
    """Take the new topic out of an answer: its first paragraph, without a label or quotation marks around it.

    Example:
        >>> clean_topic('Task: "Describe a garden at night."\\n\\nA garden at night is dark.')
        'Describe a garden at night.'
    """
    text = next((part.strip() for part in answer.split("\n\n") if part.strip()), "").strip(_QUOTES)
    for label in _LABELS:
        if text.casefold().startswith(label):
            text = text[len(label) :].strip(_QUOTES)
    return " ".join(text.split())


def evolve_prompts(
    prompts: list[Prompt], ask: Callable[[list[str]], list[str]], known: Iterable[Prompt], length_factor: float
) -> list[Attempt]:
    """Rewrite each prompt once by each strategy, and judge each rewriting.

    Args:
        prompts: what to rewrite.
        ask: answers a list of requests, in order (the policy).
        known: prompts of which no copy is new: the whole file, held-out prompts included.
        length_factor: >= 1; how many times longer or shorter a new topic may be, in characters.

    Returns:
        len(prompts) * 5 attempts, prompt by prompt.
    """
    pairs = [(prompt, strategy) for prompt in prompts for strategy in STRATEGIES]
    answers = ask([write_request(prompt.topic, strategy) for prompt, strategy in pairs]) if pairs else []
    seen = {_normalize(prompt.topic) for prompt in [*known, *prompts]}
    attempts = []
    for (prompt, strategy), answer in zip(pairs, answers, strict=True):
        topic = clean_topic(answer)
        verdict = _judge(prompt.topic, topic, seen, length_factor)
        seen.add(_normalize(topic))
        attempts.append(Attempt(prompt, strategy, topic, verdict))
    return attempts


def _judge(old: str, new: str, seen: set[str], factor: float) -> str:
    if not new:
        return "empty"
    if len(new) * factor < len(old):
        return "too_short"
    if len(new) > len(old) * factor:
        return "too_long"
    return "not_new" if _normalize(new) in seen else KEPT


def _normalize(topic: str) -> str:
    return " ".join(topic.casefold().split())


def collect_prompts(attempts: list[Attempt]) -> list[Prompt]:
    """Return the kept rewritings as prompts, with the old prompt's instructions behind the new topic."""
    return [
        build_prompt(a.topic, a.prompt.instruction_ids, a.prompt.kwargs, a.prompt.text, a.strategy)
        for a in attempts if a.verdict == KEPT
    ]  # fmt: skip


def count_attempts(attempts: list[Attempt]) -> dict[str, int]:
    """Count attempts by verdict; every attempt is in exactly one count, so that they add up to `asked`."""
    counts = Counter(attempt.verdict for attempt in attempts)
    return {"asked": len(attempts), KEPT: counts[KEPT], **{reason: counts[reason] for reason in REFUSED}}
