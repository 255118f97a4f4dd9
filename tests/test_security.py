"""What SECURITY.md promises: no pickle, no shell, no code of others, no secret in what a study writes."""

import ast
import json
import re
import shlex
from pathlib import Path

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from karma.study.experiment import load_experiment
from karma.study.fields import Name
from karma.study.stages import list_jobs
from karma.vocabulary import ARMS, METHODS, METRICS, STRATEGIES
from tests.conftest import ROOT, copy_project, run_karma
from tests.test_escape import find_live, find_live_markdown, hostile_rows, write_scores

CODE = [path for path in sorted((ROOT / "karma").rglob("*.py")) if "__pycache__" not in path.parts]
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
SHELL = set(" \t\r\n\0;|&$`\"'\\<>(){}[]*?!#~^%=,:/@")


def list_calls() -> list[tuple[str, str, ast.Call]]:
    """Return (file, dotted name, call) of every call in the package and in the notebooks."""
    sources = {path.name: path.read_text("utf-8") for path in CODE}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        sources[path.name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return [(name, ast.unparse(node.func), node) for name, source in sources.items()
            for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]  # fmt: skip


CALLS = list_calls()


def find_bad(name: str, call: ast.Call) -> str:
    """Say what is wrong with a call; nothing, mostly."""
    options = {word.arg: ast.unparse(word.value) for word in call.keywords}
    last = name.rpartition(".")[2]
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"):
        return f"{name} is not used here"
    if last in ("load", "loads") and name.split(".")[0] in PICKLES:
        return "a pickle is read"
    if name in ("torch.load", "load") and options.get("weights_only", "False") != "True" and "torch" in name:
        return "torch.load without weights_only"
    if name in ("yaml.load", "yaml.load_all") and "Safe" not in options.get("Loader", "") + SAFE.get(
        options.get("Loader", ""), ""
    ):
        return "YAML that makes objects"
    wrong = {"shell": "True", "allow_pickle": "True", "trust_remote_code": "True", "verify": "False",
             "use_safetensors": "False"}  # fmt: skip
    return next((f"{key}={value}" for key, value in wrong.items() if options.get(key) == value), "")


SAFE = {node.name: ast.unparse(node.bases[0]) for path in CODE for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.bases}  # fmt: skip


def test_no_pickle_no_shell_no_code_of_others():
    assert len(CALLS) > 3000
    assert [(file, ast.unparse(call)[:80], bad) for file, name, call in CALLS if (bad := find_bad(name, call))] == []
    imported = {alias.name.split(".")[0] for path in CODE for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])}  # fmt: skip
    assert not imported & PICKLES and "torch" in imported


@pytest.mark.parametrize("code", [
    "torch.load(path)", "torch.load(path, weights_only=False)", "pickle.load(f)", "eval(text)", "os.system(text)",
    "subprocess.run(text, shell=True)", "np.load(path, allow_pickle=True)", "A.from_pretrained(x, trust_remote_code=True)",
    "yaml.load(text)", "yaml.load(text, Loader=yaml.Loader)", "requests.get(url, verify=False)",
])  # fmt: skip
def test_a_bad_call_would_be_found(code):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call) and find_bad(ast.unparse(call.func), call)


@pytest.mark.parametrize(
    "code", ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "model.eval()", "re.compile(x)"]
)
def test_a_good_call_would_not(code):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call) and not find_bad(ast.unparse(call.func), call)


@given(
    st.text(max_size=12)
    | st.sampled_from(["$(touch x)", "a;b", "a b", "`x`", "a|b", "a\nb", "-x", "..", "../x", "{x}"])
)
def test_a_name_that_may_reach_a_shell_holds_nothing_that_a_shell_reads(text):
    try:
        name = TypeAdapter(Name).validate_python(text)
    except ValidationError:
        assert not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", text)
        return
    assert not set(name) & SHELL and not name.startswith(".") and shlex.split(name) == [name]
    assert name.isprintable() and Path(name).name == name


def test_every_parameter_of_every_job_is_such_a_name():
    adapter = TypeAdapter(Name)
    for word in (*STRATEGIES, *METHODS, *METRICS, *ARMS):
        assert adapter.validate_python(word) == word
    n_values = 0
    for path in sorted((ROOT / "params").glob("*.yaml")):
        if path.stem != "base":
            for job in list_jobs(load_experiment(path)):
                for value in job.params.values():
                    assert adapter.validate_python(value) == value
                    n_values += 1
    assert n_values > 100
    rules = (ROOT / "karma" / "study" / "Snakefile").read_text()
    assert set(re.findall(r'shell: "(.*)"', rules)) == {"{params.command} > {log} 2>&1"}
    assert r"\"$KARMA_EXPERIMENT\"" in rules, "a path is a shell's word only in quotes"


def test_the_workflow_runs_actions_by_commit():
    used = re.findall(r"uses: *(\S+)", (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert flow["permissions"] == {"contents": "read"}


# --- secrets: planted where a user has them, looked for in all that a study writes --------------------------------

CANARY = "canary4f1c9e"
SECRETS = ("OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "MY_PASSWORD", "SLURM_JWT")


def plant(project: Path, home: Path) -> dict[str, str]:
    """Return an environment with secrets, and write key files where programs look for them."""
    for path in (home / ".netrc", home / ".aws" / "credentials", home / ".ssh" / "id_rsa", project / ".env",
                 home / ".config" / "karma" / "key"):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"password = {CANARY}\n")
    urls = {"DATABASE_URL": f"postgres://user:{CANARY}@localhost/db", "HTTP_PROXY": f"http://user:{CANARY}@localhost:9"}
    return {**dict.fromkeys(SECRETS, CANARY), **urls, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}


def find_canary(folder: Path) -> list[str]:
    """Return the files of a folder that hold the canary, in their names, bytes, or columns."""
    found = []
    for path in folder.rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".parquet":
            text += str(pq.read_table(path).to_pydict()).encode()
        if CANARY in str(path) or CANARY.encode() in text:
            found.append(str(path))
    return found


def test_a_canary_would_be_found(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.bin").write_bytes(b"\xff" + CANARY.encode())
    pq.write_table(pa.table({"a": [CANARY] * 100}), tmp_path / "x.parquet", compression="zstd")
    assert len(find_canary(tmp_path)) == 2


def test_a_hostile_study_in_a_hostile_place_leaks_runs_and_shows_nothing(tmp_path, monkeypatch):
    """A sweep to its pairs: names and answers are hostile, the project's path is a shell's trap, secrets lie about."""
    project = copy_project(tmp_path / 'it\'s $(touch harmed) "a" `touch harmed`; touch harmed #')
    for name, value in plant(project, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    rows, names = hostile_rows()
    (project / "pool.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    write_scores(project / "scores.csv", names)
    api = {"base_url": "http://localhost:9/v1", "model": "m", "key_env": "OPENAI_API_KEY"}
    study = {"name": "hostile", "strategies": ["k_sim"], "policies": ["tiny"], "kinship": {"tau": -1.0},
             "models": {"tiny": {"random": {"hidden_size": 8, "layers": 1, "heads": 1}}, "judge": {"api": api}},
             "scores": {"table": "scores.csv"}, "pool": {"source": "pool.jsonl"}}  # fmt: skip
    (project / "params" / "hostile.yaml").write_text(yaml.safe_dump(study))
    done = run_karma(project, "run", "params/hostile.yaml", "--until", "03_binarization")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = project / "outputs" / "hostile"
    assert find_canary(outputs) == [] and CANARY not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("harmed")]
    n_shown = 0
    for path in (outputs / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                html = output.get("data", {}).get("text/html", "")
                assert find_live(html) == [], path.name
                n_shown += "window.harmed" in html
    assert n_shown >= 3, "no notebook showed a hostile text"
    cards = list(outputs.rglob("README.md"))
    assert cards and not [card for card in cards if find_live_markdown(card.read_text().split("---\n", 2)[2])]


@pytest.mark.parametrize(
    "url", [f"https://user:{CANARY}@host/v1", f"https://host/v1?api_key={CANARY}", f"https://host/v1#{CANARY}"]
)
def test_an_address_that_holds_a_secret_is_refused_and_not_shown(tmp_path, url):
    study = {"extends": "smoke", "name": "x", "models": {"m": {"api": {"base_url": url, "model": "m"}}}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(study))
    done = run_karma(ROOT, "models", str(path))
    assert done.returncode == 2 and CANARY not in done.stdout + done.stderr and "base_url" in done.stderr
    out = tmp_path / "out"
    done = run_karma(ROOT, "evaluate", "m", "--base-url", url, "--out", str(out))
    assert done.returncode == 2 and CANARY not in done.stdout + done.stderr
    assert not out.exists() or not find_canary(out)
