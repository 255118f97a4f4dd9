"""Log-probabilities of pairs from one row, by hand and against the plain way; and the cache that a kill cannot spoil."""

import json
import math
import signal
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from karma.errors import InputError
from karma.models.chat import TokenizedResponse
from karma.models.load import load_model, load_tokenizer
from karma.models.logprobs import (
    SharedRow,
    build_options_row,
    build_row_batch,
    can_share_prompts,
    compute_logps,
    compute_option_logps,
    compute_pair_logps,
    compute_row_logps,
    compute_side_logps,
    compute_token_logps,
    plan_batches,
    tokenize_pair,
)
from karma.potential import logps as margins
from karma.potential.logps import GROUP_PAIRS, measure_logps, plan_groups
from karma.potential.margins import compute_implicit_margin
from karma.study.sections import ModelSpec
from tests.conftest import CALL_LIMIT, change_base, list_kept, start_child, wait_until

MODELS = {
    "tiny": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=1).model_dump(),
    "other": ModelSpec(random={"hidden_size": 32, "layers": 2, "heads": 2}, seed=2).model_dump(),
}
COMPUTE = change_base("compute", device="cpu", dtype="float32")


def turn(role, text):
    return [{"role": role, "content": text}]


def make_pairs(n):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    rows = [{"row_id": f"{i:032x}", "prompt": turn("user", f"Count to {i}. " * (1 + i % 4)),
             "chosen": turn("assistant", " ".join(words[: 1 + i % 10])),
             "rejected": turn("assistant", "no " * (1 + i * 7 % 11))} for i in range(n)]  # fmt: skip
    return pa.Table.from_pylist(rows)


def texts(pairs):
    return [pairs[c].to_pylist() for c in ("prompt", "chosen", "rejected")]


@pytest.fixture(scope="module")
def tiny():
    return load_model(MODELS, "tiny"), load_tokenizer(MODELS, "tiny")


def test_the_mask_by_eye():
    """Prompt 7 8, chosen 1 2, rejected 3: rejected sees the prompt and itself, at the position after the prompt."""
    row = SharedRow((TokenizedResponse([7, 8, 1, 2], 2), TokenizedResponse([7, 8, 3], 2)), 2)
    ids, positions, mask = build_row_batch([row], pad=0)
    assert ids.tolist() == [[7, 8, 1, 2, 3]] and positions.tolist() == [[0, 1, 2, 3, 2]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_the_mask_of_three_options_by_eye():
    """Context 7 8, options 1 2, 1 and 1 3 4: the 1 that all begin with is shared; each option sees it and itself."""
    row = build_options_row([7, 8], [[1, 2], [1], [1, 3, 4]])
    ids, positions, mask = build_row_batch([row, SharedRow(row.sides[:1], 4)], pad=0)
    assert ids.tolist() == [[7, 8, 1, 2, 3, 4], [7, 8, 1, 2, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 2, 3, 0, 0]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]


class Bigram(torch.nn.Module):
    """A policy with known log-probabilities: the next token's probabilities depend on the last token only."""

    device = torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="sdpa", get_text_config=SimpleNamespace)

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.tensor(table).log())
        self.base_model = lambda input_ids, position_ids, **_: SimpleNamespace(last_hidden_state=self.table(input_ids))

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return torch.nn.Identity()


def test_a_toy_policy_by_hand():
    """After token 0 comes 1 with probability 1/2 and 2 with 1/4; after 1 comes 2 with 1/8."""
    policy = Bigram([[0.25, 0.5, 0.25], [0.75, 0.125, 0.125], [0.5, 0.25, 0.25]])
    row = SharedRow((TokenizedResponse([0, 1, 2], 1), TokenizedResponse([0, 2], 1)), 1)
    assert can_share_prompts(policy)
    logps = compute_row_logps(policy, [row], pad=0, batch_tokens=8).numpy()
    assert logps[0] == pytest.approx([math.log(1 / 2) + math.log(1 / 8), math.log(1 / 4)], rel=1e-6)
    options = build_options_row([0], [[1, 2], [2], [1, 0]])
    (compared,) = compute_option_logps(policy, [options], pad=0, batch_tokens=8)
    expected = [(1 / 2 * 1 / 8, False), (1 / 4, False), (1 / 2 * 3 / 4, True)]  # the likeliest after 0 is 1, then 0
    assert compared == [(pytest.approx(math.log(p), rel=1e-6), likeliest) for p, likeliest in expected]
    margin = compute_implicit_margin(logps, [[2, 1]])
    assert margin[0] == pytest.approx(abs(0.5 * math.log(1 / 16) - math.log(1 / 4)), abs=1e-6)  # both are -2 ln 2: 0


@pytest.mark.parametrize("max_length", [128, 24, 12])
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_one_row_gives_what_two_rows_give(tiny, batch_tokens, max_length):
    model, tokenizer = tiny
    prompts, chosen, rejected = texts(make_pairs(9))
    plain, lengths = compute_logps(model, tokenizer, prompts * 2, chosen + rejected, max_length=max_length)
    logps, tokens = compute_pair_logps(model, tokenizer, prompts, chosen, rejected, max_length=max_length,
                                       batch_tokens=batch_tokens)  # fmt: skip
    assert torch.equal(tokens, lengths.reshape(2, -1).T)
    assert torch.allclose(logps, plain.reshape(2, -1).T, atol=1e-4)


def test_a_prompt_that_merges_with_its_response_is_not_shared_to_the_end(tiny):
    """Where the two rows differ before the response begins, only what is equal is shared."""
    model, _ = tiny
    pair = SharedRow((TokenizedResponse([5, 6, 7, 20, 21], 3), TokenizedResponse([5, 6, 9, 30], 3)), 2)
    alone = [compute_side_logps(model, [SharedRow((side,), 0)], 0, 64)[0][0] for side in pair.sides]
    assert torch.allclose(compute_side_logps(model, [pair], 0, 64)[0], torch.stack(alone), atol=1e-4)


def test_a_model_that_sees_more_than_its_mask_takes_the_plain_way(tiny):
    model, tokenizer = tiny
    prompts, chosen, rejected = texts(make_pairs(3))
    logps, _ = compute_pair_logps(model, tokenizer, prompts, chosen, rejected, max_length=64)
    model.config.sliding_window = 4
    try:
        assert not can_share_prompts(model)
        plain, _ = compute_pair_logps(model, tokenizer, prompts, chosen, rejected, max_length=64)
    finally:
        model.config.sliding_window = None
    assert torch.allclose(logps, plain, atol=1e-4)


def test_a_scaled_head_scales():
    """Logits that a model divides (Granite) or caps (Gemma) are what its log-probabilities come from."""
    config = GraniteConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                           intermediate_size=32, vocab_size=600, logits_scaling=4.0)  # fmt: skip
    torch.manual_seed(0)
    model = GraniteForCausalLM(config).eval()
    row = SharedRow((TokenizedResponse([5, 6, 7, 20, 21], 3), TokenizedResponse([5, 6, 7, 30], 3)), 3)
    (found,) = compute_side_logps(model, [row], 0, 64)
    with torch.no_grad():
        expected = [torch.log_softmax(model(torch.tensor([side.ids])).logits[0, 2:-1], -1)
                    .gather(1, torch.tensor(side.ids[3:])[:, None]).sum() for side in row.sides]  # fmt: skip
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_gradients_flow(tiny):
    model, tokenizer = tiny
    row = tokenize_pair(tokenizer, turn("user", "Hi"), turn("assistant", "yes"), turn("assistant", "no"), 64)
    with torch.enable_grad():
        chosen, rejected = compute_token_logps([row], model, tokenizer.pad_token_id)
        (chosen.sum() - rejected.sum()).backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    model.zero_grad()


def test_batches_hold_every_row_once_and_keep_the_budget():
    widths = [5, 1, 9, 3, 3, 30, 2]
    batches = plan_batches(widths, 12)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or max(widths[i] for i in b) * len(b) <= 12 for b in batches)


def test_measured_once_whatever_the_order(tmp_path, monkeypatch):
    pairs = make_pairs(40)
    first = measure_logps(pairs, MODELS, "tiny", COMPUTE, 128, 256, tmp_path)
    assert (first.n_asked, first.n_kept, first.n_truncated) == (40, 0, 0) and (first.logps < 0).all()
    monkeypatch.setattr("karma.potential.logps.load_model", lambda *a: pytest.fail("a model was loaded"))
    order = np.random.default_rng(0).permutation(40)
    again = measure_logps(pairs.take(order), MODELS, "tiny", COMPUTE, 128, 256, tmp_path)
    assert (again.n_asked, again.n_kept) == (0, 40)
    assert np.array_equal(again.logps, first.logps[order]) and np.array_equal(again.lengths, first.lengths[order])
    monkeypatch.undo()
    other = measure_logps(pairs, MODELS, "other", COMPUTE, 128, 256, tmp_path)
    assert other.n_asked == 40 and not np.allclose(other.logps, first.logps)


def test_a_prompt_that_fills_the_row_leaves_no_margin():
    measured = measure_logps(make_pairs(3), MODELS, "tiny", COMPUTE, 3, 256)
    assert measured.lengths.tolist() == [[0, 0]] * 3 and measured.n_truncated == 3
    assert np.isnan(compute_implicit_margin(measured.logps, measured.lengths)).all()


@pytest.mark.parametrize(("max_length", "tokens", "message"), [(0, 9, "max_length is 0"), (9, 0, "batch_tokens is 0")])
def test_impossible_sizes_are_refused(max_length, tokens, message):
    with pytest.raises(InputError, match=message):
        measure_logps(make_pairs(1), MODELS, "tiny", COMPUTE, max_length, tokens)


def measure_and_hang(folder):
    """Measure eighty pairs, and hang once two of the five groups are there."""
    real = margins.compute_row_logps

    def stuck(*args):
        if len(list_kept(folder)) >= 2:
            time.sleep(CALL_LIMIT)
        return real(*args)

    margins.compute_row_logps = stuck
    measure_logps(make_pairs(80), MODELS, "tiny", COMPUTE, 128, 256, folder)


def test_a_killed_run_loses_one_group_and_ends_in_the_same_bytes(tmp_path):
    whole = measure_logps(make_pairs(80), MODELS, "tiny", COMPUTE, 128, 256, tmp_path / "whole")
    killed = tmp_path / "killed"
    with start_child(measure_and_hang, killed) as child:
        wait_until(lambda: len(list_kept(killed)) >= 2 or not child.is_alive())
    assert child.exitcode == -signal.SIGKILL, "it ended by itself"
    n_kept = len(list_kept(killed))
    assert 2 <= n_kept < 5, "it was to be killed in the middle"
    resumed = measure_logps(make_pairs(80), MODELS, "tiny", COMPUTE, 128, 256, killed)
    assert resumed.n_kept == n_kept * GROUP_PAIRS and resumed.n_asked == 80 - resumed.n_kept
    assert np.array_equal(resumed.logps, whole.logps)
    assert list_kept(killed) == list_kept(tmp_path / "whole") and len(list_kept(killed)) == 5
    names = [[p.name for p in folder.glob("*/*/[!.]*")] for folder in (tmp_path / "whole", killed)]
    assert names[0] == names[1] and len(names[0]) == 1, "one shard, named by its content"


def test_shards_do_not_depend_on_the_order(tiny):
    rows = [tokenize_pair(tiny[1], *row, 128) for row in zip(*texts(make_pairs(40)), strict=True)]
    keys = [key for _, key in plan_groups(rows)]
    assert keys == [key for _, key in plan_groups(rows[::-1])] and len(set(keys)) == 3


@pytest.mark.real_model
def test_real_pairs_give_the_plain_log_probabilities(real_data):
    """Three short real pairs with the packaged model, in float32, within 1e-3 nats a token of a row each."""
    models = {"smollm2-135m": ModelSpec(packaged="smollm2-135m").model_dump()}
    rows = [json.loads(line) for line in (real_data / "ultrafeedback_binarized_300.jsonl").read_text().splitlines()]
    rows = sorted(rows, key=lambda r: len(r["prompt"] + r["chosen"] + r["rejected"]))[20:23]
    model, tokenizer = load_model(models, "smollm2-135m"), load_tokenizer(models, "smollm2-135m")
    sides = [[turn(role, r[name]) for r in rows] for name, role in
             (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))]  # fmt: skip
    logps, lengths = compute_pair_logps(model, tokenizer, *sides, max_length=512)
    plain, _ = compute_logps(model, tokenizer, sides[0] * 2, sides[1] + sides[2], max_length=512)
    assert ((logps - plain.reshape(2, -1).T).abs() / lengths).max() < 1e-3
