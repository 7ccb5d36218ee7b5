"""Builds of mmkern, and several of them in one process.

The gate calls two builds in turns on the same tensors, so both live in one process. A Python
package and an operator namespace exist there once; a build is therefore loaded from a copy in
which the name ``mmkern`` is another one of as many letters, in its sources and in its extension.
Nothing is compiled for that, and not a byte of the machine code moves.
"""

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

NAME = "mmkern"
#: the letters of the name that a copy changes. Compilers for x86-64 store a short literal as
#: constants of four bytes and less, so that the whole name need not lie in one piece.
PIECE = 4
#: what the extension is made of
NATIVE = ("csrc", "setup.py")
#: what a build is made of
SOURCES = ("mmkern", "kernels", *NATIVE)


class BuildError(ValueError):
    """There is no such build, or it cannot be made."""


@dataclass(frozen=True)
class Build:
    """A build on disk. package: its folder ``mmkern``; kernels: that of the device code, or None.

    label: what the user called it, and the commit that it is.
    """

    label: str
    package: Path
    kernels: Path | None

    @property
    def extension(self):
        """The compiled extension, None if there is none."""
        return next(self.package.glob("_C*.so"), None)

    def stale(self):
        """Whether a work tree has a C++ source that is newer than its extension."""
        if self.extension is None or not self.package.with_name(".git").exists():
            return False
        sources = [p for p in self.package.with_name("csrc").rglob("*") if p.is_file()]
        newest = max((p.stat().st_mtime for p in sources), default=0.0)
        return newest > self.extension.stat().st_mtime


def find(spec, repository, cache):
    """The Build that ``spec`` names: a folder with the package in it, or a git revision.

    A revision is taken out of ``repository`` into ``cache`` and built there, once; where the C++
    sources are those of the working tree, its extension serves.

    Raises:
        BuildError: neither of them, or it does not compile.
    """
    folder = Path(spec)
    if (folder / NAME / "__init__.py").is_file():
        return _of_folder(spec, folder)
    if folder.name == NAME and (folder / "__init__.py").is_file():
        return _of_folder(spec, folder.parent)
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{spec}^{{commit}}")
    if commit is None:
        raise BuildError(
            f"{spec!r} is neither a folder with {NAME}/__init__.py in it nor a git revision of "
            f"{repository}"
        )
    tree = cache / commit[:12]
    if not (tree / "complete").is_file():
        _check_out(repository, commit, tree)
        _give_extension(repository, commit, tree)
        (tree / "complete").touch()
    return _of_folder(f"{spec} ({commit[:12]})", tree)


def _of_folder(spec, folder):
    device_code = folder / "kernels"
    # of a work tree: the commit, and whether it is changed
    commit = _git(folder, "describe", "--always", "--dirty", "--abbrev=12")
    label = f"{spec} ({commit})" if commit and (folder / ".git").exists() else spec
    return Build(label, folder / NAME, device_code if device_code.is_dir() else None)


def previous(repository):
    """The commit of ``main`` that the working tree is to be held against, None if there is none.

    On a branch it is where the branch left main; on main itself the commit before, or, with
    uncommitted changes to the sources, the last one. Without a branch ``main``, in a clone that a
    machine made for one commit, it is the commit before.
    """
    main = next((m for m in ("main", "origin/main") if _commit(repository, m)), "HEAD")
    base = _git(repository, "merge-base", "HEAD", main)
    if base is None or base != _commit(repository, "HEAD"):
        return base
    changed = _git(repository, "status", "--porcelain", "--", *SOURCES)
    return base if changed else _commit(repository, "HEAD^")


def _commit(repository, revision):
    return _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")


def _git(repository, *arguments):
    """The output of a git command, None where it fails."""
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _check_out(repository, commit, tree):
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    archive = ["git", "-C", str(repository), "archive", commit]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as source:
        unpacked = subprocess.run(["tar", "-x", "-C", str(tree)], stdin=source.stdout)
    if source.returncode or unpacked.returncode:
        raise BuildError(f"git archive {commit} of {repository} failed")


def _give_extension(repository, commit, tree):
    here = _of_folder(".", Path(repository)).extension
    if here and _git(repository, "diff", "--quiet", commit, "--", *NATIVE) is not None:
        shutil.copy2(here, tree / NAME)
        return
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{commit[:12]} does not compile:\n{done.stdout[-2000:]}{done.stderr}")


class Loaded:
    """Builds imported side by side; a context manager that owns their copies on disk.

    ``modules`` are the packages, in the order of ``builds``. The same build twice is loaded twice.
    """

    def __init__(self, builds):
        self.folder = tempfile.TemporaryDirectory(prefix="mmkern-builds-")
        try:
            self.modules = [self._load(build) for build in builds]
        except BaseException:
            self.folder.cleanup()
            raise

    def __enter__(self):
        return self.modules

    def __exit__(self, *exc):
        # imported modules and mapped extensions outlive their files
        self.folder.cleanup()

    def _load(self, build):
        name = f"k{_serial():03d}{NAME[PIECE:]}"
        copy_as(build, name, Path(self.folder.name))
        sys.path.insert(0, self.folder.name)
        try:
            importlib.invalidate_caches()
            module = importlib.import_module(name)
        except Exception as error:
            raise BuildError(f"{build.label} cannot be imported: {error}") from error
        finally:
            sys.path.remove(self.folder.name)
        if build.extension and not any(row["cpu"][0] for row in module.info().values()):
            raise BuildError(
                f"{build.label}: its extension does not follow another name; wanted one for x86-64"
            )
        return module


_loaded = 0


def _serial():
    """A number that no build of this process has had: an operator namespace exists once."""
    global _loaded
    _loaded += 1
    return _loaded


def copy_as(build, name, folder):
    """Copy a build's package to ``folder``/``name``, with ``mmkern`` named ``name`` inside.

    Raises:
        ValueError: ``name`` has another length or end, which would not do in the extension.
    """
    if len(name) != len(NAME) or name[PIECE:] != NAME[PIECE:]:
        raise ValueError(f"name is {name!r}; wanted {PIECE} letters and {NAME[PIECE:]!r}")
    pieces = {
        ".py": (NAME.encode(), name.encode()),
        ".so": (NAME[:PIECE].encode(), name[:PIECE].encode()),
    }
    trees = [(build.package, folder / name)]
    if build.kernels:
        trees.append((build.kernels, folder / name / "kernels"))
    for source, target in trees:
        for path in sorted(source.rglob("*")):
            if path.suffix in pieces and "__pycache__" not in path.parts:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes().replace(*pieces[path.suffix]))


def fingerprint(build):
    """A short hash of a build's Python and machine code: equal ones cannot differ in speed."""
    digest = hashlib.sha256()
    for source in filter(None, (build.package, build.kernels)):
        for path in sorted(source.rglob("*")):
            if path.suffix in (".py", ".so") and "bench" not in path.relative_to(source).parts:
                digest.update(os.fsencode(path.relative_to(source)) + path.read_bytes())
    return digest.hexdigest()[:12]
