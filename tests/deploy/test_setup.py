"""What a project needs once: complete, the same in each form, and carried out once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.errors import ConfigurationError, UnavailableError
from deploy.manifest import parse_yaml
from deploy.schemas import find_problems
from deploy.settings import DeploySettings, read_settings
from deploy.setup_apply import Done, carry_out, describe, inspect, run_command
from deploy.setup_base import Step
from deploy.setup_plan import FUNCTIONS, build_secret, build_setup, to_connector, to_gcloud, to_terraform
from deploy.staging import stage_functions
from dry_work.cli.setup import command
from dry_work.errors import ConfigError

SETTINGS = DeploySettings(project="my-project", bucket="my-sources")
KEYS = {"ALPACA_API_KEY": "PKNOTREAL", "ALPACA_SECRET_KEY": "not-a-secret"}


class Project:
    """Stands in for gcloud and kubectl: remembers what was made, and says so when it is looked at."""

    def __init__(self, *present: str) -> None:
        self.made: list[str] = list(present)
        self.calls: list[tuple[str, ...]] = []
        self.inputs: list[str] = []
        self.answer: Done | None = None  # to every look
        self.fails_at = ""

    def __call__(self, words: tuple[str, ...], *, stdin: str, timeout_s: float) -> Done:
        self.calls.append(words)
        assert timeout_s > 0
        line = shlex.join(words)
        is_look = "describe" in words or "get" in words[:6]
        if is_look:
            if self.answer is not None:
                return self.answer
            name = words[words.index("describe") + 1] if "describe" in words else words[-1]
            name = name.partition("@")[0]  # accounts are looked at by address
            return Done(code=0) if name in self.made else Done(code=1, errors="ERROR: (gcloud) NOT_FOUND: no such")
        self.inputs.append(stdin)
        if self.fails_at and self.fails_at in line:
            return Done(code=1, errors="WARNING: slow\nERROR: (gcloud.x) PERMISSION_DENIED: ask an owner\n")
        for verb in ("create", "deploy", "pubsub"):
            if verb in words[:5]:
                self.made.append(words[words.index(verb) + 1])
        if "kubectl" in words and "create" in words:
            self.made.append("alpaca-credentials")
        return Done(code=0)


def steps() -> list[Step]:
    return build_setup(SETTINGS)


def test_everything_a_project_needs_is_there() -> None:
    titles = [step.title for step in steps()]
    for expected in (
        "topic market-data", "topic crypto-data", "bucket my-sources", "image repository gcr.io/my-project",
        "service account trading-agent", "service account dry-work-hub", "secret alpaca-api-key in Secret Manager",
        "namespace trading-agents", "Secret alpaca-credentials in the cluster", "function followBuilds",
    ):  # fmt: skip
        assert any(title.startswith(expected) for title in titles), expected
    for name in FUNCTIONS:
        assert any(title.startswith(f"function {name};") for title in titles), name


def test_functions_are_those_that_the_service_serves() -> None:
    http = pytest.importorskip("deploy.http")
    assert set(FUNCTIONS) == {*http.FUNCTIONS, "tradingAgents"}


def test_variables_of_a_function_are_settings_of_the_service_and_come_back_as_they_were() -> None:
    step = next(step for step in steps() if step.title.startswith("function deployTradingAgent"))
    text = step.create[step.create.index("--set-env-vars") + 1]
    assert text.startswith("^;^")
    variables = dict(pair.split("=", 1) for pair in text.removeprefix("^;^").split(";"))
    found = read_settings(variables)
    assert (found.project, found.bucket, found.images) == ("my-project", "my-sources", "gcr.io/my-project")
    assert found.build_account == "agent-build@my-project.iam.gserviceaccount.com"
    assert found.base_image == SETTINGS.base_image


def test_roles_are_narrow_and_nobody_owns_or_edits_the_project() -> None:
    bindings = [step.create for step in steps() if any("add-iam-policy-binding" in word for word in step.create)]
    roles = {words[words.index("--role") + 1] for words in bindings}
    assert not roles & {
        "roles/owner",
        "roles/editor",
        "roles/pubsub.editor",
        "roles/pubsub.admin",
        "roles/storage.admin",
    }
    agent = [words for words in bindings if "serviceAccount:trading-agent@my-project.iam.gserviceaccount.com" in words]
    assert [words[words.index("--role") + 1] for words in agent] == [
        "projects/my-project/roles/tradingAgentSubscriptions"
    ]
    pool = "serviceAccount:my-project.svc.id.goog[trading-agents/trading-agent]"
    assert any(pool in words and "roles/iam.workloadIdentityUser" in words for words in bindings)


def test_every_line_names_the_project_and_bash_reads_all_of_them(tmp_path: Path) -> None:
    for step in steps():
        assert "my-project" in step.line, step.title
    path = tmp_path / "setup.sh"
    path.write_text(to_gcloud(steps()))
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_terraform_has_the_same_parts_and_makes_them_in_order() -> None:
    document = json.loads(to_terraform(SETTINGS, steps()))
    resources = document["resource"]
    names = {f"{kind}.{name}" for kind, entries in resources.items() for name in entries}
    assert len(resources["google_cloudfunctions2_function"]) == len(FUNCTIONS) + 1
    for kind, entries in resources.items():
        for name, arguments in entries.items():
            after = set(arguments.get("depends_on", ()))
            assert after <= names
            assert f"{kind}.{name}" not in after
            assert bool(after) == (kind != "google_project_service")
    # One for each step that makes something.
    makes = [step for step in steps() if step.look and not step.from_environment]
    assert all(step.terraform for step in makes)
    topics = {entry["name"] for entry in resources["google_pubsub_topic"].values()}
    assert {"market-data", "crypto-data", "cloud-builds"} <= topics


def test_config_connector_has_the_same_parts_but_the_functions() -> None:
    documents = parse_yaml(to_connector(steps()))
    assert find_problems(documents) == []
    without = [step.title for step in steps() if not step.connector]
    assert all(title.startswith(("function ", "cluster ", "Secret ", "bucket my-sources keeps")) for title in without)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))


def test_no_secret_is_in_any_form() -> None:
    text = to_gcloud(steps()) + to_terraform(SETTINGS, steps()) + to_connector(steps())
    assert "PKNOTREAL" not in text
    assert "google_secret_manager_secret_version" not in text
    assert '"$ALPACA_SECRET_KEY"' in text  # by name, for the shell


def test_images_in_artifact_registry_get_their_repository_and_others_none() -> None:
    def repositories(prefix: str) -> list[tuple[str, ...]]:
        given = DeploySettings(project="my-project", image_prefix=prefix)
        return [step.create for step in build_setup(given) if step.title.startswith("image repository")]

    (words,) = repositories("europe-west3-docker.pkg.dev/my-project/agents")
    assert words[3:7] == ("create", "agents", "--location", "europe-west3")
    assert repositories("registry.example.com/agents") == []
    with pytest.raises(ConfigurationError, match="expected project and repository"):
        repositories("us-docker.pkg.dev/my-project")


def test_what_is_there_is_left_and_a_second_time_makes_nothing() -> None:
    project = Project("market-data")
    found = inspect(steps(), project, KEYS)
    assert all("describe" in words or "get" in words for words in project.calls)  # nothing was made yet
    lines = describe(found)
    assert "there    topic market-data" in lines
    assert "make     topic crypto-data" in lines
    told: list[str] = []
    carry_out(found, project, SETTINGS, KEYS, tell=told.append)
    assert "done     topic crypto-data" in told
    assert "done     topic market-data" not in told
    again = inspect(steps(), project, KEYS)
    assert {entry.step.title for entry in again if entry.state == "missing"} == set()


def test_the_secret_goes_by_standard_input_and_never_into_a_command() -> None:
    project = Project()
    carry_out(inspect(steps(), project, KEYS), project, SETTINGS, KEYS, tell=lambda _line: None)
    assert not any("not-a-secret" in word for words in project.calls for word in words)
    (secret,) = [json.loads(text) for text in project.inputs if "not-a-secret" in text]
    assert secret["stringData"] == {"api-key": "PKNOTREAL", "secret-key": "not-a-secret"}
    assert find_problems([secret]) == []


def test_without_credentials_the_secret_is_left_to_be_made_by_hand() -> None:
    project = Project()
    found = inspect(steps(), project, {})
    assert [entry.step.title for entry in found if entry.state == "by hand"] == [
        "Secret alpaca-credentials in the cluster, from the environment"
    ]
    carry_out(found, project, SETTINGS, {}, tell=lambda _line: None)
    assert not any("Opaque" in text for text in project.inputs)
    with pytest.raises(ConfigurationError, match="ALPACA_SECRET_KEY is not set"):
        build_secret(SETTINGS, {"ALPACA_API_KEY": "x"})


def test_a_look_that_fails_otherwise_makes_nothing() -> None:
    project = Project()
    project.answer = Done(code=1, errors="ERROR: (gcloud.pubsub) PERMISSION_DENIED: you do not have the role\n")
    with pytest.raises(UnavailableError, match=r"topic market-data: cannot be looked at: ERROR.*PERMISSION_DENIED"):
        inspect(steps(), project, KEYS)


def test_a_new_project_has_no_apis_and_its_parts_count_as_missing() -> None:
    project = Project()
    project.answer = Done(code=1, errors="ERROR: Cloud Pub/Sub API has not been used in project my-project before")
    assert {entry.state for entry in inspect(steps(), project, KEYS)} == {"missing", "again"}


def test_a_command_that_fails_is_told_and_the_next_run_goes_on_from_there() -> None:
    project = Project()
    project.fails_at = "buckets create"
    told: list[str] = []
    with pytest.raises(UnavailableError, match=r"bucket my-sources: ERROR: .*PERMISSION_DENIED: ask an owner"):
        carry_out(inspect(steps(), project, KEYS), project, SETTINGS, KEYS, tell=told.append)
    assert told[-1] == "done     topic order-updates"
    project.fails_at = ""
    found = inspect(steps(), project, KEYS)
    assert next(entry.state for entry in found if entry.step.title == "topic order-updates") == "there"
    carry_out(found, project, SETTINGS, KEYS, tell=told.append)


def test_functions_that_are_there_are_deployed_again_when_asked_for() -> None:
    project = Project(*FUNCTIONS, "followBuilds")
    states = {
        update: {
            entry.state for entry in inspect(steps(), project, KEYS, update_functions=update) if entry.step.is_function
        }
        for update in (False, True)
    }
    assert states == {False: {"there"}, True: {"again"}}


def test_real_processes_are_run_without_a_shell_and_end_in_time() -> None:
    assert run_command(("cat",), stdin="a $HOME b", timeout_s=30) == Done(code=0, output="a $HOME b")
    with pytest.raises(ConfigurationError, match="no-such-program is not installed"):
        run_command(("no-such-program",), stdin="", timeout_s=30)
    with pytest.raises(UnavailableError, match=r"did not end within 0\.05 s"):
        run_command(("sleep", "30"), stdin="", timeout_s=0.05)


def test_the_functions_are_staged_with_what_they_import_and_their_templates(tmp_path: Path) -> None:
    target = stage_functions(tmp_path / "function")
    assert (target / "main.py").is_file()
    assert (target / "deploy" / "k8s" / "PaperTrading.yaml").is_file()
    code = "import sys; sys.path.insert(0, '.'); from deploy.manifest import read_template, __file__ as at; print(at)"
    code += "; print(len(read_template('PaperTrading.yaml')))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=target, capture_output=True, text=True, timeout=60, check=True
    )
    assert [Path(word).name for word in done.stdout.split()] == ["manifest.py", "3"]
    assert Path(done.stdout.split()[0]).resolve() == (target / "deploy" / "manifest.py").resolve()
    assert stage_functions(target) == target  # again
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="holds something else"):
        stage_functions(tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigurationError, match="deployed from a checkout"):
        stage_functions(tmp_path / "function2", root=tmp_path)


# The command


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", *KEYS):
        monkeypatch.delenv(name, raising=False)


def run(*words: str, **environment: str) -> Any:
    return CliRunner().invoke(command, words, env={"GOOGLE_CLOUD_PROJECT": "my-project", **environment})


def test_the_command_prints_each_form(tmp_path: Path) -> None:
    assert "gcloud pubsub topics create market-data --project my-project" in run().output
    assert json.loads(run("--format", "terraform").output)["provider"]["google"]["project"] == "my-project"
    assert find_problems(parse_yaml(run("--format", "kcc").output)) == []
    kinds = [document["kind"] for document in parse_yaml(run("--format", "kubernetes").output)]
    assert kinds[0] == "Namespace"
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_what_is_missing_with_the_programs_on_the_path(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "log"
    script = f"""#!/bin/sh
echo "$(basename "$0") $*" >> {log}
case "$*" in *" describe "*|*"get secret"*) echo NOT_FOUND >&2; exit 1;; esac
cat > /dev/null
"""
    for name in ("gcloud", "kubectl"):  # nothing is there, and everything can be made
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    result = run("--apply", "--yes", PATH=f"{programs}:/usr/bin:/bin", **KEYS)
    assert result.exit_code == 0, result.output
    assert "done     function deployTradingAgent" in result.output
    lines = log.read_text().splitlines()
    assert any("functions deploy deployTradingAgent" in line and "--source build/function" in line for line in lines)
    assert (tmp_path / "build" / "function" / "deploy" / "manifest.py").is_file()
    assert "not-a-secret" not in log.read_text() + result.output


def test_the_command_asks_before_it_makes_anything(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = (
        '#!/bin/sh\ncase "$*" in *" describe "*|*"get secret"*) ;; *) touch made;; esac\necho NOT_FOUND >&2\nexit 1\n'
    )
    for name in ("gcloud", "kubectl"):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    result = CliRunner().invoke(
        command,
        ["--apply"],
        input="n\n",
        env={"GOOGLE_CLOUD_PROJECT": "my-project", "PATH": f"{programs}:/usr/bin:/bin"},
    )
    assert result.exit_code == 1
    assert "Make what is missing?" in result.output
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["--plan", "--apply"], {}, "exclude each other"),
        (["--apply", "--format", "kcc"], {}, "leave out --format"),
        (["--yes"], {}, "go with --apply"),
        ([], {"GOOGLE_CLOUD_PROJECT": ""}, "set GOOGLE_CLOUD_PROJECT"),
        ([], {"GOOGLE_CLOUD_PROJECT": "x y"}, "GOOGLE_CLOUD_PROJECT 'x y'"),
        ([], {"CLOUDSDK_COMPUTE_REGION": "us-central1-a"}, "not a zone"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words: list[str], environment: dict[str, str], expected: str) -> None:
    result = run(*words, **environment)
    assert isinstance(result.exception, ConfigError)
    assert expected in str(result.exception)
