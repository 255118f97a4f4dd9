"""Reading of written answers: a broad table of shapes that models really produce, judged as a person would."""

import json
from collections import defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from karma.evaluation.answer_text import STOPS, cut_at_next_question
from karma.evaluation.extraction import LETTERS, extract_choice, read_answer, strip_thinking
from tests.unanswered import UNANSWERED

ROCKS = ["marble", "granite", "chalk", "slate"]
NUMBERS = ["0", "11", "0,1", "0,4", "12", "3.5 m/s", "x^2 + 1", "-7", "1/2", "none of these"]

STATED = [
    ("The answer is (C).", "C"), ("the answer is c", "C"), ("The answer is: (B)", "B"), ("The answer is B because it is hard.", "B"),
    ("So, the answer is (D)", "D"), ("Therefore, the correct answer is (B) granite.", "B"), ("The best answer is B.", "B"),
    ("The correct option is B.", "B"), ("The correct answer is option B.", "B"), ("The answer is the option (B).", "B"),
    ("Answer: B", "B"), ("answer: b", "B"), ("ANSWER: B", "B"), ("Answer - B", "B"), ("Answer = B", "B"), ("Final answer: (B)", "B"),
    ("The answer would be B.", "B"), ("The answer should be B.", "B"), ("The answer must be (B).", "B"), ("The answer to this question is B.", "B"),
    ("The answer is therefore (B).", "B"), ("The answer is most likely B.", "B"), ("My answer is B!", "B"), ("The answer is\n(B)", "B"),
    ("the answer is (b", "B"), ("the answer is A", "A"), ("the answer is a", "A"), ("the answer is (a).", "A"), ("The answer is A because it is soft.", "A"),
    ("Option B is correct.", "B"), ("B is the correct answer.", "B"), ("(B) is correct", "B"), ("B is correct", "B"), ("granite (B) is the right choice", "B"),
    ("I would choose option D.", "D"), ("I choose B.", "B"), ("I'd go with B.", "B"), ("I pick (C)", "C"), ("My choice is C.", "C"), ("Choice: C", "C"),
]  # fmt: skip
DRESSED = [
    ("**B**", "B"), ("**The answer is (B).**", "B"), ("The answer is **(B)**.", "B"), ("**Answer:** B", "B"), ("**Answer: B**", "B"), ("### Answer\nB", "B"),
    ("The answer is *B*", "B"), ("The answer is `B`.", "B"), ('The answer is "B".', "B"), ("The answer is 'B'.", "B"), ("The answer is “B”.", "B"),
    ("__B__", "B"), ("> B", "B"), ("- B", "B"), ("The answer is [B].", "B"), ("[B]", "B"), ("{B}", "B"), ("<answer>B</answer>", "B"), ("Answer: <b>B</b>", "B"),
    ("$\\boxed{A}$", "A"), ("\\boxed{B}", "B"), ("The answer is $\\boxed{\\text{D}}$", "D"), ("\\boxed{\\textbf{(B)}}", "B"), ("\\(\\boxed{B}\\)", "B"),
    ("The final answer is: $\\boxed{\\mathrm{B}}$. I hope it is correct.", "B"), ("\\boxed{granite}", "B"), ("$$\\boxed{B. \\text{granite}}$$", "B"), ("\\[ \\boxed{B} \\]", "B"),
    ("The answer is（B）。", "B"), ("Ｂ", "B"),
]  # fmt: skip
SHORT = [
    ("B", "B"), ("b", "B"), ("(B)", "B"), ("(b)", "B"), ("B.", "B"), ("B)", "B"), ("B:", "B"), (" B \n", "B"), ("B. granite", "B"), ("b) granite", "B"), ("(B) granite", "B"),
    ("B: granite", "B"), ("granite", "B"), ("Granite.", "B"), ("**granite**", "B"), ("The answer is granite.", "B"), ("Answer: granite", "B"), ("A: granite", "B"),
    ("A: marble", "A"), ("A: B", "B"), ("A. marble", "A"), ("So it must be C.", "C"), ("It is B", "B"), ("B. granite\n\nGranite is an igneous rock.", "B"),
]  # fmt: skip
EXPLAINED = [
    ("Marble is metamorphic and chalk is soft. Granite is igneous. The answer is (B).", "B"),
    ("Let's think step by step.\n1. Marble: no.\n2. Granite: yes.\n\nThe answer is (B).", "B"),
    ("A is wrong, since marble is metamorphic. C is wrong too. So the answer is B.", "B"),
    ("Because A is wrong, the answer is **D**", "D"), ("A.\n\nThe answer is D.", "D"), ("Option A is wrong. Option B is correct. Option C is wrong.", "B"),
    ("The correct option is B. Option A is wrong.", "B"), ("Option A is incorrect.", None), ("A. marble: no\nB. granite: yes\n\nAnswer: B", "B"),
    ("The answer is (A). No wait, the answer is (B).", "B"), ("At first I thought the answer is A, but the correct answer is C.", "C"),
    ("The answer is not (A) but (B).", "B"), ("The answer is not A.", None), ("<think>the answer is (A)</think>The answer is (B)", "B"),
    ("<thinking>A?</thinking>\nB", "B"), ("<think>the answer is (A)", None), ("The answer is A</think>B", "B"),
    ("The question asks for an igneous rock.\n\nThe answer is (B) granite.\n\nPlease let me know if I can help with anything else.", "B"),
]  # fmt: skip
SEVERAL = [
    ("A or B?", None), ("The answer is A or B.", None), ("The answer is A, B or C.", None), ("Answer: A/B", None), ("The answer is (A)/(B).", None),
    ("The answer is (C) and (A).", "C"), ("The answer is A, B and C.", "A"), ("The answer is **C** and **A**.", "C"), ("Both A and C.", None), ("A. marble\nB. granite", None), ("A. marble\nB. granite\nC. chalk\nD. slate", None),
    ("A. 4t = 112\nB. 4t = 112\nC.", None), ("A. B.", None), ("\\boxed{A, C}", "A"), ("A\nB", None), ("(A) (B)", None), ("The answer is B and A is wrong.", "B"), ("The answer is B, A is wrong.", "B"),
]  # fmt: skip
UNREADABLE = [
    ("", None), (" ", None), ("I cannot answer that.", None), ("I'm sorry, but I can't help with that.", None), ("As an AI language model, I do not have opinions.", None),
    ("A rock is hard.", None), ("I think it is hard to say.", None), ("The answer is a matter of taste.", None), ("The answer is a bit complicated.", None),
    ("The answer is (X).", None), ("The answer is (J).", None), ("The answer is (E).", None), ("It is granite, because", None), ("None of the above.", None),
    ("The answer is not given.", None), ("The answer is unknown.", None), ("Answer:", None), ("The answer is", None), ("the answer is (", None), ("42", None), ("yes", None),
    ("marble or granite", None), ("The answer is basalt.", None), ("Vitamin C is found in oranges and cannot be a rock", None), ("I", None), ("Question: What? Options:", None),
    ("Dear user, this is a test", None), ("A good question! Let me think.", None),
]  # fmt: skip
SPANS = [
    ("A is wrong, B is right.", "B"), ("Not A: B is correct.", "B"), ("B, the hard one, is correct", "B"),
    ("A is true but C is the best answer", "C"), ("A statement that is true.", None), ("I believe this is correct.", None),
]  # fmt: skip
LAST_LINES = [
    ("The closest option is (B).", "B"), ("The closest is (B), but this is not accurate.", None), ("The answer is (B), which is not obvious.", "B"),
    ("The answer is (C). However, option (B) is incorrect.", "C"), ("Therefore, the motion should be (D) denied.", "D"), ("Hence (C).", "C"), ("Therefore, C.", "C"),
    ("None fits well, but (D) is the closest and most comprehensive one.\n\nFinal Answer: D. slate", "D"), ("Let us weigh it.\n\nThe right statement is:\n\nB. granite", "B"),
    ("Since it is not soft the answer is (B).", "B"), ("If it is hard then the answer is (B).", "B"), ("The answer is B, as granite is hard.", "B"), ("Is the answer (B)?", None),
    ("The answer is $B$.", "B"), ("The answer is B = 3 T.", None), ("The answer is D/2.", None), ("The answer is A - B.", None), ("Neither (A) nor (B) is correct.", None),
]  # fmt: skip
WRONG_TEXTS = [
    ("B. A customer who waits", "B"),
    ("B. a stone", "B"),
    ("The answer is (B) marble.", "B"),
    ("B. chalk", "B"),
    ("Answer: C. slate", "C"),
    ("The answer is (A) basalt.", "A"),
]


@pytest.mark.parametrize(
    ("answer", "letter"), STATED + DRESSED + SHORT + EXPLAINED + SEVERAL + UNREADABLE + SPANS + LAST_LINES + WRONG_TEXTS
)
def test_answers_are_read_as_a_person_would(answer, letter):
    assert extract_choice(answer, ROCKS) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is (I).", "I"), ("The answer is I.", "I"), ("the answer is j", "J"), ("I think the answer is (H).", "H"), ("The answer is I think (H).", "H"),
        ("I would say it is F.", "F"), ("I cannot say.", None), ("The answer is 12.", "E"), ("\\boxed{\\frac{1}{2}}", None), ("The answer is $x^2 + 1$.", "G"),
        ("The answer is 0,1", "C"), ("3.5 m/s", "F"), ("The answer is -7.", "H"), ("The answer is 1.", None), ("I choose J.", "J"), ("The answer is I and II only.", None), ("The answer is (i) and (iii).", None), ("(I)", "I"), ("I.", "I"),
    ],
)  # fmt: skip
def test_ten_options_among_them_i_and_numbers(answer, letter):
    assert extract_choice(answer, NUMBERS) == letter


@pytest.mark.parametrize("letter", LETTERS)
def test_the_asked_form_is_read_for_every_letter(letter):
    for form in (
        "The answer is ({}).",
        "the answer is {}",
        "{}",
        "**{}**",
        "({})",
        "\\boxed{{{}}}",
        "Answer: {}",
        "{}. it",
    ):
        assert extract_choice(form.format(letter), NUMBERS) == letter, form


def test_letters_beyond_the_options_are_not_read():
    assert extract_choice("The answer is (C).", ["ice", "fire"]) is None


def test_thinking_is_stripped():
    assert strip_thinking("x</think> yes") == "yes"
    assert strip_thinking("<reasoning>A</reasoning>B") == "B"


def test_recorded_answers_are_read_as_officially_for_each_model(real_data):
    """Of the answers with an official reading at least 95 % give the same letter; the others are counted apart."""
    same, silent = defaultdict(list), defaultdict(list)
    for line in (real_data / "mmlu_pro_answers.jsonl").read_text("utf-8").strip().split("\n"):
        row = json.loads(line)
        letter = extract_choice(row["model_output"], row["options"])
        if row["pred"] is None:
            silent[row["model"]].append(letter)
        else:
            same[row["model"]].append(letter == row["pred"])
    shares = {model: sum(verdicts) / len(verdicts) for model, verdicts in same.items()}
    read = {model: f"{sum(x is not None for x in letters)} of {len(letters)}" for model, letters in silent.items()}
    print(f"same letter: {shares}; read where there is no official reading: {read}")
    assert len(shares) == 6 and min(shares.values()) >= 0.95, shares


def test_nothing_is_read_where_nothing_is_answered():
    options = ["ice", "fire", "iron", "lead", "gold", "salt", "wind", "rain", "mud", "12.5"]
    assert len(set(UNANSWERED)) == 100
    assert {answer: letter for answer in UNANSWERED if (letter := extract_choice(answer, options))} == {}


NEXT = [
    "\n\nQuestion: Which is soft?\nOptions: A. chalk\nAnswer: The answer is (A).", " Question: Which? ... The answer is (A)", "\nQuestion 12: Which? The answer is (A).",
    "\n\n**Question:** Which?\n**Answer:** The answer is (A).", "\n\n### Question: Which?\nThe answer is (A).", "\nQ: Which is soft?\nA: The answer is (A).",
    "\n\nQ: The soft one is\nA: The answer is (A).", "\n\nUser: Which is soft?\n\nAssistant: The answer is (A).", "\n\nHuman: And?\n\nAssistant: A",
    "<|im_end|>\n<|im_start|>user\nWhich?<|im_start|>assistant\nA", "[INST] Which? [/INST] The answer is (A).",
    "\n\nThe following are multiple choice questions about rocks.\n\nThe answer is (A).",
]  # fmt: skip


@pytest.mark.parametrize("more", NEXT)
@pytest.mark.parametrize(
    "answer", ["The answer is (I).", "**The answer is (I).**", "It is mud, so the answer is I.", "I."]
)
def test_an_answer_ends_where_another_question_begins(answer, more):
    reading = read_answer(answer + more, NUMBERS)
    assert (reading.first, reading.last, reading.runs_on) == ("I", "I", True)
    assert read_answer("We need more data." + more, NUMBERS).first is None  # the next one's answer is not this one's


@pytest.mark.parametrize(
    "answer",
    ["Question: Which is hard?\nThe answer is (B).", "\n\n**Question:** Which?\n\nThe answer is (B).", "Let me restate it:\n\nQuestion: Which?\nThe answer is (B).",
     "The question: is it hard? The answer is (B).", "Heat\nQ: energy in J\nm: mass in kg\nThe answer is (B).", "Answer the Question: The answer is (B).", "Human: 46\nThe answer is (B)."],
)  # fmt: skip
def test_the_question_that_was_asked_cuts_nothing(answer):
    assert read_answer(answer, ROCKS).first == "B" and not read_answer(answer, ROCKS).runs_on


def test_the_first_statement_counts_and_the_last_is_told():
    said = "The answer is (A). Some more words. The answer is (C)."
    assert (read_answer(said, ROCKS).first, read_answer(said, ROCKS).last) == ("A", "C")
    back = "The answer is (A). Wait, let me recheck. The answer is (C). So the answer is (C)."
    assert (read_answer(back, ROCKS).first, read_answer(back, ROCKS).last) == ("C", "C")
    assert read_answer("The answer is (A) and (C).", ROCKS).lists and not read_answer(said, ROCKS).lists


def test_generation_stops_where_reading_would_cut():
    for stop in STOPS:
        assert cut_at_next_question(f"The answer is (I).{stop} Which?") == "The answer is (I)."


@given(
    st.text(st.sampled_from("ABIabi().,:;\n *$\\{}[]_^Qis") | st.characters(codec="utf-8")), st.sampled_from(LETTERS)
)
@example("Question:", "A")
def test_what_follows_a_next_question_changes_nothing(text, letter):
    answer = f"The answer is ({letter})."
    assert extract_choice(f"{answer}\n\nQuestion: {text}", NUMBERS) == letter
    assert extract_choice(f"{answer}\n\nQuestion: {text}\nThe answer is (A).", NUMBERS) == letter


@given(
    st.lists(
        st.sampled_from([*"ABIabi().,:;\n *$\\{}[]_^?=", " is ", "the answer", " correct", "Question:", "choose "])
    )
)
def test_any_text_is_read_without_error_as_an_option_or_nothing(parts):
    reading = read_answer("".join(parts), ROCKS)
    assert {reading.first, reading.last} <= {None, *"ABCD"}


@given(st.sampled_from("ABCDEFGHIJ"), st.text("abcdefghijklmnopqrstuvwxyzαβγλμéß", min_size=1, max_size=5))
def test_a_letter_inside_a_word_a_formula_or_a_call_is_none(letter, word):
    for text in (f"The answer is {letter}{word}.", f"{word}{letter} is correct.", f"${word}_{{{letter}}}$ is the answer.",
                 f"The answer is {letter}({word}).", f"{word}({letter}) is correct.", rf"The answer is $\mathcal{{{letter}}}$."):  # fmt: skip
        assert extract_choice(text, NUMBERS) is None, text
