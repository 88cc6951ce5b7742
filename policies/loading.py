"""From files to policies in force: read everything, check everything, run every file's tests, or say all that is wrong.

Nothing loads half-way: either every file is right and passes its own tests, or Problems is raised with all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from perdure.errors import Problem, Problems
from perdure.policies.binding import check_rules
from perdure.policies.decisions import PolicySet
from perdure.policies.documents import BYTES_MAX, Complaints, Place, nearest, read_document
from perdure.policies.inline_tests import check_tests
from perdure.policies.model import ToolSignature
from perdure.policies.reading import read_policy
from perdure.policies.rules import PolicyFile

FILES_MAX = 200
LIBRARY = Path(__file__).parent / "library"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as read: its name in messages, its bytes, and its rules."""

    content: bytes
    document: PolicyFile
    complaints: Complaints


def load_policies(paths: Sequence[Path], signatures: Mapping[str, ToolSignature], *, workspace: Path) -> PolicySet:
    """The policies of these files and directories (every `*.yaml` and `*.yml` in them), checked against the tools.

    Raises Problems with every mistake in every file, each with line, column and what was expected."""
    root = os.path.realpath(workspace)
    problems: list[Problem] = []
    read = _read_all(paths, root, problems)
    for one in read:
        check_rules(one.document, signatures, one.complaints)
        problems += one.complaints.problems
    if not problems:
        for one in read:
            alone = _policy_set([one], signatures, root)
            check_tests(one.document, alone, one.complaints)
            problems += one.complaints.problems
    if problems:
        raise Problems("load the policies of", problems)
    return _policy_set(read, signatures, root)


def check_documents(paths: Sequence[Path], *, workspace: Path) -> list[Problem]:
    """What can be said of policy files while nobody knows the tools: every mistake of form."""
    problems: list[Problem] = []
    for one in _read_all(paths, os.path.realpath(workspace), problems):
        problems += one.complaints.problems
    return problems


def library_files() -> Mapping[str, Path]:
    """The shipped policy files by the name that `use:` knows them by."""
    return {path.stem: path for path in sorted(LIBRARY.glob("*.yaml"))}


def policy_files(paths: Sequence[Path]) -> list[Path]:
    """The files that these paths stand for, in order of name; directories are not descended into. Raises OSError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(
                child for child in path.iterdir() if child.suffix in SUFFIXES and not child.name.startswith(".")
            )
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _policy_set(read: Sequence[_Read], signatures: Mapping[str, ToolSignature], root: str) -> PolicySet:
    files = {one.document.file: sha256(one.content).hexdigest() for one in read}
    digest = sha256("".join(f"{name}\0{files[name]}\n" for name in sorted(files)).encode()).hexdigest()
    return PolicySet(
        [one.document for one in read],
        signatures,
        workspace=root,
        digest=f"sha256:{digest}",
        files=files,
        resolve=os.path.realpath,
    )


def _read_all(paths: Sequence[Path], root: str, problems: list[Problem]) -> list[_Read]:
    try:
        files = policy_files(paths)
    except OSError as error:
        problems.append(_unreadable(Path(str(error.filename)), str(error.filename), error))
        return []
    if not files:
        places = ", ".join(str(path) for path in paths) or "the workspace"
        problems.append(
            Problem(
                places,
                0,
                0,
                "no policy file",
                "at least one *.yaml: with no rule at all, every action would be a question",
            )
        )
    if len(files) > FILES_MAX:
        problems.append(Problem(str(files[0].parent), 0, 0, f"{len(files)} policy files", f"at most {FILES_MAX}"))
        return []
    library = library_files()
    read: dict[str, _Read] = {}
    pending = [(path, _name(path, root)) for path in files]
    while pending:
        path, name = pending.pop(0)
        if name in read:
            continue
        one = _read_one(path, name, problems)
        if one is None:
            continue
        read[name] = one
        for used in one.document.uses:
            if used in library:
                pending.append((library[used], f"library/{used}.yaml"))
            else:
                expected = f"one of {', '.join(library)}{nearest(used, list(library))}"
                one.complaints.add(Place(*one.document.places["use"]), f"the library file {used!r}", expected)
    return list(read.values())


def _read_one(path: Path, name: str, problems: list[Problem]) -> _Read | None:
    try:
        with path.open("rb") as file:
            content = file.read(BYTES_MAX + 1)
    except OSError as error:
        problems.append(_unreadable(path, name, error))
        return None
    root, complaints = read_document(content, name)
    document = read_policy(root, complaints) if root is not None else None
    if document is None:
        problems += complaints.problems
        return None
    return _Read(content, document, complaints)


def _unreadable(path: Path, name: str, error: OSError) -> Problem:
    found, expected = error.strerror or str(error), "a policy file that can be read"
    if isinstance(error, FileNotFoundError):
        found, expected = "nothing there", "a policy file, or a directory of them"
        if path.is_symlink():
            found = f"a link to {path.readlink()}, where nothing is"
    elif isinstance(error, IsADirectoryError):
        found, expected = "a directory", "a file: what is named *.yaml here is read as a policy"
    elif isinstance(error, PermissionError):
        found, expected = "no right to read it", f"one that uid {os.geteuid()}, as which Perdure runs, may read"
    return Problem(name, 0, 0, found, expected)


def _name(path: Path, root: str) -> str:
    absolute = str(Path(os.path.realpath(path.parent), path.name))
    return os.path.relpath(absolute, root) if absolute.startswith(root + "/") else str(path)
