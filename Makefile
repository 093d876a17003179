# The environment lives in .venv; both `run` and `test` create what they need from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test explore check bench deploy-demo kill-matrix fault-matrix hub-matrix replay-matrix soak image-test clean

run: $(STAMP)
	$(BIN)/dry-work run --symbols symbols.txt --local --speed max --report report.html

# Most tests wait for something: four at once keep two cores busy. Many run real servers, processes and timers on a
# machine that may be busy: what fails is run once more, five tests at most, and told at the end with what it said.
# The order is shuffled, and always in the same way.
PYTEST := $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder
test: check
	$(PYTEST) --randomly-seed=20240611 --reruns 1 --reruns-delay 1 --max-suite-reruns 5

# The suite in another order and with other examples each time: finds what `make test` cannot. Run again with
# `make explore SEED=…` as the head of its output says.
explore: check
	DRY_WORK_EXPLORE=1 $(PYTEST) $(if $(SEED),--randomly-seed=$(SEED))

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The life of a deployed agent on this machine: deploy, trade, upgrade, roll back, stop.
deploy-demo: $(STAMP)
	$(BIN)/python -m dry_work.cli.deploy_demo

# A process that trades, killed at every input and output and at random moments; minutes to an hour.
kill-matrix: $(STAMP)
	$(BIN)/python -m tests.faults.kill_matrix

# Every fault of a venue, alone and in pairs; minutes.
fault-matrix: $(STAMP)
	$(BIN)/python -m tests.faults.fault_matrix --jobs 4

# The hub's upstreams, servers and clients at their worst, while fifty programs listen; a quarter of an hour.
hub-matrix: $(STAMP)
	$(BIN)/python -m tests.faults.hub_matrix

# Runs killed at random moments, and replayed from what they recorded; minutes.
replay-matrix: $(STAMP)
	$(BIN)/python -m tests.faults.replay_matrix --kills 50

# Ten simulated weeks of 100 symbols with outages and restarts; half an hour to an hour.
soak: $(STAMP)
	$(BIN)/python -m tests.soak.soak

# The runtime image, built and run as a pod would; as root, with buildah and debootstrap; minutes.
image-test: $(STAMP)
	DRY_WORK_IMAGE_TEST=1 $(BIN)/pytest tests/deploy/test_image_run.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf report.html $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .dry-work build dist
