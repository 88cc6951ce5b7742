"""The precondition gate: cheap questions asked of the file system before a session costs anything."""

from __future__ import annotations

from pathlib import Path

from perdure.daemon.clock import MICROSECONDS

FILES_MAX = 100_000  # looked at before the gate simply opens


def files_changed_since(workspace: Path, pattern: str, since: int) -> bool:
    """Whether a file matching the glob `pattern` (the workspace's, or absolute) changed after `since` (microseconds UTC)."""
    absolute = Path(pattern)
    root, relative = (Path("/"), str(absolute.relative_to("/"))) if absolute.is_absolute() else (workspace, pattern)
    for count, path in enumerate(root.glob(relative)):
        if count >= FILES_MAX:
            return True
        try:
            status = path.stat()
        except OSError:
            continue
        if path.is_file() and max(status.st_mtime_ns, status.st_ctime_ns) // 1_000 >= since - MICROSECONDS:
            return True
    return False
