"""Settings: merged, traced to their file, and refused in one line that names key, value and remedy."""

import os
import subprocess
import sys

import pytest

from karma.errors import InputError
from karma.files.places import find_project_root
from karma.study.experiment import load_base, load_experiment
from karma.study.stages import list_jobs

ROOT = find_project_root()


@pytest.fixture
def experiment(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_experiment(path)

    return write


def test_experiment_file_overrides_base_and_each_value_names_its_file(experiment):
    study = experiment(
        "name: mine\nkinship: {tau: 0.2}\nmodels: {a: {hub: org/a}}\npolicies: [a]\nscores: {table: paper}\n"
    )
    assert study.settings.kinship.tau == 0.2
    assert study.settings.kinship.cut == load_base().kinship.cut
    shown = study.show(("kinship",))["set by"]
    assert shown["kinship.tau"] == "mine.yaml" and shown["kinship.cut"] == "base.yaml"


@pytest.mark.parametrize(
    "name", ["demo", "smoke", "paper", "potential", "self_play", "families", "evidence", "labels", "values"]
)
def test_shipped_experiments_load(name):
    assert load_experiment(name).settings.name == name


def test_an_experiment_builds_on_another(experiment):
    study = experiment("extends: demo\nname: mine\nseeds: [0, 1]\npool: {n_prompts: 7}\ntrained_on: {sft: [k_sim]}\n")
    demo = load_experiment("demo").settings
    assert study.settings.pool.model_copy(update={"n_prompts": demo.pool.n_prompts}) == demo.pool
    assert study.settings.seeds == [0, 1] and study.settings.training == demo.training
    assert study.settings.trained_on == {"sft": ["k_sim"], "dpo": demo.trained_on["dpo"]}
    shown = study.show(("pool", "seeds", "kinship.cut"))["set by"]
    found = [shown[key] for key in ("pool.n_prompts", "pool.max_new_tokens", "seeds", "kinship.cut")]
    assert found == ["mine.yaml", "demo.yaml", "mine.yaml", "base.yaml"]
    assert study.outputs.name == "mine", "a child without a name of its own would write over its father"


@pytest.mark.parametrize(("text", "message"), [
    ("extends: [demo]", "mine.yaml: extends is ['demo']: name one experiment, e.g. `extends: demo`"),
    ("extends: dmeo", "experiment 'dmeo' not found; there are"),
    ("extends: mid.yaml\nname: demo", "mine.yaml extends demo.yaml and has its name, 'demo': give it a name of its own"),
    ("extends: demo\nseeds: [0]", "mine.yaml extends demo.yaml and has its name, 'demo': give it a name of its own"),
])  # fmt: skip
def test_what_an_experiment_cannot_build_on(experiment, tmp_path, text, message):
    (tmp_path / "mid.yaml").write_text("extends: demo\nname: mid\n")
    with pytest.raises(InputError) as caught:
        experiment(text)
    assert message in str(caught.value)


def test_an_experiment_builds_on_a_file_beside_it_and_clears_a_map(experiment, tmp_path):
    (tmp_path / "mid.yaml").write_text("extends: demo\nname: mid\nseeds: [5]\n")
    study = experiment("extends: mid.yaml\nname: mine\nmethods: [dpo]\ntrained_on: {}\n")
    assert study.settings.seeds == [5] and study.settings.trained_on == {}


def test_experiments_that_extend_each_other_are_refused(tmp_path):
    for one, other in ("ab", "ba"):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {tmp_path / other}.yaml\nname: {one}\n")
    with pytest.raises(
        InputError, match=r"a\.yaml extends b\.yaml extends a\.yaml: a circle; let one of them stand alone"
    ):
        load_experiment(tmp_path / "a.yaml")


def test_evidence_is_the_demo_with_nothing_left_out():
    demo, evidence = load_experiment("demo").settings, load_experiment("evidence").settings
    assert evidence.models == demo.models and evidence.pool == demo.pool and evidence.strategies == demo.strategies
    assert all(evidence.list_trained(method) == evidence.strategies for method in ("sft", "dpo"))
    assert len(evidence.seeds) == 3 and evidence.benchmarks.held_out_pairs and evidence.potential.on_benchmarks


def test_labels_trains_six_data_sets_alike_by_three_seeds():
    demo, labels = load_experiment("demo").settings, load_experiment("labels").settings
    assert labels.models == demo.models and labels.pool == demo.pool and labels.scores == demo.scores
    runs = [job.params for job in list_jobs(load_experiment("labels")) if job.stage.name == "04_alignment_training"]
    sets = {(p["strategy"], p["method"]) for p in runs}
    assert sets == {*((name, "dpo") for name in labels.strategies), ("k_sim", "cdpo")} and len(runs) == 18
    assert labels.pairs.equal_numbers == labels.strategies and labels.list_trained("cdpo") == ["k_sim"]


def test_a_method_s_strategies_are_taken_back_by_null(experiment):
    study = experiment("extends: demo\nname: mine\nmethods: [dpo]\ntrained_on: {sft: null, dpo: null}\n")
    assert study.settings.list_trained("dpo") == study.settings.strategies
    with pytest.raises(InputError, match="trained_on: 'sft' is not among the methods of this experiment"):
        experiment("extends: demo\nname: mine\nmethods: [dpo]\n")


def test_the_paper_is_32_runs_with_appendix_a():
    s = load_experiment("paper").settings
    assert len(s.policies) * len(s.strategies) * len(s.methods) * len(s.seeds) == 32
    t = s.training
    assert (t.learning_rate, t.warmup_steps, t.epochs) == (5e-5, 500, 1)
    assert t.per_device_batch_size * t.gradient_accumulation * t.devices == 96


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: x", "unknown setting 'nmae'; did you mean 'name'?"),
        ("kinship: {taw: 1}", "unknown setting 'kinship.taw'; did you mean 'tau'?"),
        ("models: {a: {hubb: x}}", "unknown setting 'models.a.hubb'; did you mean 'hub'?"),
        ("models: {a: {hub: x, path: y}}", "exactly one of hub, path"),
        ("models: {a: {hub: x, noise: 0.1}}", "belong to `perturbed"),
        ("models: {a/b: {hub: x}}", "names become folders"),
        ("training: {learning_rate: 5e-7}", "write 5.0e-7 with a point"),
        ("training: {epochs: 0}", "greater than 0"),
        (
            "benchmarks: {limits: {arc: 60}}",
            "benchmarks.limits is {'arc': 60}: 'arc' is no benchmark here: choose from ifeval",
        ),
        ("benchmarks: {limits: {arc_easy: 0}}", "benchmarks.limits.arc_easy is 0: Input should be greater than"),
        ("pairs: {held_out: 1}", "pairs.held_out is 1: Input should be less than 1"),
        ("potential: {metrics: [map]}", "potential.metrics.0 is 'map'"),
        ("potential: {ratios: [0.0]}", "potential.ratios.0 is 0.0: Input should be greater than 0"),
        ("potential: {weight: -1.0}", "potential.weight is -1.0"),
        ("potential: {on_benchmarks: true}", "name what is selected by in potential.metrics"),
        (
            "strategies: [k_sim]\npotential: {strategies: [rlaif]}",
            "'rlaif' is not among the strategies of this experiment",
        ),
        (
            "strategies: [k_sim]\nannotation: {source: judge, judge: a}\nmodels: {a: {hub: x}}\n"
            "potential: {metrics: [m_ap], explicit: annotation}",
            "annotations are made only where rlaif is a strategy",
        ),
        ("trained_on: {simpo: [rlaif]}", "trained_on: 'simpo' is not among the methods of this experiment"),
        ("trained_on: {dpo: [random]}", "trained_on.dpo: 'random' is not among the strategies of this experiment"),
        ("trained_on: {dpx: [rlaif]}", "trained_on.dpx"),
        (
            "models: {tiny-b: {hub: ../x}}",
            "mine.yaml: models.tiny-b.hub is '../x': no name on the Hub: expected OWNER/NAME",
        ),
        ("models: {a: {hub: a--b/c}}", "models.a.hub is 'a--b/c': no name on the Hub"),
        ("models: {a: {hub: a/b, revision: a b}}", "models.a.revision is 'a b': expected a commit, a branch or a tag"),
        ("pool: {revision: ../main}", "pool.revision is '../main': expected a commit, a branch or a tag"),
        ("strategies: [k_sim]\npairs: {match_rows: [rlaif]}", "pairs.match_rows: 'rlaif' is not among the strategies"),
        (
            "strategies: [k_sim]\npairs: {equal_numbers: [rlaif]}",
            "pairs.equal_numbers: 'rlaif' is not among the strategies",
        ),
        (
            "self_play: {rounds: 1, scorer: judge}",
            "mine.yaml: self_play.scorer_model: name a model for judge and reward_model, and none for instructions",
        ),
        ("labels: {audit: true, judgments: x}", "mine.yaml: labels.judgments and labels.scores: name both, or neither"),
        ("models: {a: {hub: x, path: y}}", "mine.yaml: models.a: give exactly one of hub, path"),
        (
            "models: {a: {random: {hidden_size: 16, layers: 1, heads: 3}}}",
            "mine.yaml: models.a.random: hidden_size 16 is no multiple of 2 x 3 heads",
        ),
        ("seeds: [0, 0]", "0 is listed twice"),
        ("strategies: [k_sin]", "strategies.0 is 'k_sin'"),
        ("policies: [ghost]", "'ghost' is not a model of this experiment"),
        ("scores: {table: measured}", "at least two origin models"),
        ("kinship: {tau: 0.1}\nkinship: {tau: 0.2}", "key 'kinship' is given twice"),
        ("- a list", "must be a map of settings"),
        ("a: [", "not valid YAML"),
        ("compute: {threads: true}", "compute.threads is True"),
    ],
)
def test_bad_settings_are_one_clear_line(experiment, text, message):
    with pytest.raises(InputError) as error:
        experiment(text)
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_stage_sees_only_the_settings_it_declares():
    view = load_experiment("demo").select(("kinship.tau",), "03_binarization")
    assert view.kinship.tau == 0.1
    with pytest.raises(AttributeError, match=r"does not declare 'kinship\.cut'"):
        _ = view.kinship.cut


def test_yaml_is_data_only(experiment):
    with pytest.raises(InputError, match="not valid YAML"):
        experiment("name: !!python/object/apply:os.system ['true']")


def test_a_broken_base_file_is_one_line_and_leaves_the_help_alone(tmp_path):
    """Defaults were read when the command line was imported, outside of its error handling."""
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params" / "base.yaml").write_text("tau: [")
    environment = {**os.environ, "KARMA_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def call(*args):
        command = [sys.executable, "-m", "karma.cli", *args]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    shown = call("--help")
    assert shown.returncode == 0 and "binarize" in shown.stdout and not shown.stderr
    refused = call("binarize", "--help")
    assert refused.returncode == 2 and refused.stderr.startswith("karma: base.yaml is not valid YAML")
    assert len(refused.stderr.splitlines()) == 1


def test_backend_and_protocol_are_settings(experiment):
    """vLLM and the ranking of options could not be reached from a study."""
    base = load_experiment("smoke").settings
    assert base.compute.backend == "transformers" and base.benchmarks.protocol == "answer"
    text = (
        "models: {m: {hub: a/b}}\npolicies: [m]\norigin_models: [m]\ncompute: {backend: vllm}\nscores: {table: paper}"
    )
    settings = experiment("name: mine\n" + text + "\nbenchmarks: {protocol: logprob}").settings
    assert settings.compute.backend == "vllm" and settings.benchmarks.protocol == "logprob"
    with pytest.raises(InputError, match=r"training\.merge_adapter"):
        lora = "\ntraining: {lora: {rank: 1, alpha: 1, dropout: 0.0, last_layers: 1}}"
        experiment("name: mine\n" + text + lora)
    with pytest.raises(InputError, match="vllm cannot load 'm', which is made in memory"):
        shape = "{random: {hidden_size: 32, layers: 2, heads: 2}}"
        experiment("name: mine\n" + text.replace("{hub: a/b}", shape))
