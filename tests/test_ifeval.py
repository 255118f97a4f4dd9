"""IFEval's checkers: all 25 instruction types with a pass and a fail, offline and the same every time."""

import json

import pytest

from karma.evaluation.ifeval import check_instructions, compute_floor, load_checkers, score_instructions
from karma.evaluation.items import load_items

ENGLISH = "this is plainly a sentence in the english language and nothing else"
CASES = [
    ("keywords:existence", {"keywords": ["moss", "fern"]}, "Soft moss and fern.", "Soft moss."),
    ("keywords:frequency", {"keyword": "moss", "frequency": 2, "relation": "at least"}, "moss, Moss", "moss"),
    ("keywords:forbidden_words", {"forbidden_words": ["moss"]}, "Mossy stones.", "Some moss."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "less than"}, "zoo", "Zz"),
    ("language:response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", ENGLISH),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "Dr. Ode came. He sat.", "Dr. Ode came."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n\n***\n\nTwo.", "One.\n\nTwo."),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 4}, "only three words", "these are four words"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
     "First.\n\nThen more.", "First.\n\nLater more."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Come soon.", "Bye. Come soon."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes, indeed."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one*"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\na\nSection 2\nb", "Section 1\na"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
    ("detectable_format:title", {}, "<<moss>>\nGrows.", "Moss\nGrows."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name a moss."}, "Name a moss. Peat moss.", "Peat moss."),
    ("startend:end_checker", {"end_phrase": "That is all."}, "Moss grows. That is all.", "That is all. Bye."),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "SOFT MOSS grows", "SOFT moss grows"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("punctuation:no_comma", {}, "No commas here.", "One, two."),
    ("startend:quotation", {}, '"All of it."', "None of it."),
]  # fmt: skip


def item(*instructions, item_id="1"):
    return {"item_id": item_id, "prompt": "p", "instruction_id_list": [i for i, _ in instructions],
            "kwargs": json.dumps([k for _, k in instructions])}  # fmt: skip


def test_the_cases_are_all_25_instruction_types():
    load_checkers()
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert {case[0] for case in CASES} == set(INSTRUCTION_DICT) and len(CASES) == 25


@pytest.mark.parametrize(("instruction", "kwargs", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_every_checker_passes_and_fails_offline(instruction, kwargs, good, bad):
    assert check_instructions(item((instruction, kwargs)), good)["strict"] == [True]
    assert check_instructions(item((instruction, kwargs)), bad)["strict"] == [False]


def test_loose_forgives_a_first_line():
    verdicts = check_instructions(item(("punctuation:no_comma", {})), "Sure, here it is:\nNo commas.")
    assert verdicts == {"strict": [False], "loose": [True]}


def test_the_four_accuracies_by_hand():
    two = item(("punctuation:no_comma", {}), ("startend:quotation", {}))
    assert score_instructions(two, ['"No commas."']) == {
        "prompt_level_strict": 1.0, "prompt_level_loose": 1.0, "inst_level_strict": [True, True], "inst_level_loose": [True, True],
    }  # fmt: skip
    assert score_instructions(two, ["No commas."])["prompt_level_strict"] == 0.0
    assert score_instructions(two, ["No commas."])["inst_level_strict"] == [True, False]
    assert score_instructions(two, ["<think>a, b</think>"])["inst_level_loose"] == [False, False]


def test_language_detection_is_seeded():
    short = item(("language:response_language", {"language": "en"}))
    assert len({json.dumps(check_instructions(short, "pain chat die gift")) for _ in range(40)}) == 1


def test_the_random_prompts_repeat(real_data):
    items = [i for i in load_items("ifeval", real_data) if i["item_id"] in ("1122", "1129")]
    assert len(items) == 2
    half = " ".join(letter * 9 for letter in "abcdefghijklm")  # right for one drawn letter in two
    for one in items:
        verdicts = [check_instructions(one, half) for _ in range(12)]
        assert all(v == verdicts[0] for v in verdicts)


def test_every_real_prompt_can_be_checked_and_the_floor_is_low(real_data):
    items = load_items("ifeval", real_data)[:60]
    answers = [f"Answer {k}: a few words, in one plain sentence." for k in range(len(items))]
    floor = compute_floor(items, answers)
    assert 0 < floor < 0.6
    assert floor == compute_floor(items[::-1], answers[::-1]), "the floor must not depend on the order of the file"


def test_the_floor_gives_each_answer_to_another_prompt():
    items = [
        item(("keywords:existence", {"keywords": [word]}), item_id=word) for word in ("moss", "fern", "reed", "iris")
    ]
    assert compute_floor(items, ["moss", "fern", "reed", "iris"]) == 0.0
    assert compute_floor(items, ["moss fern reed iris"] * 4) == 1.0
    assert compute_floor(items[:1], ["moss"]) is None
