"""What a recipe points at: files and Python, found without importing anything, and digested."""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib.util
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

from ..errors import EnvironmentalError, RecipeError, nearest
from ..stage import File, Folder, PythonFunction, PythonRef
from ..terminal import printable
from .positions import shorten

REFERENCE = re.compile(r"\$\{([^}]*)\}")
_REFERENCES = "known: ${vars.NAME}, ${env:NAME}, ${env:NAME:-default}, ${package:NAME}"
MAX_PYTHON_BYTES = 4 << 20
MAX_FILES = 20_000
MAX_ENTRIES = 200_000  # looked at for one glob

# import name → what installs it, where that is no distribution of the same name
_EXTRAS = {
    "magika": "tapml[recipes]",
    "rapidocr_onnxruntime": "tapml[recipes]",
    "skimage": "tapml[recipes]",
    "onnx": "tapml[onnx]",
    "onnxruntime": "tapml[onnx]",
    "torch": "tapml[torch]",
}


@dataclass(frozen=True)
class Located:
    """A path with the folder that it must not leave, and the package that it lies in, if any."""

    path: Path
    root: Path
    package: str | None = None


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises: RecipeError when no package can have the name; EnvironmentalError, with the command
    that installs it, when it is missing.
    """
    if not name.isidentifier():
        raise RecipeError(message=f"{shorten(name)} is no name of a package")
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without __spec__
        spec = None
    if spec is None:
        raise EnvironmentalError(
            message=f"package {name!r} is not installed",
            hint=f"pip install '{_EXTRAS.get(name, name)}'",
        )
    folders = list(spec.submodule_search_locations or ())
    if not folders:
        raise RecipeError(message=f"{name!r} is a module, not a package with a folder")
    return Path(folders[0]).resolve()


def check_references(text: str) -> None:
    """Raises what is wrong with the `${…}` of a string."""
    for inside in REFERENCE.findall(text):
        scheme, colon, name = inside.partition(":")
        if scheme != "package" or not colon:
            message = f"unknown reference {shorten('${' + inside + '}')}"
            raise RecipeError(message=message, hint=_REFERENCES)
        package_folder(name)
        if not text.startswith("${" + inside + "}"):
            message = f"{shorten('${' + inside + '}')} must stand at the start of a path"
            raise RecipeError(message=message)


def locate(text: str, folder: Path, *, may_be_absolute: bool) -> Located:
    """Where a path of a recipe in `folder` points.

    Raises: RecipeError when it leaves the folder (after symlinks), unless it starts with
    `${package:…}` or, with `may_be_absolute`, is absolute.
    """
    root, package, rest = folder, None, text
    if found := REFERENCE.match(text):
        check_references(text)
        package = found[1].partition(":")[2]
        root, rest = package_folder(package), text[found.end() :].lstrip("/") or "."
    elif may_be_absolute and os.path.isabs(text):
        root = Path("/")
    try:
        path = (root / rest).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # name too long, NUL byte, symlink loop
        raise RecipeError(message=f"{shorten(text)}: {_reason(error)}") from error
    if not path.is_relative_to(root):
        message = f"{shorten(text)} leaves the {'package' if package else 'recipe'}'s folder"
        hint = (
            "" if package else "put the file beside the recipe, or give an absolute path by --set"
        )
        raise RecipeError(message=message, hint=hint)
    return Located(path, root, package)


def digest_file(located: Located, text: str) -> str:
    """sha256 of a regular file. Raises: RecipeError, with the nearest name, when there is none."""
    path = located.path
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise RecipeError(message=f"{shorten(text)} is {kind}")
        return _digest(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise RecipeError(message=f"no file {shorten(text)}", hint=_nearest_file(path)) from None
    except OSError as error:
        raise RecipeError(message=f"{shorten(text)}: {_reason(error)}") from error


def file(located: Located, text: str) -> File:
    return File(path=str(located.path), sha256=digest_file(located, text))


def folder(located: Located, text: str, names: Sequence[str]) -> Folder:
    """The files of a folder (not of those in it) whose name a wildcard fits, with their digests.

    Raises: RecipeError when there is no folder or no such file, or a link leads out of what the
    path may not leave.
    """
    if located.path.is_file():
        raise RecipeError(message=f"{shorten(text)} is a file, not a folder")
    if not located.path.is_dir():
        message, hint = f"no folder {shorten(text)}", _nearest_file(located.path)
        raise RecipeError(message=message, hint=hint)
    files: dict[str, File] = {}
    for name in sorted({name for one in names for name in _matching(located.path, [one])}):
        path = (located.path / name).resolve()
        if not path.is_relative_to(located.root):
            raise RecipeError(message=f"{shorten(text)} leaves the folder by {shorten(name)}")
        if path.is_file():
            files[name] = file(Located(path, located.root), name)
    if not files:
        raise RecipeError(message=f"{shorten(text)} holds none of {', '.join(names)}")
    return Folder(path=str(located.path), files=files)


def python(ref: PythonRef, located: Located, text: str, reads: dict[str, Path]) -> PythonFunction:
    """The function of `ref`, found by reading its file.

    The digest covers the file, the modules beside it and the files that it `reads` (name → path);
    for a function of an installed package, the package's version instead of its modules.
    """
    function = ref.python.rpartition(":")[2]
    if located.path.is_file() and located.path.stat().st_size > MAX_PYTHON_BYTES:
        raise RecipeError(message=f"{shorten(text)} has more than {MAX_PYTHON_BYTES} bytes")
    own = digest_file(located, text)
    parts, files = [f"self\0{own}"], {located.path.name: own}
    names = _top_level_names(located.path, text)
    if "*" not in names and function not in names:
        message = f"{shorten(text)} has no function {function!r}"
        raise RecipeError(message=message, hint=nearest(function, names, noun="it has"))
    if located.package is not None:
        inside = located.path.relative_to(located.root)
        version = _version(located.package)
        parts.append(f"package\0{located.package}\0{version}\0{inside}")
        files[f"package {located.package}"] = version
    else:
        for path in sorted(located.path.parent.glob("*.py")):
            if path.is_file():
                digest = digest_file(Located(path, located.root), path.name)
                parts.append(f"module\0{path.name}\0{digest}")
                files[path.name] = digest
    for name, path in sorted(reads.items()):
        digest = digest_file(Located(path, located.root), name)
        parts.append(f"reads\0{name}\0{digest}")
        files[name] = digest
    total = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return PythonFunction(path=str(located.path), function=function, sha256=total, files=files)


def expand_glob(pattern: str, folder: Path, *, may_be_absolute: bool) -> dict[str, Path]:
    """The files that a glob of `reads` names, by the name that the recipe knows them by.

    Links to files are followed, as far as they stay in the folder.
    Raises: RecipeError when there is none, or too many, or a wildcard meets a link to a folder.
    """
    head, magic, _ = (
        re.split(r"([*?\[])", pattern, maxsplit=1)[:3]
        if glob.has_magic(pattern)
        else (pattern, "", "")
    )
    if not magic:
        located = locate(pattern, folder, may_be_absolute=may_be_absolute)
        digest_file(located, pattern)
        return {pattern: located.path}
    base_text = head.rpartition("/")[0]
    rest = pattern[len(base_text) :].lstrip("/")
    base = locate(base_text or ".", folder, may_be_absolute=may_be_absolute)
    found: dict[str, Path] = {}
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise RecipeError(message=f"{shorten(pattern)} leaves the folder by '..'")
    for name in _matching(base.path, parts):
        path = (base.path / name).resolve()
        if not path.is_file():
            continue
        if not path.is_relative_to(base.root):
            raise RecipeError(message=f"{shorten(pattern)} leaves the folder by {shorten(name)}")
        found[f"{base_text}/{name}"] = path
        if len(found) > MAX_FILES:
            raise RecipeError(message=f"{shorten(pattern)} names more than {MAX_FILES} files")
    if not found:
        raise RecipeError(message=f"no file matches {shorten(pattern)}")
    return found


def _matching(base: Path, parts: Sequence[str]) -> Iterator[str]:
    """What of a folder is named by the parts of a glob, as paths from it.

    A folder is looked at once for each part, and links lead into none: nothing makes it endless.
    """
    looked_at = 0
    seen: set[tuple[str, int]] = set()
    todo = [("", 0)]
    while todo:
        folder, index = todo.pop()
        if (folder, index) in seen:
            continue
        seen.add((folder, index))
        part, is_last = parts[index], index == len(parts) - 1
        if part == "**" and not is_last:
            todo.append((folder, index + 1))
        for entry in _entries(base / folder):
            looked_at += 1
            if looked_at > MAX_ENTRIES:
                message = f"more than {MAX_ENTRIES} files would have to be looked at"
                raise RecipeError(message=message, hint="name folders, not `**`")
            if entry.name.startswith(".") and not part.startswith("."):
                continue
            name = f"{folder}{entry.name}"
            if part != "**" and not fnmatchcase(entry.name, part):
                continue
            if entry.is_dir() and (part == "**" or not is_last):
                if entry.is_symlink():  # what lies behind it would be read and in no key
                    message = f"{shorten(name)} is a link to a folder, which no wildcard follows"
                    raise RecipeError(message=message, hint="name what is behind it by itself")
                todo.append((f"{name}/", index if part == "**" else index + 1))
            elif is_last:
                yield name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # no folder, or not for us
        return []


@lru_cache(maxsize=4096)
def _digest(path: Path, *_identity: int) -> str:
    """Digest of a file; remembered as long as device, inode, size and time of change stay."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _top_level_names(path: Path, text: str) -> list[str]:
    """Names that a module binds at its top level; `*` when it imports all of another."""
    source = path.read_bytes()
    try:
        tree = ast.parse(source, filename=str(path))
    except SyntaxError as error:
        message = f"{shorten(text)}, line {error.lineno or 0}: {printable(error.msg)}"
        raise RecipeError(message=message) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecipeError(message=f"{shorten(text)} is no Python: {_reason(error)}") from error
    return sorted(set(_bound(tree.body)))


def _bound(body: list[ast.stmt]) -> list[str]:
    names: list[str] = []
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names += [alias.asname or alias.name.partition(".")[0] for alias in aliases]
            case ast.Assign(targets=targets):
                names += [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.If(body=then, orelse=orelse):
                names += _bound(then) + _bound(orelse)
            case ast.Try(body=then, handlers=handlers, orelse=orelse, finalbody=final):
                names += _bound([*then, *orelse, *final])
                names += [name for handler in handlers for name in _bound(handler.body)]
            case ast.With(body=then):
                names += _bound(then)
            case _:
                pass
    return names


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        owners = metadata.packages_distributions().get(package, [])
        return ",".join(f"{owner}=={metadata.version(owner)}" for owner in sorted(set(owners)))


def _nearest_file(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"there is no folder {printable(str(path.parent))}"
    names = [entry.name for entry in sorted(folder.iterdir())[:2000]]
    hint = nearest(path.name, names)
    return printable(hint) if hint.startswith("did") else f"looked in {printable(str(folder))}"


def _reason(error: BaseException) -> str:
    return printable(
        error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    )
