"""The project's own safety: workflows, dependencies, and what the code may not call."""

import ast
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SOURCES = sorted(path for folder in ("lightning_dropout", "scripts") for path in (ROOT / folder).rglob("*.py"))

# --- what the code may not call ---------------------------------------------------------------------------------------

NEVER = {
    "eval",
    "exec",
    "__import__",
    "pickle",
    "cPickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "os.system",
    "os.popen",
}
UNSAFE_YAML = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
LOADS = {"torch.load", "load_from_checkpoint", "load_checkpoint"}
# Rewrites a forward of the user's own model, in memory: the code is the model's, with one call put into it.
COMPILES = {"lightning_dropout/conversion/branches.py"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> Iterator[str]:
    """Yield what a file does that it may not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and names != ["UnpicklingError"]:  # what torch.load raises
                names = [node.module or ""]
            yield from (f"import {name}" for name in names if name.partition(".")[0] in NEVER)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in NEVER | UNSAFE_YAML or name.partition(".")[0] in NEVER:
            yield name
        # A strategy's own load goes through the trainer's CheckpointIO, which is asked for weights alone.
        if (name in LOADS or name.rpartition(".")[2] in LOADS) and not name.endswith("strategy.load_checkpoint"):
            safe = [word.value for word in node.keywords if word.arg == "weights_only"]
            if not (safe and isinstance(safe[0], ast.Constant) and safe[0].value is True):
                yield f"{name} without weights_only=True"
        if name == "compile":
            yield name
        if any(word.arg == "shell" and getattr(word.value, "value", True) for word in node.keywords):
            yield f"{name} with a shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    allowed = {"compile", "exec"} if str(path.relative_to(ROOT)) in COMPILES else set()
    assert set(dangers(path.read_text())) - allowed == set()


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "Net.load_from_checkpoint(path)",
        "import pickle",
        "from pickle import loads",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "compile(text, '', 'exec')",
    ],
)
def test_the_check_sees_it(source: str) -> None:
    assert list(dangers(source))


# --- workflows --------------------------------------------------------------------------------------------------------

PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)+")
UNTRUSTED = re.compile(r"\$\{\{")  # in a script: whatever it holds would be run by the shell


def faults(text: str) -> Iterator[str]:
    """Yield what is wrong with a workflow."""
    workflow: dict[Any, Any] = yaml.safe_load(text)
    triggers = workflow[True]  # YAML 1.1 reads `on` so
    if "pull_request_target" in triggers or "workflow_run" in triggers:
        yield "runs with the rights of the repository for code of anybody's"
    if workflow.get("permissions") != {}:
        yield "permissions: {} at the top"
    if "concurrency" not in workflow:
        yield "concurrency"
    if re.search(r"\bsecrets\.", text):
        yield "a secret"
    uses = re.findall(r"uses: *(.+)", text)
    yield from (f"not pinned: {use}" for use in uses if not PINNED.fullmatch(use.strip()))
    for name, job in workflow["jobs"].items():
        if not isinstance(job.get("timeout-minutes"), int):
            yield f"{name}: timeout-minutes"
        rights = job.get("permissions")
        if not isinstance(rights, dict) or any(
            right == "write" and what != "id-token" for what, right in rights.items()
        ):
            yield f"{name}: permissions {rights}"
        if isinstance(rights, dict) and "id-token" in rights and job.get("environment", {}).get("name") != "pypi":
            yield f"{name}: an identity outside of the protected environment"
        for step in job["steps"]:
            if UNTRUSTED.search(step.get("run", "")):
                yield f"{name}: an expression in a script"
            checks_out = step.get("uses", "").startswith("actions/checkout@")
            if checks_out and step.get("with", {}).get("persist-credentials") is not False:
                yield f"{name}: persist-credentials"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow(path: Path) -> None:
    assert list(faults(path.read_text())) == []


def test_there_are_two_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "release"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("pull_request:", "pull_request_target:"),
        ("permissions: {}", "permissions: write-all"),
        ("      contents: read", "      contents: write"),
        ("@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "@v7"),
        (" # v7.0.0", ""),
        ("persist-credentials: false", "persist-credentials: true"),
        ("    timeout-minutes: 90\n", ""),
        ("make lint", "echo ${{ github.event.pull_request.title }}"),
        ("make lint", "make lint TOKEN=$TOKEN # secrets.TOKEN"),
        ("concurrency:", "env:"),
    ],
)
def test_the_check_sees_a_weak_workflow(before: str, after: str) -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert before in text
    assert list(faults(text.replace(before, after, 1)))


def test_updates_wait_a_week() -> None:
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {"github-actions", "pip"} == {update["package-ecosystem"] for update in updates}
    assert all(update["cooldown"]["default-days"] >= 7 for update in updates)


# --- dependencies -----------------------------------------------------------------------------------------------------

# Advisory: (why it does not concern us, when to look again).
IGNORED: dict[str, tuple[str, datetime.date]] = {
    "PYSEC-2026-3624": (
        "names a fixed version that does not exist; lightning 2.6.6 has the fix",
        datetime.date(2027, 3, 1),
    ),
    "CVE-2026-58659": ("the same under its other name", datetime.date(2027, 3, 1)),
}
FLOORS = {"lightning": "!=2.6.2,!=2.6.3", "hydra-core": ">=1.3.7", "torch": ">=2.10", "wandb": ">=0.29.0"}


def test_known_holes_are_excluded() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, bound in FLOORS.items():
        line = re.search(rf'^\s*"{name}([^"]*)",', text, flags=re.MULTILINE)
        assert line, name
        assert set(bound.split(",")) <= set(line[1].split(",")), (name, line[1])


def test_the_tested_versions_have_no_known_hole_either() -> None:
    versions = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    least = {
        "lightning": (2, 6, 6),
        "pytorch-lightning": (2, 6, 6),
        "hydra-core": (1, 3, 7),
        "torch": (2, 13),
        "wandb": (0, 29),
    }
    for name, version in least.items():
        assert tuple(map(int, versions[name].split("."))) >= version, name


@pytest.mark.parametrize("advisory", IGNORED)
def test_what_is_ignored_has_a_reason_and_a_date(advisory: str) -> None:
    reason, until = IGNORED[advisory]
    assert len(reason) > 20
    assert datetime.date.today() < until, f"{advisory}: look again whether this still holds: {reason}"


@pytest.mark.slow
def test_no_known_advisory(tmp_path: Path) -> None:
    """Of everything in constraints.txt, by pip-audit; without a network nothing is known and nothing is claimed."""
    ignored = [word for advisory in IGNORED for word in ("--ignore-vuln", advisory)]
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--no-deps",
               "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "5",
               "--cache-dir", str(tmp_path), *ignored]  # fmt: skip
    try:
        audit = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("no advisory service answers within a minute")
    try:
        packages = json.loads(audit.stdout)["dependencies"]
    except ValueError:
        reason = audit.stderr.strip().splitlines()[-1][:200] if audit.stderr.strip() else "it says nothing"
        assert re.search(
            r"[Cc]onnection|resolve|[Tt]imed? ?out|unreachable|Max retries|Proxy|status code|40\d|50\d|SSL",
            audit.stderr,
        ), audit
        pytest.skip(f"no advisory service is reachable: {reason}")
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):  # a mirror without advisories
        pytest.skip(f"no advisory service is reachable: {packages[0]['skip_reason']}")
    assert {package["name"]: package["vulns"] for package in packages if package.get("vulns")} == {}
