"""The sources of the functions as one folder, as Cloud Functions takes them."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.errors import ConfigurationError
from deploy.manifest import AGENT_TEMPLATE, BY_NAME_TEMPLATE, NAMESPACE_TEMPLATE

_HERE = Path(__file__).parent


def stage_functions(target: Path, *, root: Path = _HERE.parent) -> Path:
    """Put main.py, requirements.txt, this package and its templates into `target`, which is emptied first; return it.

    Raises:
        ConfigurationError: `root` is no checkout with functions/ and k8s/, or `target` holds something else.
    """
    needed = [root / "functions" / name for name in ("main.py", "requirements.txt")]
    templates = [root / "k8s" / name for name in (AGENT_TEMPLATE, BY_NAME_TEMPLATE, NAMESPACE_TEMPLATE)]
    for path in (*needed, *templates):
        if not path.is_file():
            raise ConfigurationError(f"{path} is not there: functions are deployed from a checkout of the repository")
    if target.exists():
        if not target.is_dir() or (any(target.iterdir()) and not (target / "main.py").is_file()):
            raise ConfigurationError(f"{target} holds something else than staged functions: name another folder")
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for path in needed:
        shutil.copyfile(path, target / path.name)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(_HERE, target / "deploy", ignore=ignore)
    (target / "deploy" / "k8s").mkdir(exist_ok=True)
    for path in templates:
        shutil.copyfile(path, target / "deploy" / "k8s" / path.name)
    return target
