"""Whether a record still answers for its command: flags, start weights, data and program then and now.

A record that does not is *stale*: `list` says why, `run --stale` makes it anew. What was trained with other flags or from
other weights than its recipe says today stands apart in tables (`shown_recipe`).
"""

from __future__ import annotations

import ast
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path

from common import ledger, results
from common.arguments import ROOT
from common.ledger import Answer, Job

EARLIER = " (earlier flags)"
# Spelt in several ways; what they mean is in the record's own fields and in the other flags.
SPELT = {"preset", "known_dataset", "split", "ds", "config"}
# Flags of an evaluation that say where and what to write; which scores there are is seen from the records.
WHERE = {
    "save", "run_dir", "checkpoint_path", "record", "no_report", "data_dir", "device", "gpu", "batch_size", "score", "tail_size"
}  # fmt: skip


def staleness(found: dict, job: Job, code: Mapping[str, Iterable[str]]) -> str:
    """Why a record no longer answers for its command; empty if it does.

    `scoring: ...` means that a new evaluation of the trained run is enough.
    """
    scoring = found.get("evaluation_code_version", found["code_version"])
    return (
        changed_training(found, job, code)
        or _changed_data(found)
        or _changed_evaluation(found, job)
        or _changed_code("scoring", scoring, code["scoring"])
    )


def changed_training(found: dict, job: Job, code: Mapping[str, Iterable[str]]) -> str:
    """What of the training is different today: flags, start weights or program; `found` is a record, or a run's own files."""
    return _changed_flags(found, job) or _changed_start(found) or _changed_code("code", found["code_version"], code["training"])


def shown_recipe(found: dict) -> str:
    """Name of a record's recipe in tables: its own, or one that says that it was trained otherwise than the recipe says today."""
    of_paper = _read_once(found["paper"]).recipes.values() if found["paper"] in ledger.papers() else ()
    fitting = [recipe for recipe in of_paper if (recipe.table, recipe.data[0]) == (found["table"], found["data"])
               and found["split"] in recipe.splits]  # fmt: skip
    jobs = [Job(recipe, found["split"], found["seed"]) for recipe in fitting]
    changed = fitting and (all(_changed_flags(found, job) for job in jobs) or _changed_start(found))
    return found["table"] + (EARLIER if changed else "")


def current(records: list[dict]) -> list[dict]:
    """Those trained as their recipe says today; where there is none, all of them."""
    return [found for found in records if shown_recipe(found) == found["table"]] or records


_read_once = cache(ledger.read)


def _changed_flags(found: dict, job: Job) -> str:
    if "flags" not in found:
        return "command: the record is older than the flags it should hold"
    from common.run import FREE_FLAGS

    now = _flags_now(job.recipe.paper, tuple(job.train[1:]))
    return _said("command", found["flags"], now, FREE_FLAGS | SPELT)


def _said(what: str, then: Mapping, now: Mapping, apart_from: set[str]) -> str:
    differing = [f"--{name} was {value}, is {now[name]}" for name, value in then.items()
                 if name in now and name not in apart_from and now[name] != value]  # fmt: skip
    return f"{what}: {'; '.join(differing)}" if differing else ""


@cache
def _flags_now(paper: str, command: tuple[str, ...]) -> dict:
    from common.files import plain

    return plain(vars(import_module(f"{paper}.main").parse_arguments(list(command))))


@cache
def _evaluation_flags(paper: str, command: tuple[str, ...]) -> dict:
    from common.arguments import parse
    from common.files import plain

    return plain(vars(parse(import_module(f"{paper}.test").get_args_parser(), list(command))))


def _changed_evaluation(found: dict, job: Job) -> str:
    then = tuple(shlex.split(found["commands"][-1])[2:])
    now = _evaluation_flags(found["paper"], tuple(job.test[1:]))
    return _said("scoring", _evaluation_flags(found["paper"], then), now, WHERE)


def _changed_start(found: dict) -> str:
    flags = found.get("flags", {})
    named = flags.get("weights") or flags.get("start_from")
    now = _start_now(str(named)) if named else None
    if now is None or found.get("started_from") == now:
        return ""
    known = "is another network today" if "started_from" in found else "may be another network: the record does not say which"
    return f"start: {named} {known}"


@cache
def _start_now(name: str) -> str | None:
    """SHA-256 of the weights file of a checkpoint of the manifest, or of the run whose records are here; else None."""
    from common.checkpoints import read_manifest

    manifest = read_manifest()
    if name in manifest:
        return manifest[name]["trained_sha256"]
    for book in ledger.ledgers():
        for recipe in book.recipes.values():
            for job in recipe.jobs():
                if job.name == name:
                    return _trained_file(job)
    return None


def _trained_file(job: Job) -> str | None:
    for found in results.read_records(job.recipe.paper, table=job.recipe.table, split=job.split, seed=job.seed):
        if job.name in shlex.split(found["commands"][0]):
            return found["checkpoint_sha256"][0]
    return None


def _changed_data(found: dict) -> str:
    from common.datasets import data_root
    from common.datasets.checksums import MD5

    sums = dict(found["data_checksums"])
    for each in found.get("unknown_checksums", {}).values():
        sums |= each
    for name, value in sums.items():
        if name in MD5 and value.startswith("md5:") and value != f"md5:{MD5[name]}":
            return f"data: {name}"
        path = data_root() / name
        if value.startswith("sha256:") and path.is_file() and _sha256(path) != value.removeprefix("sha256:"):
            return f"data: {name}"
    return ""


@cache
def _sha256(path: Path) -> str:
    from common.files import sha256

    return sha256(path)


def _changed_code(what: str, version: str, files: Iterable[str]) -> str:
    """Files, with the names in them, that do something else than at the record's commit; new names change nothing.

    Of `file.py#name` that name alone counts.
    """
    commit, changed = version.split("+")[0], []
    for entry in files:
        file, _, only = entry.partition("#")
        then, now = _program_at(commit, file), _program_now(file)
        counted = {name: program for name, program in (then or {}).items() if only in ("", name.partition("[")[0])}
        names = [name for name, program in counted.items() if now.get(name) != program]
        if names:
            changed.append(f"{file} ({', '.join(names)})")
    return f"{what}: {', '.join(changed)}" if changed else ""


@cache
def _program_now(file: str) -> dict[str, str]:
    path = ROOT / file
    return _program(path.read_text()) if path.exists() else {}


@cache
def _program_at(version: str, file: str) -> dict[str, str] | None:
    """The program of a file at a commit; None where git does not know (no repository, shallow clone)."""
    command = ["git", "-C", str(ROOT), "show", f"{version}:{file}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return _program(done.stdout) if done.returncode == 0 else None


def _program(text: str) -> dict[str, str]:
    """Syntax tree of each top-level name of a Python file, without imports, docstrings and what comments can change.

    Methods that only declare (abstract, or nothing but an error) compute nothing and are left out too. Of a registry, a dict
    with written keys, every entry is a name of its own (`BACKBONES['vgg']`), so that new entries change nothing.
    Other statements of the top level stand together under `module`.
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
        if isinstance(node, ast.ClassDef):
            node.body = [statement for statement in node.body if not _only_declares(statement)]
    program: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        name = getattr(node, "name", None) or getattr(targets[0], "id", None) or "module"
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and value.keys and all(isinstance(key, ast.Constant) for key in value.keys):
            program |= {f"{name}[{key.value!r}]": ast.dump(entry) for key, entry in zip(value.keys, value.values)}
            continue
        program[name] = program.get(name, "") + ast.dump(node)
    return program


def _only_declares(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.FunctionDef):
        return False
    if any(ast.unparse(decorator).endswith("abstractmethod") for decorator in statement.decorator_list):
        return True
    return isinstance(statement.body[-1], ast.Raise) and len(statement.body) <= 2


def state(answers: Iterable[Answer], job: Job, code: Mapping[str, Iterable[str]], root: Path | None = None) -> tuple[str, str]:
    """State of one job for the answers asked of it: done, stale, data missing or open; and the reason."""
    found = [ledger.record(answer, job) for answer in answers]
    if found and all(found):
        reason = next((text for entry in found if (text := staleness(entry, job, code))), "")
        return ("stale", reason) if reason else ("done", "")
    absent = ledger.missing_data(job, root)
    if absent:
        return "data missing", ", ".join(absent)
    have = sum(entry is not None for entry in found)
    return "open", f"{have} of {len(found)} scores recorded" if have else ""
