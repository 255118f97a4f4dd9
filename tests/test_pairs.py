"""Pairs: by eye, against a plain loop on real rows, as properties, and through TRL."""

import csv
import itertools
import json
import math
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma import vocabulary
from karma.errors import InputError, KarmaError
from karma.files.reading import compute_file_digest
from karma.kinship.similarity import compute_choices, compute_kinship
from karma.kinship.uncertainty import compute_label_confidence
from karma.pairs.build import build_pair_sets, build_pairs, save_pair_sets
from karma.pairs.curriculum import order_pairs
from karma.pairs.folder import save_pairs
from karma.pairs.pairs import cut_to_smallest, load_pairs, split_pairs
from karma.pairs.public_shape import push_pairs, save_binarized, save_dataset
from karma.pool.annotations import load_annotations
from karma.pool.pool import load_pool, save_pool
from karma.pool.responses import compute_response_id, compute_row_id
from karma.scores.names import canonical_model_name
from karma.scores.read import load_score_table
from karma.strategies import Candidates, choose_by_kinship

TABLE3 = Path(__file__).resolve().parents[1] / "karma" / "data" / "paper" / "table3.csv"


def make_row(instruction="What is kin?", responses=(), source="own"):
    """Rows by eye: responses are (model, text) or (model, text, overall_score)."""
    keys = ("model", "response", "overall_score")
    completions = [dict(zip(keys, r, strict=False)) for r in responses]
    return {"source": source, "instruction": instruction, "completions": completions}


@pytest.fixture(scope="module")
def three_models(tmp_path_factory):
    """Three models on three benchmarks: S_pref 1/6, 1/2, 5/6 (worked out below, by hand)."""
    path = tmp_path_factory.mktemp("scores") / "three.csv"
    path.write_text("origin_model,arc_easy,ifeval,mmlu_pro\nlow,0.2,0.5,0.2\nmiddle,0.5,0.2,0.8\nhigh,0.8,0.8,0.5\n")
    return load_score_table(path)


def pick(row, scores, strategy, **options):
    """The one pair of one row, as (chosen text, rejected text), or the reason it was dropped."""
    pairs = build_pairs(load_pool([row]), scores, strategy, **{"tau": -1.0, "seed": 0, **options})
    assert pairs.accounting.rows_in == 1
    if not len(pairs):
        return next(iter(+pairs.accounting.dropped))
    found = pairs.table.to_pylist()[0]
    return found["chosen"][0]["content"], found["rejected"][0]["content"]


class TestByEye:
    # normalised rows: low (0, .5, 0), middle (.5, 0, 1), high (1, 1, .5); S_pref 1/6, 1/2, 5/6
    # cosines: low-middle 0, low-high 1/1.5 = .667, middle-high (.5 + .5) / (1.118 * 1.5) = .596
    row = make_row(responses=[("low", "L"), ("high", "H"), ("middle", "M")])

    @pytest.mark.parametrize(
        "strategy, expected",
        [
            ("k_score", ("H", "M")),
            ("k_sim", ("H", "L")),
            ("k_score_sim", ("H", "L")),
            ("delta", ("H", "L")),
            ("least_kin", ("M", "L")),
        ],
    )
    def test_three_models(self, three_models, strategy, expected):
        assert pick(self.row, three_models, strategy) == expected

    def test_tau_comes_before_the_strategy(self, three_models):
        assert pick(self.row, three_models, "least_kin", tau=0.1) == ("H", "M")
        assert pick(self.row, three_models, "k_sim", tau=0.65) == ("H", "L")
        assert pick(self.row, three_models, "k_score", tau=0.65) == ("H", "L")
        assert pick(self.row, three_models, "k_sim", tau=0.9) == "below_tau"

    def test_delta_knows_no_tau(self, three_models):
        assert pick(self.row, three_models, "delta", tau=0.9) == ("H", "L")
        row = make_row(responses=[("low", "L"), ("middle", "M")])  # their cosine is 0
        assert pick(row, three_models, "k_score", tau=0.1) == "below_tau"
        books = build_pairs(load_pool([row]), three_models, "delta", tau=0.1, seed=0).accounting
        assert books.pairs_out == 1 and not +books.dropped

    def test_scores_and_kinship_are_written(self, three_models):
        table = build_pairs(load_pool([self.row]), three_models, "k_score", tau=-1, seed=0).table.to_pylist()[0]
        assert table["chosen_score"] == pytest.approx(5 / 6) and table["rejected_score"] == pytest.approx(1 / 2)
        assert table["kinship"] == pytest.approx(1 / (math.sqrt(1.25) * 1.5))
        assert table["prompt"] == [{"role": "user", "content": "What is kin?"}]
        assert table["chosen"] == [{"role": "assistant", "content": "H"}]
        assert table["row_id"] == compute_row_id(self.row)
        assert table["chosen_id"] == compute_response_id("high", "H")

    def test_equal_s_pref_is_no_preference(self, tmp_path):
        path = tmp_path / "twins.csv"
        path.write_text("origin_model,arc_easy,ifeval\na,0.2,0.8\nb,0.8,0.2\nc,0.2,0.2\n")
        twins = load_score_table(path)
        assert pick(make_row(responses=[("a", "A"), ("b", "B")]), twins, "k_score") == "equal_s_pref"
        assert pick(make_row(responses=[("a", "A"), ("c", "C")]), twins, "k_score") == ("A", "C")

    def test_rlaif_random_lower_and_worst(self, three_models):
        row = make_row(responses=[("low", "4", 4.0), ("high", "1", 1.0), ("middle", "3", 3.0)])
        assert pick(row, three_models, "rlaif", rejected="worst") == ("4", "1")
        lower = {pick(row, three_models, "rlaif", seed=seed) for seed in range(20)}
        assert lower == {("4", "1"), ("4", "3")}

    def test_rlaif_ties(self, three_models):
        equal = make_row(responses=[("low", "a", 4.0), ("high", "b", 4.0)])
        assert pick(equal, three_models, "rlaif") == "equal_annotation"
        top = make_row(responses=[("low", "a", 4.0), ("high", "b", 4.0), ("middle", "c", 1.0)])
        assert {pick(top, three_models, "rlaif", seed=s) for s in range(20)} == {("a", "c"), ("b", "c")}

    def test_random_draws_each_pair(self, three_models):
        drawn = {pick(self.row, three_models, "random", seed=seed) for seed in range(40)}
        assert drawn == {("H", "M"), ("H", "L"), ("M", "L")}

    @pytest.mark.parametrize(
        "responses, reason",
        [
            ([], "fewer_than_two_responses"),
            ([("low", "a")], "fewer_than_two_responses"),
            ([("low", "a"), ("high", " \n")], "fewer_than_two_responses"),
            ([("low", "a"), ("high", None)], "fewer_than_two_responses"),
            ([("low", "a"), (None, "b")], "fewer_than_two_responses"),
            ([("low", "a"), ("low", "b")], "one_origin_model"),
            ([("low", "same"), ("high", "same")], "identical_responses"),
        ],
    )
    def test_dropped_for(self, three_models, responses, reason):
        assert pick(make_row(responses=responses), three_models, "k_score") == reason

    def test_blank_prompt(self, three_models):
        row = make_row(instruction="  ", responses=[("low", "a"), ("high", "b")])
        assert pick(row, three_models, "k_score") == "no_prompt"

    def test_excluded_and_unknown_models(self, three_models):
        row = make_row(responses=[("low", "a"), ("high", "b"), ("UltraLM-65b", "c")])
        assert pick(row, three_models, "k_score", excluded_origin_models=["ultralm-65b"]) == ("b", "a")
        with pytest.raises(InputError, match=r"'ultralm-65b' has no scores .* excluded_origin_models"):
            pick(row, three_models, "k_score")

    def test_two_responses_of_one_model(self, three_models):
        row = make_row(responses=[("low", "a"), ("high", "b"), ("high", "c")])
        seen = {pick(row, three_models, "k_score", seed=s) for s in range(20)}
        assert seen == {("b", "a"), ("c", "a")}
        for seed in range(20):
            assert len({pick(row, three_models, s, seed=seed)[0] for s in ("k_score", "k_score_sim")}) == 1

    @pytest.mark.parametrize(
        "option, value, reason",
        [
            ("drop_truthfulqa", True, "truthfulqa"),
            ("contaminated", ["what  IS kin?"], "contaminated"),
            ("max_response_tokens", 1, "fewer_than_two_responses"),
            ("near_identical", 0.6, "near_identical_responses"),
            ("same_system_prompt", True, "differing_system_prompt"),
        ],
    )
    def test_filters_are_counted(self, three_models, option, value, reason):
        row = make_row(responses=[("low", "one two three four"), ("high", "one two three five")], source="truthful_qa")
        row["completions"][0]["custom_system_prompt"] = "Be brief."
        assert pick(row, three_models, "k_score") != reason
        assert pick(row, three_models, "k_score", **{option: value}) == reason

    def test_truthfulqa_copies_in_other_sources(self, three_models):
        answers = [("low", "a"), ("high", "b")]
        rows = [
            make_row("Is it  SO?", answers),
            make_row("Is it so?", answers, "truthful_qa"),
            make_row("No?", answers),
        ]
        pairs = build_pairs(load_pool(rows), three_models, "k_sim", tau=-1, seed=0, drop_truthfulqa=True)
        assert +pairs.accounting.dropped == {"truthfulqa": 2}

    def test_match_rows(self, three_models):
        annotated = make_row("a", [("low", "x", 1.0), ("high", "y", 2.0)])
        bare = make_row("b", [("low", "x"), ("high", "y")])
        both = build_pair_sets(load_pool([annotated, bare]), three_models, ["rlaif", "k_sim"], tau=-1, seed=0)
        assert {s: len(p) for s, p in both.items()} == {"rlaif": 1, "k_sim": 2}
        shared = build_pair_sets(
            load_pool([annotated, bare]), three_models, ["rlaif", "k_sim"], tau=-1, seed=0, match_rows=True
        )
        assert {s: len(p) for s, p in shared.items()} == {"rlaif": 1, "k_sim": 1}
        assert +shared["k_sim"].accounting.dropped == {"not_shared": 1}

    def test_annotations_beside_the_pool(self, three_models):
        row = make_row(responses=[("low", "L"), ("high", "H"), ("middle", "M")])
        ids = [compute_response_id(m, t) for m, t in [("middle", "M"), ("low", "L")]]
        table = pa.table({"row_id": [compute_row_id(row)] * 2, "response_id": ids, "score": [2.0, 5.0]})
        assert pick(row, three_models, "rlaif", annotations=load_annotations(table)) == ("L", "M")


def test_the_best_model_with_an_eligible_partner_is_chosen():
    """Of a > b > c > d only (a, d) and (b, c) are kin: k_score takes a, not the larger sum."""
    kin = np.full((4, 4), -1.0)
    kin[0, 3] = kin[3, 0] = kin[1, 2] = kin[2, 1] = 0.9
    four = Candidates(1, np.zeros(4, int), np.arange(4), np.arange(4, dtype=np.uint64), np.full(4, np.nan))
    for strategy in ("k_score", "k_score_sim"):
        pick = choose_by_kinship(strategy, four, np.array([0.9, 0.8, 0.7, 0.1]), kin, tau=0.1)
        assert (pick.chosen.tolist(), pick.rejected.tolist()) == ([0], [3])


def test_one_response_in_two_rows_has_two_annotations(three_models):
    answers = [("low", "L"), ("high", "H")]
    rows = [make_row("one?", answers), make_row("two?", answers)]
    scores = [[1.0, 2.0], [5.0, 3.0]]
    columns = {
        "row_id": [compute_row_id(r) for r in rows for _ in answers],
        "response_id": [compute_response_id(*a) for _ in rows for a in answers],
        "score": [s for pair in scores for s in pair],
    }
    annotations = load_annotations(pa.table(columns))
    pairs = build_pairs(load_pool(rows), three_models, "rlaif", tau=-1, seed=0, annotations=annotations)
    assert [p[0]["content"] for p in pairs.table["chosen"].to_pylist()] == ["H", "L"]


def reference_pairs(rows, strategy, tau=0.1):
    """An independent plain loop over Table 3 as printed: lists and dictionaries, no NumPy."""
    with TABLE3.open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    names = [k for k in lines[0] if k not in ("origin_model", "average_score")]
    columns = {k: [float(line[k]) for line in lines] for k in names}
    vectors = {
        line["origin_model"].lower(): [
            (float(line[k]) - min(columns[k])) / (max(columns[k]) - min(columns[k])) for k in names
        ]
        for line in lines
    }
    s_pref = {m: sum(v) / len(v) for m, v in vectors.items()}

    sure = compute_label_confidence(load_score_table("paper")).rename(index=str.lower, columns=str.lower)

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(vectors[a], vectors[b], strict=True))
        return dot / math.sqrt(sum(x * x for x in vectors[a]) * sum(x * x for x in vectors[b]))

    for row in rows:
        answers = [(c["model"].lower(), c["response"]) for c in row["completions"] if (c["response"] or "").strip()]
        eligible = [
            p for p in itertools.combinations(answers, 2) if strategy == "delta" or cosine(p[0][0], p[1][0]) >= tau
        ]
        eligible = [tuple(sorted(p, key=lambda a: -s_pref[a[0]])) for p in eligible]
        if strategy == "k_sure":
            eligible = [p for p in eligible if sure.loc[p[0][0], p[1][0]] >= 0.95]
        rank = {
            "k_score": lambda p: (s_pref[p[0][0]], s_pref[p[1][0]]),
            "k_score_sim": lambda p: (s_pref[p[0][0]], cosine(p[0][0], p[1][0])),
            "k_sim": lambda p: cosine(p[0][0], p[1][0]),
            "delta": lambda p: (s_pref[p[0][0]], -s_pref[p[1][0]]),
            "k_sure": lambda p: cosine(p[0][0], p[1][0]),
            "least_kin": lambda p: -cosine(p[0][0], p[1][0]),
        }[strategy]
        if eligible:
            chosen, rejected = max(eligible, key=rank)
            if chosen[1] != rejected[1]:
                yield row["instruction"], *chosen, *rejected


@pytest.mark.parametrize("strategy", ["k_score", "k_sim", "k_score_sim", "delta", "least_kin", "k_sure"])
def test_real_rows_against_a_plain_loop(real_data, strategy):
    file = real_data / "pool_alpacaeval_200.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    pairs = build_pairs(load_pool(file), load_score_table("paper"), strategy, tau=0.1, seed=0)
    found = [
        (p["prompt"][0]["content"], p["chosen_model"], p["chosen"][0]["content"], p["rejected_model"],
         p["rejected"][0]["content"])
        for p in pairs.table.to_pylist()
    ]  # fmt: skip
    assert found == list(reference_pairs(rows, strategy))
    assert len(found) >= 199


STRATEGIES = [name for name in vocabulary.STRATEGIES if name != "density_ratio"]  # tests/test_density_ratio.py
MODELS = ["GPT-4", "bard", "alpaca-7b", "starchat", "pythia-12b", "llama-2-7b-chat"]
TEXTS = st.text(max_size=6) | st.sampled_from(["same", "", " ", "naïve 你好 🎉", "x" * 300])
COMPLETION = st.fixed_dictionaries({
    "model": st.sampled_from([*MODELS, "ultralm-65b", None]),
    "response": TEXTS | st.none(),
    "overall_score": st.sampled_from([1.0, 3.5, 5.0, None]),
})  # fmt: skip
ROW = st.fixed_dictionaries({
    "source": st.sampled_from(["sharegpt", "truthful_qa", None]),
    "instruction": TEXTS | st.none(),
    "completions": st.lists(COMPLETION, max_size=5),
})  # fmt: skip
PAPER = load_score_table("paper")
OPTIONS = {"tau": 0.1, "seed": 3, "excluded_origin_models": ["ultralm-65b"]}


def encodable(rows):
    return json.dumps(rows, ensure_ascii=False).encode("utf-8", "ignore").decode() == json.dumps(
        rows, ensure_ascii=False
    )


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=6).filter(encodable), order=st.randoms())
def test_properties(rows, order):
    sets = build_pair_sets(load_pool(rows), PAPER, STRATEGIES, **OPTIONS)
    shuffled = [{**row, "completions": order.sample(row["completions"], len(row["completions"]))} for row in rows]
    order.shuffle(shuffled)
    again = build_pair_sets(load_pool(shuffled), PAPER, STRATEGIES, **OPTIONS)
    for strategy, pairs in sets.items():
        books = pairs.accounting
        assert books.rows_in == len(rows) == len(pairs) + books.dropped.total()
        n = sum(len(row["completions"]) for row in rows)
        assert books.responses_in == n == books.responses_usable + books.responses_unused.total()
        key = lambda p: json.dumps(p, sort_keys=True)  # noqa: E731
        assert sorted(map(key, pairs.table.to_pylist())) == sorted(map(key, again[strategy].table.to_pylist()))
        for p in pairs.table.to_pylist():
            assert p["chosen_score"] > p["rejected_score"]
            assert p["chosen"] != p["rejected"]
            assert strategy == "rlaif" or p["chosen_model"] != p["rejected_model"]
            assert p["label_confidence"] is None if strategy == "rlaif" else p["label_confidence"] >= 0.4
            assert strategy != "k_sure" or p["label_confidence"] >= 0.95
            assert strategy in ("rlaif", "delta") or p["kinship"] >= 0.1
    chosen = [{p["row_id"]: p["chosen"] for p in sets[s].table.to_pylist()} for s in ("k_score", "k_score_sim")]
    assert all(chosen[0][i] == chosen[1][i] for i in chosen[0].keys() & chosen[1].keys())


def test_a_repeated_prompt_is_on_one_side_of_the_split(three_models):
    """The split was keyed by row: the same instruction with other responses could be trained on and tested."""
    rows = [
        make_row(f"Question {k // 2}?", [("high", f"h{k}"), ("middle", f"m{k}"), ("low", f"l{k}")]) for k in range(60)
    ]
    rows[1]["instruction"] = " question  0? "
    pairs = build_pairs(load_pool(rows), three_models, "k_score", tau=0.1, seed=0)
    sides = [{" ".join(p[0]["content"].casefold().split()) for p in part.table["prompt"].to_pylist()}
             for part in split_pairs(pairs, 0.4, seed=0)]  # fmt: skip
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_of_equal_kinship_the_higher_s_pref_is_taken_in_a_pool_as_in_a_table(tmp_path):
    """One rule for ties: the pool drew lots where the score table went by S_pref."""
    (tmp_path / "collinear.csv").write_text("origin_model,arc_easy,ifeval\nz,0,0\na,0.3,0.3\nb,0.6,0.6\nc,0.9,0.9\n")
    scores = load_score_table(tmp_path / "collinear.csv")
    row = make_row(responses=[("a", "1"), ("c", "2"), ("b", "3")])
    assert {pick(row, scores, "k_sim", seed=seed) for seed in range(20)} == {("2", "3")}
    assert compute_choices(scores, 0.1)["k_sim"] == ("c", "b")


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 99), strategy=st.sampled_from(STRATEGIES[1:]))
def test_twins_are_never_decided_by_order(tmp_path_factory, order, seed, strategy):
    """All cosines are equal, two models have equal S_pref: a draw decides, never an order."""
    path = tmp_path_factory.getbasetemp() / "collinear.csv"
    path.write_text("origin_model,arc_easy,ifeval\nzero,0,0\na,0.5,0.5\nb,0.5,0.5\nc,0.9,0.9\nd,0.9,0.9\n")
    scores = load_score_table(path)
    answers = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("a", "5")]
    one, other = make_row(responses=answers), make_row(responses=[answers[i] for i in order])
    assert pick(one, scores, strategy, seed=seed, tau=0.1) == pick(other, scores, strategy, seed=seed, tau=0.1)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=9).filter(encodable), size=st.integers(1, 4))
def test_batches_do_not_matter(rows, size):
    import karma.pool.pool

    whole = build_pairs(load_pool(rows), PAPER, "random", **OPTIONS)
    before = karma.pool.pool.BATCH_ROWS
    try:
        karma.pool.pool.BATCH_ROWS = size
        assert build_pairs(load_pool(rows), PAPER, "random", **OPTIONS).table.equals(whole.table)
    finally:
        karma.pool.pool.BATCH_ROWS = before


@pytest.fixture(scope="module")
def some_rows():
    """Three hundred rows of four responses, with scores, from a fixed generator."""
    dice = random.Random(0)
    return [
        make_row(
            f"Question {i}?",
            [
                (m, f"{m} says {i} {'so ' * dice.randint(0, 9)}", float(dice.randint(1, 5)))
                for m in dice.sample(MODELS, 4)
            ],
        )
        for i in range(300)
    ]


class TestFolder:
    def test_saved_set_comes_back(self, some_rows, tmp_path):
        pairs = build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0)
        back = load_pairs(save_pairs(pairs, tmp_path / "k_sim"))
        assert back.table.equals(pairs.table) and back.accounting.as_dict() == pairs.accounting.as_dict()

    def test_streaming_gives_the_same(self, some_rows, tmp_path):
        save_pool(some_rows, tmp_path / "pool.parquet")
        pool = load_pool(tmp_path / "pool.parquet")
        books = save_pair_sets(pool, PAPER, {s: tmp_path / s for s in STRATEGIES}, tau=0.1, seed=0)
        for strategy in STRATEGIES:
            whole = build_pairs(pool, PAPER, strategy, tau=0.1, seed=0)
            assert load_pairs(tmp_path / strategy).table.equals(whole.table)
            assert books[strategy].as_dict() == whole.accounting.as_dict()

    def test_same_input_same_bytes(self, some_rows, tmp_path):
        for name in ("one", "two"):
            save_pairs(build_pairs(load_pool(some_rows), PAPER, "random", tau=0.1, seed=0), tmp_path / name)
        assert compute_file_digest(tmp_path / "one") == compute_file_digest(tmp_path / "two")

    def test_other_files_stay(self, some_rows, tmp_path):
        (tmp_path / "thesis.txt").write_text("keep me")
        save_pairs(build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0), tmp_path)
        assert (tmp_path / "thesis.txt").read_text() == "keep me"
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "README.md",
            "accounting.json",
            "pairs.parquet",
            "thesis.txt",
        ]

    def test_nothing_appears_when_the_pool_breaks_midway(self, some_rows, tmp_path):
        import karma.pool.pool

        broken = [*some_rows, {"instruction": 5, "completions": []}]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="row 301"):
            patch.setattr(karma.pool.pool, "BATCH_ROWS", 100)
            save_pair_sets(load_pool(broken), PAPER, {"k_sim": tmp_path / "out" / "k_sim"}, tau=0.1, seed=0)
        assert list((tmp_path / "out").iterdir()) == []

    def test_full_disk_and_forbidden_folder(self, some_rows, tmp_path, monkeypatch):
        def refuse(*args, **kwargs):
            raise OSError(28, "No space left on device")

        folder = {"k_sim": tmp_path / "out" / "k_sim"}
        with (
            monkeypatch.context() as patch,
            pytest.raises(KarmaError, match=r"No space left.*nothing was kept"),
        ):
            patch.setattr(pq.ParquetWriter, "write_table", refuse)
            save_pair_sets(load_pool(some_rows), PAPER, folder, tau=0.1, seed=0)
        assert list((tmp_path / "out").iterdir()) == []
        with monkeypatch.context() as patch, pytest.raises(InputError, match="cannot be written: No space"):
            patch.setattr("tempfile.mkdtemp", refuse)
            save_pair_sets(load_pool(some_rows), PAPER, folder, tau=0.1, seed=0)

    @pytest.mark.parametrize(
        "spoil, message",
        [
            (lambda f: (f / "pairs.parquet").unlink(), "no pair folder"),
            (lambda f: (f / "pairs.parquet").write_bytes(b"PAR1"), "cannot be read as parquet"),
            (lambda f: (f / "accounting.json").write_text("{}"), "no accounting"),
            (lambda f: (f / "accounting.json").unlink(), "does not exist"),
            (
                lambda f: (f / "accounting.json").write_text(
                    (f / "accounting.json").read_text().replace('"rows_in": 300', '"rows_in": 299')
                ),
                "299 rows in",
            ),
        ],
    )
    def test_spoiled_folder(self, some_rows, tmp_path, spoil, message):
        spoil(save_pairs(build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0), tmp_path))
        with pytest.raises(InputError, match=message):
            load_pairs(tmp_path)

    def test_card(self, some_rows, tmp_path):
        import yaml
        from huggingface_hub import DatasetCard

        pairs = build_pairs(load_pool(some_rows), PAPER, "k_score", tau=0.1, seed=0)
        save_pairs(pairs, tmp_path, command="karma binarize")
        text = (tmp_path / "README.md").read_text("utf-8")
        card = DatasetCard.load(tmp_path / "README.md")
        assert card.data.to_dict()["configs"][0]["data_files"][0]["path"] == "pairs.parquet"
        assert yaml.safe_load(text.split("---")[1])["size_categories"] == ["n<1K"]
        for phrase in (
            "| tau | 0.1 |",
            "Llama 2 licence",
            "vendor's terms",
            "`karma binarize`",
            "| pairs | 300 |",
        ):
            assert phrase in text, phrase
        concerned = [{p["chosen_model"], p["rejected_model"]} & {"gpt-4", "bard"} for p in pairs.table.to_pylist()]
        n = sum(map(bool, concerned))
        assert f"competing models on its outputs | {n:,} | {n / 300:.1%} |" in text


class TestSplit:
    def test_parts_are_disjoint_and_whole(self, some_rows):
        pairs = build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0)
        train, held = split_pairs(pairs, 0.25, seed=0)
        ids = [set(part.table["row_id"].to_pylist()) for part in (train, held)]
        assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 300
        assert 50 < len(held) < 100
        for part in (train, held):
            part.accounting.check()
            assert part.accounting.pairs_out == len(part)

    def test_a_row_is_held_out_of_every_strategy(self, some_rows):
        sets = build_pair_sets(load_pool(some_rows), PAPER, ["k_sim", "rlaif"], tau=0.1, seed=0)
        held = {s: set(split_pairs(p, 0.25, seed=0)[1].table["row_id"].to_pylist()) for s, p in sets.items()}
        trained = {s: set(split_pairs(p, 0.25, seed=0)[0].table["row_id"].to_pylist()) for s, p in sets.items()}
        assert not held["k_sim"] & trained["rlaif"] and not held["rlaif"] & trained["k_sim"]

    def test_order_of_rows_does_not_matter(self, some_rows):
        held = [
            set(
                split_pairs(build_pairs(load_pool(rows), PAPER, "k_sim", tau=0.1, seed=0), 0.25, seed=0)[1]
                .table["row_id"]
                .to_pylist()
            )
            for rows in (some_rows, some_rows[::-1])
        ]
        assert held[0] == held[1]

    def test_larger_share_holds_the_smaller_one(self, some_rows):
        pairs = build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0)
        small, large = (set(split_pairs(pairs, x, seed=0)[1].table["row_id"].to_pylist()) for x in (0.1, 0.5))
        assert small < large

    def test_impossible_share(self, some_rows):
        pairs = build_pairs(load_pool(some_rows[:3]), PAPER, "k_sim", tau=0.1, seed=0)
        with pytest.raises(InputError, match=r"held_out is 1\.0"):
            split_pairs(pairs, 1.0, seed=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tau": 2.0}, "tau is 2.0"),
        ({"rejected": "best"}, "rejected is 'best'"),
        ({"annotation_field": "score"}, "annotation field 'score'"),
        ({"excluded_origin_models": "gpt-4"}, "lists of names"),
    ],
)
def test_impossible_rules(some_rows, options, message):
    with pytest.raises(InputError, match=message):
        build_pairs(load_pool(some_rows), PAPER, "k_sim", **{"tau": 0.1, "seed": 0, **options})


def test_unknown_strategy_and_missing_scores(some_rows):
    with pytest.raises(InputError, match="strategy 'k_best' is unknown: choose from rlaif"):
        build_pairs(load_pool(some_rows), PAPER, "k_best", tau=0.1, seed=0)
    with pytest.raises(InputError, match="k_sim needs a score table"):
        build_pairs(load_pool(some_rows), None, "k_sim", tau=0.1, seed=0)
    assert build_pairs(load_pool(some_rows), None, "rlaif", tau=0.1, seed=0).table["kinship"].null_count > 200


def test_strict_mode_names_the_reason(some_rows):
    pairs = build_pairs(load_pool([*some_rows, make_row(responses=[])]), PAPER, "k_sim", tau=0.1, seed=0)
    with pytest.raises(InputError, match="rows lost as 'fewer_than_two_responses': 1"):
        pairs.accounting.check_expected([])
    pairs.accounting.check_expected(["fewer_than_two_responses"])
    with pytest.raises(InputError, match="'bad_luck' is no reason"):
        pairs.accounting.check_expected(["bad_luck"])


def test_kinship_column_is_the_matrix(some_rows):
    table = build_pairs(load_pool(some_rows), PAPER, "random", tau=0.1, seed=0).table.to_pandas()
    square = compute_kinship(PAPER).rename(index=canonical_model_name, columns=canonical_model_name)
    models = zip(table.chosen_model, table.rejected_model, strict=True)
    assert np.allclose(table.kinship, [square.loc[a, b] for a, b in models], atol=1e-12)


def write_large_table(path, n_models):
    scores = np.random.default_rng(0).random((n_models, 3)).round(4)
    path.write_text(
        "origin_model,arc_easy,ifeval,mmlu_pro\n" + "".join(f"m{i},{a},{b},{c}\n" for i, (a, b, c) in enumerate(scores))
    )
    return load_score_table(path)


def test_kinship_is_computed_for_the_pairs_of_a_prompt_not_for_all_models(tmp_path):
    """A table of 20,000 models took 9.3 GB: the square of every two."""
    scores = write_large_table(tmp_path / "scores.csv", 20_000)
    rows = [make_row(f"{i}?", [(f"m{(i * 7 + k * 911) % 20_000}", f"says {k}") for k in range(4)]) for i in range(300)]
    tracemalloc.start()
    build_pairs(load_pool(rows), scores, "k_sim", tau=0.1, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, "a float64 square of 20,000 models is 3.2e9 bytes"


def test_kinship_by_pair_makes_the_pairs_of_the_matrix(tmp_path, monkeypatch):
    scores = write_large_table(tmp_path / "scores.csv", 40)
    rows = [make_row(f"{i}?", [(f"m{(i + k * 9) % 40}", f"says {k}") for k in range(4)]) for i in range(100)]
    square = build_pairs(load_pool(rows), scores, "k_sim", tau=0.1, seed=0).table
    monkeypatch.setattr("karma.pairs.rules.MAX_SQUARE", 39)
    lazy = build_pairs(load_pool(rows), scores, "k_sim", tau=0.1, seed=0).table
    assert lazy.drop_columns(["kinship"]).equals(square.drop_columns(["kinship"]))
    np.testing.assert_allclose(lazy["kinship"].to_numpy(), square["kinship"].to_numpy(), atol=1e-12)


class TestCurriculum:
    def test_from_plain_to_subtle(self, some_rows):
        pairs = order_pairs(build_pairs(load_pool(some_rows), PAPER, "random", tau=0.1, seed=0), 3)
        table = pairs.table.to_pandas()
        gap = (table.chosen_score - table.rejected_score).to_numpy()
        assert (np.diff(gap) <= 1e-9).all()
        assert table.stage.value_counts().sort_index().to_dict() == {1: 100, 2: 100, 3: 100}
        assert len(pairs) == pairs.accounting.pairs_out

    def test_streaming_sorts_the_same(self, some_rows, tmp_path, monkeypatch):
        monkeypatch.setattr("karma.pool.pool.BATCH_ROWS", 64)
        monkeypatch.setattr("karma.pairs.curriculum.SLICE_ROWS", 32)
        save_pair_sets(load_pool(some_rows), PAPER, {"k_sim": tmp_path / "k"}, n_stages=4, tau=0.1, seed=0)
        whole = order_pairs(build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0), 4)
        assert load_pairs(tmp_path / "k").table.equals(whole.table)
        assert sorted(p.name for p in (tmp_path / "k").iterdir()) == [
            "README.md",
            "accounting.json",
            "pairs.parquet",
        ]

    def test_more_buckets_than_files_may_be_open(self, some_rows, tmp_path, monkeypatch):
        monkeypatch.setattr("karma.pairs.curriculum.SLICE_ROWS", 4)
        monkeypatch.setattr("karma.pairs.curriculum.MAX_BUCKETS", 3)
        save_pair_sets(load_pool(some_rows), PAPER, {"rlaif": tmp_path / "k"}, n_stages=4, tau=0.1, seed=0)
        whole = order_pairs(build_pairs(load_pool(some_rows), PAPER, "rlaif", tau=0.1, seed=0), 4)
        assert load_pairs(tmp_path / "k").table.equals(whole.table)

    def test_order_does_not_depend_on_the_pools(self, some_rows):
        one, two = (
            order_pairs(build_pairs(load_pool(rows), PAPER, "k_sim", tau=0.1, seed=0), 2).table
            for rows in (some_rows, some_rows[::-1])
        )
        assert one.equals(two)


class TestExports:
    def test_public_shape(self, some_rows, real_data, tmp_path):
        save_pairs(build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0), tmp_path)
        rows = pq.read_table(save_binarized(tmp_path)).to_pylist()
        public = json.loads((real_data / "ultrafeedback_binarized_300.jsonl").read_text("utf-8").splitlines()[0])
        assert {"prompt", "chosen", "rejected"} <= set(rows[0]) & set(public)
        assert [m["role"] for m in rows[7]["chosen"]] == ["user", "assistant"]
        pair = load_pairs(tmp_path).table.to_pylist()[7]
        assert rows[7]["prompt"] == pair["prompt"][0]["content"] == rows[7]["rejected"][0]["content"]
        assert rows[7]["chosen"][1:] == pair["chosen"] and rows[7]["rejected"][1:] == pair["rejected"]
        assert rows[7]["score_chosen"] == pair["chosen_score"]

    def test_saved_dataset(self, some_rows, tmp_path):
        import datasets

        save_pairs(build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0), tmp_path)
        rows = datasets.load_from_disk(str(save_dataset(tmp_path)))
        assert rows.num_rows == 300 and rows[3]["chosen"][0]["role"] == "assistant"

    def test_push(self, some_rows, tmp_path):
        class Api:
            calls: ClassVar[list] = []

            def create_repo(self, name, **options):
                self.calls.append((name, options["private"]))

            def upload_folder(self, **options):
                self.calls.append((options["repo_id"], sorted(options["allow_patterns"])))

        with pytest.raises(InputError, match="no pair folder"):
            push_pairs(tmp_path, "me/pairs", api=Api())
        save_pairs(build_pairs(load_pool(some_rows), PAPER, "k_sim", tau=0.1, seed=0), tmp_path)
        push_pairs(tmp_path, "me/pairs", api=Api())
        assert Api.calls == [
            ("me/pairs", True),
            ("me/pairs", ["README.md", "accounting.json", "pairs.parquet"]),
        ]


def build_tiny_model(folder):
    """A two-layer Llama and a byte tokenizer with a chat template, made on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    wrapped.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder), wrapped  # DPOTrainer loads the reference by the folder's name


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_straight_into_trl(some_rows, tmp_path, method):
    import datasets
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    save_pairs(build_pairs(load_pool(some_rows[:8]), PAPER, "k_sim", tau=0.1, seed=0), tmp_path / "pairs")
    rows = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "pairs" / "pairs.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    model, tokenizer = build_tiny_model(tmp_path / "model")
    trainer, config = (DPOTrainer, DPOConfig) if method == "dpo" else (SFTTrainer, SFTConfig)
    if method == "sft":
        rows = rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
    options = config(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
    )
    done = trainer(model=model, args=options, train_dataset=rows, processing_class=tokenizer)
    done.train()
    losses = [entry["loss"] for entry in done.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    if method == "dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4)


def test_all_sets_train_on_as_many_pairs_as_the_smallest(tmp_path):
    """Equal training parts, held-out pairs whole, rows in common kept in common, the same whatever the order."""
    answers = [("gpt-4", "G"), ("bard", "B"), ("alpaca-7b", "A")]
    rows = [make_row(instruction=f"Question {i}?", responses=[(m, f"{t} {i}", 1.0) for m, t in answers[: 2 + i % 2]])
            for i in range(60)]  # fmt: skip
    names = ["k_sim", "delta", "k_score"]
    plain = build_pair_sets(load_pool(rows), PAPER, names, **OPTIONS)
    plain["delta"] = build_pairs(load_pool(rows[:30]), PAPER, "delta", **OPTIONS)
    cut = cut_to_smallest(plain, 0.25, 3)
    parts = {name: split_pairs(pairs, 0.25, 3) for name, pairs in cut.items()}
    assert len({len(train) for train, _ in parts.values()}) == 1
    assert cut["delta"].table.equals(plain["delta"].table) and len(parts["delta"][0]) > 10
    kept = {}
    for name in names:
        cut[name].accounting.check()
        assert parts[name][1].table.equals(split_pairs(plain[name], 0.25, 3)[1].table), "held-out pairs stay"
        assert cut[name].accounting.dropped["beyond_smallest"] == len(plain[name]) - len(cut[name])
        assert load_pairs(save_pairs(cut[name], tmp_path / name)).table.equals(cut[name].table)
        kept[name] = set(parts[name][0].table["row_id"].to_pylist())
    assert kept["k_sim"] == kept["k_score"] and cut["k_sim"].accounting.dropped["beyond_smallest"] > 10
    backwards = {
        name: replace(pairs, table=pairs.table.take([*range(len(pairs))][::-1])) for name, pairs in plain.items()
    }
    again = cut_to_smallest(backwards, 0.25, 3)
    assert all(
        set(again[name].table["row_id"].to_pylist()) == set(cut[name].table["row_id"].to_pylist()) for name in names
    )
    again = cut_to_smallest(dict(reversed(plain.items())), 0.25, 3)
    assert all(again[name].table.equals(cut[name].table) for name in names)
    assert not cut_to_smallest(plain, 0.25, 4)["k_sim"].table.equals(cut["k_sim"].table)
    none = build_pairs(load_pool([{**rows[0], "completions": rows[0]["completions"][:1]}]), PAPER, "delta", **OPTIONS)
    with pytest.raises(
        InputError, match=r"delta has no pair to train on, so that no set would: leave it out of pairs\."
    ):
        cut_to_smallest({**plain, "delta": none}, 0.25, 3)
