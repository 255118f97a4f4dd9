"""The four lists of verifiable prompts: ours, disjoint, and each checkable by program."""

import json
from itertools import combinations

import pytest

from karma.evaluation.ifeval import check_instructions
from karma.evaluation.prompts import load_prompts
from karma.files.places import find_project_root

DEMO = find_project_root() / "karma" / "data" / "demo"
LISTS = ("pool", "held_out", "search", "son")


@pytest.fixture(scope="module")
def prompts():
    return {name: load_prompts(DEMO / f"{name}.jsonl", verifiable=True) for name in LISTS}


def test_the_lists_are_long_enough(prompts):
    sizes = {name: len(rows) for name, rows in prompts.items()}
    assert sizes["pool"] >= 160 and sizes["held_out"] >= 64
    assert sum(sizes.values()) >= 360
    assert all(len(p.instruction_ids) >= 2 for rows in prompts.values() for p in rows)


def test_no_topic_and_no_combination_of_topic_and_constraints_is_shared(prompts):
    for one, other in combinations(LISTS, 2):
        topics = [{" ".join(p.topic.casefold().split()) for p in prompts[name]} for name in (one, other)]
        assert not topics[0] & topics[1], (one, other)
    together = [(p.topic, p.instruction_ids, p.kwargs) for rows in prompts.values() for p in rows]
    assert len(set(together)) == len(together)


@pytest.mark.parametrize("name", ["pool", "held_out", "search"])
def test_an_empty_answer_follows_no_instruction(prompts, name):
    for prompt in prompts[name]:
        assert not any(check_instructions(prompt.item, "")["strict"]), prompt.text


def test_no_prompt_stands_in_ifeval(prompts, real_data):
    theirs = [json.loads(line)["prompt"] for line in (real_data / "ifeval_541.jsonl").open(encoding="utf-8")]
    windows = {window for text in theirs for window in _windows(text)}
    topics = [p.topic for rows in prompts.values() for p in rows]
    assert not [topic for topic in topics if _windows(topic) & windows]


def _windows(text, n=8):
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}
