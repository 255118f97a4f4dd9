"""Files are whole or absent."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma.errors import InputError, show_line
from karma.files.places import find_project_root, is_whole, make_cached
from karma.files.reading import compute_file_digest, load_json, load_json_lines, parse_json, read_lines, read_parquet
from karma.files.writing import atomic_path, save_if_changed, save_json
from karma.files.yaml import load_yaml, parse_yaml


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    save_json({"a": 1}, path)
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert load_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_replaces_a_folder_whole(tmp_path):
    for names in (["old", "both"], ["both"]):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text(name)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["both"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_json({"loss": float("nan")}, tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_unchanged_text_keeps_its_time(tmp_path):
    path = tmp_path / "a"
    assert save_if_changed("x", path)
    before = path.stat().st_mtime_ns
    assert not save_if_changed("x", path)
    assert path.stat().st_mtime_ns == before
    assert save_if_changed("y", path)


def test_a_folder_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = compute_file_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert compute_file_digest(tmp_path) != first


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(InputError, match=r"a\.json cannot be read as JSON"):
        load_json(tmp_path / "a.json")


def test_the_root_is_found_from_notebooks(monkeypatch):
    root = find_project_root()
    monkeypatch.chdir(root / "notebooks")
    assert find_project_root() == root


BREAKS = "\u0085\u2028\u2029\x0b\x0c\x1c\x1d\x1e\r"


@given(
    st.lists(st.text(st.sampled_from("ab" + BREAKS))), st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]), st.booleans()
)
def test_json_lines_come_back_as_they_were_whatever_breaks_they_hold(tmp_path_factory, texts, end, bom):
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    lines = end.join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_bytes(("\ufeff" * bom + lines).encode())
    numbers, rows = zip(*load_json_lines(path), strict=True) if texts else ((), ())
    assert [row["text"] for row in rows] == texts
    assert list(numbers) == [1 + k * end.count("\n") for k in range(len(texts))]


@pytest.mark.parametrize("mark", BREAKS[:-1])
def test_a_plain_line_is_not_split_inside(tmp_path, mark):
    (tmp_path / "a.txt").write_bytes(f"\r\none{mark}two\r\n\nthree".encode())
    assert list(read_lines(tmp_path / "a.txt")) == [(2, f"one{mark}two"), (4, "three")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n\n{"a": ', r"a\.jsonl: line 3 is no JSON \(Expecting value.*\): write one JSON value a line"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', r"a\.jsonl: line 2 is not UTF-8 \(byte 0xe9\): save the file as UTF-8"),
        ('{"a": 1}\n'.encode("utf-16"), r"a\.jsonl: line 1 is not UTF-8 \(byte 0xff\)"),
        (b"[" * 10**5, r"a\.jsonl: line 1 is no JSON"),
        (None, r"a\.jsonl cannot be read: it does not exist"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        list(load_json_lines(tmp_path / "a.jsonl"))
    assert "\n" not in str(error.value)


def _load_pool_instructions(path):
    from karma.pool.generate import _load_instructions

    return list(_load_instructions(path))


def _load_contaminated(path):
    from karma.commands.binarize import load_instructions

    return load_instructions(path)


def _load_topics(path):
    from karma.evaluation.prompts import load_prompts

    return [prompt.text for prompt in load_prompts(path, verifiable=False)]


@pytest.mark.parametrize("load", [_load_pool_instructions, _load_contaminated, _load_topics])
def test_every_reader_of_prompts_splits_at_the_line_end_alone_and_names_the_true_line(tmp_path, load):
    texts = ["Name\u2028two\u2029rivers.", "Name\u0085a lake."]
    lines = [json.dumps({"instruction": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), "utf-8")
    assert load(tmp_path / "a.jsonl") == texts
    (tmp_path / "a.jsonl").write_text("\n\n".join([*lines, '{"text": 1}']), "utf-8")
    with pytest.raises(InputError, match="line 5"):
        load(tmp_path / "a.jsonl")


def test_a_pool_s_instruction_stands_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "Why?"}\n\n{"instruction": "Why?"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: line 3 repeats an instruction: remove the copy"):
        _load_pool_instructions(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "nested too deep"),
        ("9" * 400, "a whole number beyond 64 bits, of 400 digits"),
        ("9" * 5000, "a whole number beyond 64 bits, of 5000 digits"),
        ('{"a": "half \\ud800"}', "half a character, a lone surrogate"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice; keep one"),
    ],
)
def test_json_that_cannot_be_used_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, unique=True)
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}, "a pair of surrogates is a character"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "nested too deep"),
        ("a: &a\n  b: *a", "a value within itself"),
        ("a: &a [x,x]\n" + "".join(f"b{k}: &b{k} [{','.join(['*' + ('a' if k == 0 else f'b{k - 1}')] * 9)}]\n" for k in range(9)),
         "more than 100,000 values with its aliases written out"),
        ("2024-01-01: 1", "key '2024-01-01' is no text"), ("yes: 1", "key 'yes' is no text"), ("a: 1\na: 2", "key 'a' is given twice"),
        ("a: " + "9" * 5000, "digits"), ("a: 2024-99-99", "month"), ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: \0", "special characters are not allowed"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_used_is_a_value_error_of_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert parse_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}")["d"] == {"b": 1, "e": 2}, "aliases are fine"


@pytest.mark.parametrize("read", [load_json, load_yaml, read_parquet, lambda path: list(read_lines(path))])
def test_a_pipe_or_device_is_refused_before_it_is_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "a pipe or a device"),
        (Path("/dev/zero"), "a pipe"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(InputError, match=f"{path} cannot be read.*{what}"):
            read(path)


def test_a_line_shows_what_cannot_be_printed_and_has_an_end():
    shown = show_line("a\nb\x1b[31m\u202e\ud800 " + "x" * 5000 + " y" * 5000)
    assert shown.isprintable() and len(shown) < 1000 and shown.startswith("a\\nb\\x1b[31m\\u202e\\ud800 xxx")


def _make_slowly(place):
    with (place.parents[1] / "makers").open("a") as stream:
        stream.write("x")
    time.sleep(0.5)
    (place / "items").write_bytes(b"what was written" * 99)


def _make_in(folder):
    made = make_cached(folder, _make_slowly)
    assert (made / "items").read_bytes() == b"what was written" * 99


def test_two_experiments_on_one_empty_cache_make_a_folder_once(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_make_in, args=(tmp_path / "items",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and (tmp_path / "makers").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".items.lock", "items", "makers"]


@pytest.mark.parametrize("harm", ["cut", "flipped", "removed", "digests cut", "digests of nothing"])
def test_a_damaged_folder_of_the_cache_is_made_again(tmp_path, harm, capsys):
    folder = make_cached(tmp_path / "items", _make_slowly)
    content = bytearray((folder / "items").read_bytes())
    if harm == "removed":
        (folder / "items").unlink()
    elif harm.startswith("digests"):
        (folder / "digests.json").write_text('{"items": "0' if harm == "digests cut" else "{}")
    else:
        content[17] ^= 4
        (folder / "items").write_bytes(content if harm == "flipped" else content[:50])
    assert not is_whole(folder)
    _make_in(folder)
    assert "is not as it was written: made again" in capsys.readouterr().err
    _make_in(folder)
    assert (tmp_path / "makers").read_text() == "xx", "and is used from then on"
