"""vLLM itself, in an environment of its own (`make vllm`): prompts equal to transformers', answers nearly all equal."""

import json
import subprocess
import sys

import pytest

from karma.evaluation.packaged import prepare_items
from karma.evaluation.runner import evaluate
from karma.files.places import find_project_root
from karma.models.ask import CachedModel, ask, sample_responses
from karma.models.made import prepare_packaged
from karma.models.worker import PYTHON, find_python
from karma.study.sections import ModelSpec
from tests.conftest import change_base

pytestmark = pytest.mark.heavy  # minutes of a real model
MODEL = {"smollm2": ModelSpec(packaged="smollm2-135m").model_dump()}
ENOUGH = 0.95  # of the answers: greedy ones part where two tokens are equal but for float32's rounding
TOKENISE = """
import json, sys, types
from lm_eval.models.vllm_causallms import VLLM, get_tokenizer
tokenizer = get_tokenizer(sys.argv[1])
model = types.SimpleNamespace(tokenizer=tokenizer, prefix_token_id=tokenizer.bos_token_id, add_bos_token=None)
print(json.dumps(VLLM.tok_encode(model, json.load(sys.stdin))))
"""


@pytest.fixture(scope="module")
def python():
    """The interpreter beside vLLM, which is told to take a GiB for its cache, not the machine."""
    found = find_python() or sys.executable
    code = "import importlib.util as u; print(*[n for n in ('vllm', 'lm_eval') if not u.find_spec(n)])"
    missing = subprocess.run([found, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if missing:
        pytest.skip(
            f"{' and '.join(missing)} missing under {found}: run `make vllm`, or name another python in {PYTHON}"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield found


def open_model(backend):
    return CachedModel(MODEL, "smollm2", change_base("compute", device="cpu", dtype="float32", backend=backend), 64)


@pytest.fixture(scope="module")
def there(python):
    return open_model("vllm")


@pytest.fixture(scope="module")
def here():
    return open_model("transformers")


def record_prompts(model, patch):
    prompts, generate = [], model.backend.generate
    patch.setattr(model.backend, "generate", lambda texts, *how: prompts.extend(texts) or generate(texts, *how))
    return prompts


def test_the_demos_items(here, there, python, monkeypatch):
    settings = change_base("benchmarks", folder=str(prepare_items()), limits={"arc_easy": 60, "ifeval": 20},
                           choice_tokens=12, descriptive_tokens=12)  # fmt: skip
    asked, found = {}, {}
    for name, model in {"here": here, "there": there}.items():
        asked[name] = record_prompts(model, monkeypatch)
        _, answers = evaluate(model, ["arc_easy", "ifeval"], settings, find_project_root())
        found[name] = answers.to_pandas()["answer"].tolist()
    assert len(asked["here"]) == 80 and asked["there"] == asked["here"]
    called = [python, "-P", "-c", TOKENISE, str(prepare_packaged("smollm2-135m"))]
    read = subprocess.run(called, input=json.dumps(asked["there"]), capture_output=True, text=True, check=True).stdout
    assert json.loads(read.splitlines()[-1]) == [here.backend.inner.tok_encode(prompt) for prompt in asked["here"]]
    equal = [one == other for one, other in zip(found["here"], found["there"], strict=True)]
    print(
        f"equal answers of vLLM and transformers in float32: {sum(equal)} of {len(equal)} ({sum(equal) / len(equal):.3f})"
    )
    assert sum(equal) >= ENOUGH * len(equal)


def test_options_are_compared_alike(here, there):
    settings = change_base("benchmarks", folder=str(prepare_items()), limits={"arc_easy": 8})
    both = [evaluate(model, ["arc_easy"], settings, find_project_root(), "cloze") for model in (here, there)]
    one, other = [answers.to_pandas() for _, answers in both]
    assert (one["extracted"] == other["extracted"]).mean() >= ENOUGH
    pairs = [("The sky is", " blue"), ("The sky is", " a kind of cheese"), ("2 + 2 =", " 4")]
    near, far = (model.backend.compare(pairs).answers for model in (here, there))
    assert [greedy for _, greedy in far] == [greedy for _, greedy in near]
    assert [logp for logp, _ in far] == pytest.approx([logp for logp, _ in near], abs=1e-3)


def test_a_draw_is_the_same_on_every_run(there):
    settings = change_base("pool", max_new_tokens=12, temperature=1.0)
    first, again, other = (sample_responses(there, ["Name a fruit.", "Name a city."], settings, s) for s in (1, 1, 2))
    assert first == again != other


def test_a_killed_engine_is_started_once_more(here, there, capfd):
    """What is asked next, and was never answered, is answered by a second engine as transformers does."""
    there.inner._process.kill()
    assert ask(there, "Name a colour.", 12) == ask(here, "Name a colour.", 12)
    assert "out of memory or killed; started once more" in capfd.readouterr().err


@pytest.mark.gpu
def test_it_answers_on_a_gpu(python):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("a CUDA device is missing")
    compute = change_base("compute", device="cuda", dtype="bfloat16", backend="vllm")
    assert ask(CachedModel(MODEL, "smollm2", compute, 8), "Name a fruit.", 12)
