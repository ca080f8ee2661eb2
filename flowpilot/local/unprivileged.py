"""PostgreSQL refuses to run as root: who runs it then, and where that user can reach its files."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
import uuid
from pathlib import Path

from flowpilot.local.errors import LocalError

PREFIX = "flowpilot-postgres-"
RECORD = "location"  # in the requested directory: where the files really are
OWNER = "requested-by"  # in the real directory: for which requested directory it is


def server_user() -> tuple[int, int] | None:
    """(uid, gid) of the user that runs the server if this process is root; else None: nobody else."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def can_reach(path: Path, user: tuple[int, int]) -> bool:
    """Whether `user` may enter every existing folder on the way to `path` (by permission bits)."""
    uid, gid = user
    path = path.resolve()
    for folder in (path, *path.parents):
        try:
            info = folder.stat()
        except FileNotFoundError:
            continue
        needed = stat.S_IXUSR if info.st_uid == uid else stat.S_IXGRP if info.st_gid == gid else stat.S_IXOTH
        if not info.st_mode & needed:
            return False
    return True


def reachable_directory(requested: Path, user: tuple[int, int] | None) -> Path:
    """The directory to use for `requested` (created, writable by `user`).

    It is `requested` itself wherever that can be reached. As root, below a folder that only root
    may enter (such as /root), it is a directory of its own in the system's directory for
    temporary files that outlive a restart, recorded in `requested`/location. The record counts,
    not the name: if `requested` is deleted and made anew, its data start anew too, and what
    deleted directories left there is removed.
    """
    requested.mkdir(parents=True, exist_ok=True)
    if user is None:
        return requested
    if can_reach(requested, user):
        os.chown(requested, *user)
        return requested
    _remove_abandoned()
    record = requested / RECORD
    if record.exists() and (recorded := Path(record.read_text().strip())).is_dir():
        return recorded
    key = hashlib.sha256(str(requested).encode()).hexdigest()[:12]
    real = scratch_root() / f"{PREFIX}{key}-{uuid.uuid4().hex[:8]}"
    record.write_text(f"{real}\n")  # before the directory: one without a record counts as abandoned
    real.mkdir(mode=0o755)
    (real / OWNER).write_text(f"{requested}\n")
    os.chown(real, *user)
    return real


def remove_reachable_directory(requested: Path) -> None:
    """Delete `requested` and, if its files are elsewhere, those."""
    record = requested / RECORD
    if record.exists():
        real = Path(record.read_text().strip())
        if real.name.startswith(PREFIX):
            shutil.rmtree(real, ignore_errors=True)
    shutil.rmtree(requested, ignore_errors=True)


def scratch_root() -> Path:
    """TMPDIR if set, else /var/tmp, which outlives a restart of the machine, else the system's default."""
    lasting = Path("/var/tmp")
    if os.environ.get("TMPDIR") or not os.access(lasting, os.W_OK):
        return Path(tempfile.gettempdir())
    return lasting


def _remove_abandoned() -> None:
    for real in scratch_root().glob(f"{PREFIX}*"):
        try:
            requested = Path((real / OWNER).read_text().strip())
            is_recorded = (requested / RECORD).read_text().strip() == str(real)
        except FileNotFoundError:
            is_recorded = not (real / OWNER).exists()  # just being made, or not one of ours
        if not is_recorded and not (real / "data" / "postmaster.pid").exists():
            shutil.rmtree(real, ignore_errors=True)


def reachable_copy(folders: list[Path], root: Path, version: str) -> Path:
    """A copy of `folders` (all below `root`, keeping their relative paths) that every user can read,
    made once per version; the counterpart of `root`."""
    copy = scratch_root() / f"flowpilot-binaries-{version}-{os.geteuid()}"
    if copy.is_dir() and copy.stat().st_uid == os.geteuid():
        return copy
    draft = Path(tempfile.mkdtemp(prefix="flowpilot-binaries-", dir=scratch_root()))
    draft.chmod(0o755)
    for folder in folders:
        shutil.copytree(folder, draft / folder.relative_to(root), symlinks=True)
    try:
        draft.rename(copy)
    except OSError:  # another process was faster
        shutil.rmtree(draft, ignore_errors=True)
    if copy.stat().st_uid != os.geteuid():
        raise LocalError(f"{copy} belongs to another user: remove it, or set TMPDIR to a directory of your own")
    return copy
