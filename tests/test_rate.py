"""The RLAIF judge's ratings are kept as they come, and a judge behind a server is read."""

import pytest

from karma.errors import KarmaError
from karma.files.reading import compute_digest
from karma.models import judge
from karma.models.judge import annotate
from karma.pool import rate
from karma.pool.annotations import load_annotations
from karma.pool.rate import annotate_by_asking, read_rating
from karma.study.sections import ModelSpec
from tests.chat_server import TINY
from tests.conftest import change_base, list_kept


def make_id(*parts):
    return compute_digest(["id", *parts]) * 2


COMPUTE = change_base("compute", device="cpu", dtype="float32")
ROWS = [{"row_id": make_id(k), "response_id": make_id(k, m), "model": f"m{m}", "instruction": f"Say {k}.",
         "response": "word " * (1 + (k * m) % 5) + f"from {m}"} for k in range(6) for m in (1, 2)]  # fmt: skip


def connect(server):
    return {"far": ModelSpec(api={"base_url": server.base_url, "model": "tiny", "key_env": "TEST_KEY"}).model_dump()}


def test_ratings_are_kept_as_they_come(tmp_path, monkeypatch):
    """Killed in the third of three groups: the two before are kept, and only the third is rated by the next run."""
    monkeypatch.setattr(judge, "GROUP", 2)
    whole, cost = annotate(ROWS, TINY, "tiny", COMPUTE, 4)
    rated, compute = [], judge.compute_choice_logits

    def killed(model, asked, *others):
        rated.append(len(asked))
        if len(rated) == 3:
            raise KeyboardInterrupt
        return compute(model, asked, *others)

    monkeypatch.setattr(judge, "compute_choice_logits", killed)
    with pytest.raises(KeyboardInterrupt):
        annotate(ROWS, TINY, "tiny", COMPUTE, 4, tmp_path)
    assert [key.partition("-")[0] for key in list_kept(tmp_path)] == ["ratings"] * 2
    resumed, own = annotate(ROWS, TINY, "tiny", COMPUTE, 4, tmp_path)
    assert rated == [2, 2, 2, 2], "the last group alone was rated again"
    assert resumed["score"].to_pylist() == pytest.approx(whole["score"].to_pylist(), abs=1e-6)
    assert {**own, "seconds": 0} == {**cost, "seconds": 0} and own["seconds"] > 0
    monkeypatch.setattr(judge, "load_model", lambda *args: pytest.fail("the model was loaded for nothing"))
    annotate(ROWS, TINY, "tiny", COMPUTE, 4, tmp_path)


def test_another_judge_or_response_is_rated_anew(tmp_path):
    annotate(ROWS, TINY, "tiny", COMPUTE, 4, tmp_path)
    others = {"tiny": {**TINY["tiny"], "seed": 2}}
    found, _ = annotate(ROWS, others, "tiny", COMPUTE, 4, tmp_path)
    assert found["score"].to_pylist() == annotate(ROWS, others, "tiny", COMPUTE, 4)[0]["score"].to_pylist()
    changed = [{**row, "response": "other"} for row in ROWS]
    found, _ = annotate(changed, TINY, "tiny", COMPUTE, 4, tmp_path)
    assert found["score"].to_pylist() == annotate(changed, TINY, "tiny", COMPUTE, 4)[0]["score"].to_pylist()


def test_a_server_s_digit_is_read_and_the_rest_is_left_out(server, tmp_path, monkeypatch):
    def answer(self, body):  # as many points as words; nothing to say of a single one
        n_words = body["messages"][0]["content"].count("word ")
        self.server.asked.append(body)
        reply = f"Rating: {n_words}/5" if n_words > 1 else "It is fine."
        return {"choices": [{"message": {"content": reply}}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

    monkeypatch.setattr("tests.chat_server.Handler.answer", answer)
    table, cost = annotate_by_asking(ROWS, connect(server), "far", COMPUTE, 3, tmp_path)
    expected = {row["response_id"]: row["response"].count("word ") for row in ROWS}
    found = dict(zip(table["response_id"].to_pylist(), table["score"].to_pylist(), strict=True))
    assert found == {name: n for name, n in expected.items() if n > 1}
    assert cost["unread"] == sum(n == 1 for n in expected.values()) > 0
    assert (cost["calls"], cost["prompt_tokens"], cost["new_tokens"]) == (12, 7 * 12, 3 * 12)
    assert len(load_annotations(table)) == len(found)


def test_a_server_that_fails_half_way_is_asked_only_the_rest(server, tmp_path, monkeypatch):
    monkeypatch.setattr(rate, "read_rating", lambda reply: 3.0)  # the tiny model writes no digits
    models, first = connect(server), ROWS[:4]
    annotate_by_asking(first, models, "far", COMPUTE, 2, tmp_path)
    server.troubles = [503] * 7
    with pytest.raises(KarmaError, match="HTTP 503"):
        annotate_by_asking(ROWS, models, "far", COMPUTE, 1, tmp_path)
    n_before = len(server.asked)
    _, cost = annotate_by_asking(ROWS, models, "far", COMPUTE, 2, tmp_path)
    assert len(server.asked) - n_before == len(ROWS) - len(first)
    assert cost["calls"] == len(ROWS)


def test_a_judge_that_rates_nothing_is_an_error(server, tmp_path, monkeypatch):
    monkeypatch.setattr(rate, "read_rating", lambda reply: None)
    with pytest.raises(KarmaError, match="none of its 12 replies holds a rating"):
        annotate_by_asking(ROWS, connect(server), "far", COMPUTE, 4, tmp_path)


@pytest.mark.parametrize(("reply", "rating"), [
    ("4", 4), ("Rating: 3/5", 3), ("**5**", 5), ("I would say 2.", 2), ("<think>1 or 5?</think>4", 4), ("4 out of 5", 4),
    ("10", None), ("4.5", None), ("0", None), ("six", None), ("", None),
])  # fmt: skip
def test_ratings_are_read_as_a_person_would(reply, rating):
    assert read_rating(reply) == rating
