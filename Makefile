# Two commands: `make demo` and `make test`. Both do all their own set-up in .venv.
PYTHON ?= python3
VENV := .venv
POLYLM := $(VENV)/bin/polylm
GIN := --gin_file=gin_configs/runs/demo.gin
CLEANED := --gin.corpus.path=data/demo/clean
RUN := runs/demo
TUNED := runs/demo_tune

export JAX_PLATFORMS ?= cpu

# transformers, peft, torch, llama.cpp and lm-eval, which judge what we read and write: kept apart
JUDGES := .venv-judges
# openai, litellm, llm, lm-eval, schemathesis and playwright, which ask `polylm serve`: kept apart
CLIENTS := .venv-clients

.PHONY: demo study study_cleaning test rare same faults fuzz judges clients lint certify docs clean

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV) || { echo "On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile \
		-r requirements.txt -e ".[data,plan,dev]"
	touch $@

demo: $(VENV)/ready
	$(POLYLM) corpus --small $(GIN)
	$(POLYLM) clean $(GIN)
	$(POLYLM) tokenizer $(GIN) $(CLEANED)
	$(POLYLM) rows $(GIN) $(CLEANED)
	$(POLYLM) train $(GIN)
	$(POLYLM) generate --run=$(RUN) --out=$(RUN)/samples.txt --prompt="Please enter" \
		--prompt="Bitte geben Sie" --prompt="Seleccione" --prompt="Veuillez" \
		--prompt="Выберите" --prompt="请" --prompt="このフィールドは" \
		--prompt="يرجى"
	$(POLYLM) report --run=$(RUN)
	$(POLYLM) tune --gin_file=gin_configs/runs/demo_tune.gin
	$(POLYLM) generate --chat --run=$(TUNED) --gin.sampling.new_tokens=32 \
		--gin.sampling.temperature=0 --gin.sampling.repetition_penalty=1.3 \
		--prompt="Translate into Spanish: Open in the Main Area" \
		--prompt="Translate into English: Ja, löschen"
	$(POLYLM) evaluate --run=$(RUN) --gin_file=gin_configs/evaluation/demo.gin

# does the paper's curriculum help? docs/curriculum.md; on the demo's rows, some minutes
study: $(VENV)/ready
	$(POLYLM) corpus --small $(GIN)
	$(POLYLM) clean $(GIN)
	$(POLYLM) tokenizer $(GIN) $(CLEANED)
	$(POLYLM) rows $(GIN) $(CLEANED)
	$(POLYLM) sweep --gin_file=gin_configs/studies/curriculum/small.gin --out=runs/study \
		--over=SEED=1,2,3 \
		--over='curriculum.non_english=%FIXED_30,%FIXED_60,%STEP_30_60,%RAMP_30_60,%FALL_60_30'

# what is junk in the text worth? docs/cleaning.md; after make demo, ten minutes
STUDY := --gin_file=gin_configs/studies/cleaning/small.gin
study_cleaning: $(VENV)/ready
	$(POLYLM) bench junk $(STUDY) --out=data/study_cleaning
	$(POLYLM) rows $(STUDY) --gin.corpus.path=data/study_cleaning/junk \
		--gin.rows.path=data/study_cleaning/rows_junk
	$(POLYLM) rows $(STUDY) --gin.corpus.path=data/study_cleaning/kept
	$(POLYLM) sweep $(STUDY) --out=runs/study_cleaning --over=SEED=1,2,3 \
		--over=rows.path=%CLEAN,%JUNK,%KEPT

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

# every run file of a slice, on the slice's compiler: an hour on two cores, seconds once cached
certify: $(VENV)/ready
	$(POLYLM) plan --certify=docs/plans.md

# the pages of docs/ as a site in site/; a broken link fails
docs: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e ".[docs]"
	$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going docs site

# what takes long and seldom breaks, compiled as for users; XLA_FLAGS= make test does so with all
rare: $(VENV)/ready
	XLA_FLAGS= $(VENV)/bin/pytest -m rare -n 2 --dist loadfile

# whether the code of REV trains to the same bits as the code here
same: $(VENV)/ready
	$(VENV)/bin/python -m tests.same $(or $(REV),main)

# kills, full disks, damaged checkpoints and the like, each many times; `make test` has a few
faults: $(VENV)/ready
	XLA_FLAGS= FAULT_ROUNDS=32 FAULT_TABLE=docs/faults.md $(VENV)/bin/pytest -m '' tests/faults tests/processes

# odd flags, settings, paths and files, for FUZZ_SECONDS; none may end in a traceback
fuzz: $(VENV)/ready
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(VENV)/bin/pytest -s tests/test_fuzz.py

$(JUDGES)/ready: Makefile
	$(PYTHON) -m venv $(JUDGES)
	$(JUDGES)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 \
		transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 xllamacpp==2026.10.11549 \
		lm-eval==0.4.13 peft==0.21.2
	touch $@

# our folders and GGUF files in others' hands, and theirs in ours
judges: $(VENV)/ready $(JUDGES)/ready
	JUDGES_PYTHON=$(JUDGES)/bin/python $(VENV)/bin/pytest -s tests/interop/test_judges.py

$(CLIENTS)/ready: Makefile
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check openai==3.57.0 litellm==1.110.0 \
		llm==0.36 "lm-eval[api]==0.4.13" transformers==5.24.0 schemathesis==4.32.5 playwright==1.65.2
	! command -v npm || npm install --silent --no-save --no-audit --no-fund openai@7.55
	touch $@

# what others wrote asks our server, and a Chromium opens its page where one is installed
clients: $(VENV)/ready $(CLIENTS)/ready
	CLIENTS_PYTHON=$(CLIENTS)/bin/python $(VENV)/bin/pytest -s tests/serve/test_clients.py

clean:
	rm -rf runs/demo runs/demo_tune data/demo data/demo_tune
