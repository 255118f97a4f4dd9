"""The pool: every way it may lie on disk or be malformed, and identities that survive shuffling."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma.errors import InputError
from karma.pool import parts
from karma.pool.annotations import load_annotations
from karma.pool.generate import _load_instructions, run
from karma.pool.pool import load_pool, save_pool
from karma.pool.responses import compute_response_id, compute_row_id, to_hex


def completion(model, response, **more):
    return {"model": model, "response": response, **more}


ROWS = [
    {
        "source": "sharegpt",
        "instruction": "Naïve 你好 🎉?",
        "models": ["b", "a"],
        "completions": [
            completion("a", "Oui.", overall_score=7.5),
            completion("b", "Non.", custom_system_prompt="Say no."),
        ],
    },
    {
        "source": None,
        "instruction": "Long?",
        "completions": [
            completion("a", "x" * 100_000),
            completion("c", None),
            None,
            completion(None, "who?"),
        ],
    },
    {"source": "flan", "instruction": "None?", "completions": None},
]


def read(source, annotation=None):
    """All batches of a pool as plain lists: (row, model, response, system prompt, annotation)."""
    found = []
    for batch in load_pool(source).batches(annotation):
        names = [*batch.model_names, None]
        found += [
            (int(row), names[model], text, prompt, None if np.isnan(score) else float(score))
            for row, model, text, prompt, score in zip(
                batch.row,
                batch.model,
                batch.response.to_pylist(),
                batch.system_prompt.to_pylist(),
                batch.annotation,
                strict=True,
            )
        ]
    return found


EXPECTED = [
    (0, "a", "Oui.", None, 7.5),
    (0, "b", "Non.", "Say no.", None),
    (1, "a", "x" * 100_000, None, None),
    (1, "c", None, None, None),
    (1, None, None, None, None),
    (1, None, "who?", None, None),
]


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class TestWhereItLies:
    def test_in_memory(self):
        assert read(ROWS, "overall_score") == EXPECTED

    @pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
    def test_json_lines(self, tmp_path, start):
        (tmp_path / "pool.jsonl").write_text(start + as_lines(ROWS), "utf-8")
        assert read(tmp_path / "pool.jsonl", "overall_score") == EXPECTED

    @pytest.mark.parametrize("indent", [None, 1])
    def test_json_array(self, tmp_path, indent):
        (tmp_path / "pool.json").write_text(json.dumps(ROWS, indent=indent), "utf-8")
        assert read(tmp_path / "pool.json", "overall_score") == EXPECTED

    def test_parquet(self, tmp_path):
        assert save_pool(ROWS, tmp_path / "pool.parquet") == 3
        assert read(tmp_path / "pool.parquet", "overall_score") == EXPECTED
        assert load_pool(tmp_path / "pool.parquet").n_rows == 3

    @pytest.mark.parametrize("kind", ["parquet", "jsonl"])
    def test_folder(self, tmp_path, kind):
        for i, row in enumerate(ROWS[:2]):
            if kind == "parquet":
                save_pool([row], tmp_path / f"part-{i}.parquet")
            else:
                (tmp_path / f"part-{i}.jsonl").write_text(as_lines([row]), "utf-8")
        assert [r[1:] for r in read(tmp_path, "overall_score")] == [r[1:] for r in EXPECTED]

    def test_a_studys_pool_folder(self, tmp_path):
        save_pool(ROWS, tmp_path / "pool.parquet")
        pq.write_table(pa.table({"row_id": ["x"]}), tmp_path / "annotations.parquet")
        assert read(tmp_path, "overall_score") == EXPECTED

    def test_saved_datasets_folder(self, tmp_path):
        import datasets

        datasets.Dataset.from_list(ROWS[:1]).save_to_disk(str(tmp_path / "saved"))
        assert read(tmp_path / "saved", "overall_score") == EXPECTED[:2]

    def test_hub(self, monkeypatch):
        import datasets

        from karma.study.experiment import load_base

        asked = {}
        monkeypatch.setattr(
            datasets,
            "load_dataset",
            lambda name, **k: asked.update(name=name, **k) or datasets.Dataset.from_list(ROWS[:1]),
        )
        pool = load_pool("openbmb/UltraFeedback")
        assert asked == {
            "name": "openbmb/UltraFeedback",
            "revision": load_base().pool.revision,
            "split": "train",
        }
        assert (pool.n_rows, pool.revision) == (1, asked["revision"])
        load_pool("someone/pool", revision="abc")
        assert asked["revision"] == "abc"
        assert [b.response.to_pylist() for b in pool.batches()] == [["Oui.", "Non."]]

    def test_parquet_decodes_only_what_is_needed(self, tmp_path, monkeypatch):
        save_pool(ROWS, tmp_path / "pool.parquet")
        asked = []
        before = pq.ParquetFile.iter_batches
        monkeypatch.setattr(
            pq.ParquetFile,
            "iter_batches",
            lambda self, n, columns, **k: asked.extend(columns) or before(self, n, columns=columns, **k),
        )
        list(load_pool(tmp_path / "pool.parquet").batches())
        assert {c.rpartition(".")[2] for c in asked} == {
            "source", "instruction", "model", "response", "custom_system_prompt",
        }  # fmt: skip


class TestRealRows:
    def test_paper_row(self, real_data):
        file = real_data / "ultrafeedback_row_example.json"
        assert [r[1] for r in read(file)] == ["falcon-40b-instruct", "gpt-4", "starchat", "wizardlm-7b"]
        assert [r[4] for r in read(file, "mean_aspect")] == [(2 + 3 + 3 + 3) / 4, None, None, None]

    def test_ids_are_those_of_the_row(self, real_data):
        file = real_data / "pool_alpacaeval_200.jsonl"
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        batch = next(load_pool(file).batches())
        assert to_hex(batch.row_digest).to_pylist() == [compute_row_id(r) for r in rows]
        ids = [compute_response_id(c["model"], c["response"]) for r in rows for c in r["completions"]]
        assert to_hex(batch.response_digest).to_pylist() == ids
        assert len(set(ids)) == 800

    def test_parquet_and_json_agree(self, real_data, tmp_path):
        file = real_data / "pool_alpacaeval_200.jsonl"
        save_pool(map(json.loads, file.read_text("utf-8").splitlines()), tmp_path / "pool.parquet")
        assert read(tmp_path / "pool.parquet", "overall_score") == read(file, "overall_score")


class TestIdentity:
    def test_scalar_and_column_ids_agree_on_odd_rows(self, tmp_path):
        rows = [*ROWS, {"source": "", "instruction": "", "completions": []}]
        (tmp_path / "p.jsonl").write_text(as_lines(rows), "utf-8")
        batch = next(load_pool(tmp_path / "p.jsonl").batches())
        assert to_hex(batch.row_digest).to_pylist() == [compute_row_id(r) for r in rows]

    def test_ids_tell_rows_apart(self):
        base = {
            "source": "s",
            "instruction": "i",
            "completions": [completion("a", "x"), completion("b", "y")],
        }
        others = [
            base | {"source": "t"},
            base | {"instruction": "j"},
            base | {"completions": [completion("a", "y"), completion("b", "x")]},
            base | {"completions": base["completions"][:1]},
        ]
        assert len({compute_row_id(r) for r in [base, *others]}) == 5
        assert compute_row_id(base) == compute_row_id(
            base | {"completions": base["completions"][::-1], "models": ["q"]}
        )

    def test_ids_are_fixed_for_good(self):
        """Other stages store these: a change here orphans every annotation table out there."""
        assert compute_response_id("GPT-4", "Paris.") == PARIS
        assert compute_row_id({"source": "s", "instruction": "i", "completions": [completion("a", "x")]}) == ROW_ID


PARIS, ROW_ID = "c08eaa8c26aa27ad154c23e9902f452e", "50a315735ed760e96b1c6dddf7055c98"


class TestAnnotationsInThePool:
    def test_hyphen_or_underscore(self):
        for name in ("fine-grained_score", "fine_grained_score"):
            rows = [{"instruction": "i", "completions": [completion("a", "x", **{name: 3.25})]}]
            assert read(rows, "fine-grained_score")[0][4] == 3.25

    def test_not_available_is_no_rating(self):
        ratings = {
            "helpfulness": {"Rating": "4"},
            "honesty": {"Rating": "N/A"},
            "truthfulness": {"Rating": 1},
        }
        rows = [
            {
                "instruction": "i",
                "completions": [completion("a", "x", annotations=ratings, overall_score="N/A")],
            }
        ]
        assert read(rows, "mean_aspect")[0][4] == 2.5
        assert read(rows, "overall_score")[0][4] is None

    def test_text_scores_in_parquet(self, tmp_path):
        nested = [[{"model": "a", "response": "x", "overall_score": s} for s in ("7", "N/A", " 8.5 ", None)]]
        pq.write_table(pa.table({"instruction": ["i"], "completions": nested}), tmp_path / "p.parquet")
        assert [r[4] for r in read(tmp_path / "p.parquet", "overall_score")] == [7.0, None, 8.5, None]

    def test_sliced_and_chunked_columns(self):
        from karma.pool.responses import build_batch

        table = pa.Table.from_pylist(ROWS[:2] * 3).slice(1, 4)
        part = build_batch(pa.Table.from_pylist(ROWS[:2] * 3).to_batches()[0].slice(1, 3))
        assert to_hex(part.row_digest).to_pylist() == [compute_row_id(ROWS[i]) for i in (1, 0, 1)]
        batch = build_batch(pa.concat_tables([table, table]))
        assert [r % 4 for r in np.unique(batch.row)] == [0, 1, 2, 3] * 2
        assert to_hex(batch.row_digest).to_pylist() == [compute_row_id(ROWS[i]) for i in (1, 0, 1, 0) * 2]


def half_emoji():
    return as_lines([{"instruction": "x", "completions": []}]).replace('"x"', '"\\ud83d"').encode()


GOOD = as_lines(ROWS[:1])
MALFORMED = {
    "empty": (b"", "is empty"),
    "blank": (b" \n ", "is empty|holds no rows"),
    "cut off": (GOOD.encode() + GOOD.encode()[:30], "line 2 is not valid JSON .* fetch it again"),
    "not json": (b"hello\n", "line 1 is not valid JSON"),
    "latin-1": (GOOD.encode() + '{"instruction": "é"}\n'.encode("latin-1"), "line 2 is not UTF-8"),
    "utf-16": (GOOD.encode("utf-16"), "is UTF-16"),
    "a number": (b"5\n", "line 1 is int, expected an object"),
    "empty array": (b"[]", "holds no rows"),
    "no completions": (b'{"instruction": "x"}\n', "line 1 has no 'completions'"),
    "no instruction": (b'{"prompt": "x", "completions": []}\n', "has no 'instruction'; it has prompt"),
    "numeric instruction": (
        b'{"instruction": 5, "completions": []}\n',
        r"instruction is 5 \(int\), expected text",
    ),
    "completions a text": (
        b'{"instruction": "x", "completions": "y"}\n',
        "completions is str, expected a list",
    ),
    "completion a text": (b'{"instruction": "x", "completions": ["y"]}\n', "a completion is str"),
    "completion without model": (b'{"instruction": "x", "completions": [{"response": "y"}]}\n', "no 'model'"),
    "response a list": (
        b'{"instruction": "x", "completions": [{"model": "m", "response": ["y"]}]}\n',
        "expected text",
    ),
    "key given twice": (
        b'{"instruction": "x", "instruction": "y", "completions": []}\n',
        "line 1: key 'instruction' is given twice",
    ),
    "deep nesting": (b"[" * 100_000, "not valid JSON"),
}


class TestMalformed:
    @pytest.mark.parametrize("name", MALFORMED)
    def test_json(self, tmp_path, name):
        content, message = MALFORMED[name]
        (tmp_path / "pool.jsonl").write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / "pool.jsonl")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "table, message",
        [
            ({"instruction": ["x"]}, "has no column 'completions'"),
            (
                {"prompt": ["x"], "completions": [[{"model": "m", "response": "r"}]]},
                "has no column 'instruction'",
            ),
            ({"instruction": ["x"], "completions": ["y"]}, "'completions' is string, expected a list"),
            ({"instruction": ["x"], "completions": [[{"response": "r"}]]}, "completions have no 'model'"),
            (
                {"instruction": ["x"], "completions": [[{"model": 1, "response": "r"}]]},
                "model is int64, expected text",
            ),
            (
                {"instruction": [5], "completions": [[{"model": "m", "response": "r"}]]},
                "instruction is int64",
            ),
        ],
    )
    def test_parquet(self, tmp_path, table, message):
        pq.write_table(pa.table(table), tmp_path / "pool.parquet")
        with pytest.raises(InputError, match=message):
            read(tmp_path / "pool.parquet")

    def test_duplicate_columns(self, tmp_path):
        nested = pa.array([[{"model": "m", "response": "r"}]])
        table = pa.Table.from_arrays(
            [pa.array(["x"]), pa.array(["y"]), nested], ["instruction", "instruction", "completions"]
        )
        pq.write_table(table, tmp_path / "pool.parquet")
        with pytest.raises(InputError, match="has two columns 'instruction'"):
            read(tmp_path / "pool.parquet")

    @pytest.mark.parametrize("keep", [0, 3, 200])
    def test_truncated_parquet(self, tmp_path, keep):
        save_pool(ROWS, tmp_path / "whole.parquet")
        (tmp_path / "pool.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:keep])
        with pytest.raises(InputError, match="cannot be read as parquet"):
            read(tmp_path / "pool.parquet")

    def test_damaged_parquet(self, tmp_path):
        save_pool(ROWS * 50, tmp_path / "pool.parquet")
        content = bytearray((tmp_path / "pool.parquet").read_bytes())
        content[4:3000] = bytes(2996)
        (tmp_path / "pool.parquet").write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as parquet"):
            read(tmp_path / "pool.parquet")

    def test_places(self, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "pool.csv").write_text("a,b\n")
        (tmp_path / "both").mkdir()
        save_pool(ROWS, tmp_path / "both" / "a.parquet")
        (tmp_path / "both" / "b.jsonl").write_text(GOOD)
        cases = {
            "nowhere.jsonl": "does not exist",
            "empty": "holds no pool",
            "pool.csv": "expected .parquet",
            "both": "holds both",
        }
        for name, message in cases.items():
            with pytest.raises(InputError, match=message):
                load_pool(tmp_path / name)
        with pytest.raises(InputError, match="a revision belongs to a Hub id"):
            load_pool(tmp_path / "both" / "b.jsonl", revision="abc")
        with pytest.raises(InputError, match="holds no rows"):
            read([])

    def test_unreadable(self, tmp_path, monkeypatch):
        (tmp_path / "pool.jsonl").write_text(GOOD)

        def refuse(self, *args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(InputError, match="cannot be read: Permission denied"):
            load_pool(tmp_path / "pool.jsonl")

    def test_half_a_character_is_replaced_and_said(self, tmp_path):
        (tmp_path / "pool.jsonl").write_bytes(half_emoji())
        with pytest.warns(UserWarning, match="lone surrogate"):
            batch = next(load_pool(tmp_path / "pool.jsonl").batches())
        assert batch.instruction.to_pylist() == ["?"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert compute_row_id({"instruction": "\ud83d", "completions": []}) == to_hex(batch.row_digest)[0].as_py()

    def test_save_refuses_unknown_keys(self, tmp_path):
        rows = [{"instruction": "x", "completions": [completion("a", "y", temperature=0.7)]}]
        with pytest.raises(InputError, match="row 1: 'temperature' has no place"):
            save_pool(rows, tmp_path / "pool.parquet")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "table, message",
        [
            ({"row_id": ["0" * 32], "score": [1.0]}, "has no column 'response_id'"),
            ({"row_id": ["zz"], "response_id": ["0" * 32], "score": [1.0]}, "32 hexadecimal digits"),
            ({"row_id": ["0"], "response_id": ["0" * 32], "score": [1.0]}, "32 hexadecimal digits"),
            (
                {"row_id": ["0" * 32] * 2, "response_id": ["0" * 32] * 2, "score": [1.0, 2.0]},
                "twice, differently",
            ),
            ({"row_id": ["0" * 32], "response_id": ["0" * 32], "score": ["good"]}, "annotations"),
        ],
    )
    def test_annotation_tables(self, tmp_path, table, message):
        pq.write_table(pa.table(table), tmp_path / "annotations.parquet")
        with pytest.raises(InputError, match=message):
            load_annotations(tmp_path / "annotations.parquet")


def test_a_study_s_pool_keeps_recorded_annotations_whatever_the_source_s_format(tmp_path):
    """Parquet sources lost them: only the columns that pairs need were copied."""
    rows = [
        {"source": "s", "instruction": f"q{k}", "completions": [
            {"model": m, "response": f"{m}{k}", "overall_score": score, "fine-grained_score": score / 2}
            for m, score in (("a", 8.0), ("b", 3.0))]}
        for k in range(3)
    ]  # fmt: skip
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save_pool(rows, tmp_path / "pool.parquet")
    written = []
    for name in ("pool.jsonl", "pool.parquet"):
        settings = SimpleNamespace(pool=SimpleNamespace(source=name, revision=None))
        folder = tmp_path / name.replace(".", "-")
        run(SimpleNamespace(settings=settings, experiment=SimpleNamespace(root=tmp_path), folder=folder))
        (batch,) = load_pool(folder / "pool.parquet").batches("overall_score")
        written.append(batch.annotation.tolist())
    assert written == [[8.0, 3.0] * 3] * 2


# --- what a study's origin models are asked --------------------------------------------------------------------------


VERIFIABLE = {"topic": "Describe rain.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def test_verifiable_prompts_are_asked_with_their_instructions_and_a_part_is_drawn_by_lot(tmp_path):
    lines = [VERIFIABLE, *({"instruction": f"Name {n} trees.", "source": "own"} for n in range(9))]
    for name, rows in (("one", lines), ("other", lines[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = _load_instructions(tmp_path / "one.jsonl")
    assert list(asked.items())[:2] == [
        ("Describe rain. In your entire response, refrain from the use of any commas.", "one"),
        ("Name 0 trees.", "own"),
    ]
    part = _load_instructions(tmp_path / "one.jsonl", 4, seed=1)
    assert len(part) == 4 and list(part) == [text for text in asked if text in part]
    assert set(part) == set(_load_instructions(tmp_path / "other.jsonl", 4, seed=1))
    assert set(part) != set(_load_instructions(tmp_path / "one.jsonl", 4, seed=2))
    with pytest.raises(InputError, match=r"pool.n_prompts: 11 is more than the 10 of one.jsonl"):
        _load_instructions(tmp_path / "one.jsonl", 11)


def test_a_prompt_that_cannot_be_checked_is_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps({**VERIFIABLE, "kwargs": []}))
    with pytest.raises(InputError, match=r"bad.jsonl, line 1: 1 instructions, but 0 sets"):
        _load_instructions(tmp_path / "bad.jsonl")


def parse_by_python(lines):
    from karma.pool.rows import batch_rows, decode_json

    rows = ((i, decode_json(line, "")) for i, line in enumerate(lines, 1))
    (batch,) = batch_rows(rows, "line", len(lines))
    return batch


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
RATING = st.fixed_dictionaries({}, optional={
    "Rating": st.sampled_from(["5", "N/A", None]), "Rationale": TEXT, "Type": st.lists(TEXT, max_size=2), "other": st.integers(-(2**63), 2**63 - 1),
})  # fmt: skip
PLAIN = st.fixed_dictionaries(
    {"instruction": TEXT, "completions": st.lists(st.fixed_dictionaries(
        {"model": TEXT, "response": TEXT},
        optional={"custom_system_prompt": st.none() | TEXT, "overall_score": st.none() | st.floats(-9, 9) | st.integers(-9, 9),
                  "fine-grained_score": st.floats(allow_nan=False, allow_infinity=False), "critique": TEXT,
                  "annotations": st.dictionaries(st.sampled_from(["honesty", "helpfulness", "x"]), RATING)}), max_size=3)},
    optional={"source": st.none() | TEXT, "id": st.integers(-(2**63), 2**63 - 1) | TEXT, "models": st.lists(TEXT, max_size=2)},
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(PLAIN, min_size=1, max_size=4), ascii=st.booleans())
def test_lines_read_by_arrow_are_what_python_reads(rows, ascii):
    lines = [json.dumps(row, ensure_ascii=ascii).encode() + b"\r\n" for row in rows]
    found = parts._parse_plain(lines)
    assert found is not None and found.equals(parse_by_python(lines))


@pytest.mark.parametrize(
    "line",
    [
        b'{"instruction": "x", "instruction": "x", "completions": []}',
        b'{"instruction": null, "completions": []}',
        b'{"completions": []}',
        b'{"instruction": "x"}',
        b'{"instruction": "\xff", "completions": []}',
        b'{"instruction": "\\ud83d", "completions": []}',
        b'{"instruction": "x", "completions": [null]}',
        b'{"instruction": "x", "completions": [{"model": "m"}]}',
        b'{"instruction": "x", "completions": [{"response": "m"}]}',
        b'{"instruction": "x", "completions": [{"model": "m", "response": "r", "overall_score": "8.5"}]}',
        b'{"instruction": "x", "completions": [{"model": "m", "response": "r", "fine_grained_score": 8.5}]}',
        b'{"instruction": "x", "completions": []} {"instruction": "y", "completions": []}',
        b'{"instruction": "x", "completions": [], "models": 5}',
        b'{"instruction": "x", "completions": []',
        b"[1]",
    ],
)
def test_what_arrow_would_misread_is_left_to_python(line):
    good = GOOD.strip().encode()
    assert parts._parse_plain([good + b"\n", line + b"\n", good]) is None
    assert parts._parse_plain([good + b"\n", good]) is not None
