"""Whether a folder lies on another machine, where SQLite's locks and shared memory cannot be relied on."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

# Kinds of file systems whose files another machine holds; those in user space are named fuse.<program>.
NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|smb3|ncpfs|afs|coda|9p|ceph|lustre|gpfs|beegfs|pvfs2|orangefs|gfs2?|ocfs2|panfs|"
    r"glusterfs|mfs|moosefs|pohmelfs|davfs2?|fuse\.(sshfs|glusterfs|ceph|ceph-fuse|s3fs|goofys|gcsfuse|rclone|"
    r"davfs2?|juicefs|seaweedfs|mfs|moosefs|beegfs|nfs|smbnetfs|blobfuse2?|mount-s3|afp|afpfs|curlftpfs)"
)
ESCAPED = re.compile(r"\\([0-7]{3})")  # a space, a tab, a line's end or a backslash, in octal digits


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that `path` lies on, such as nfs4, or would if it were made; None for others.

    Also None where the system does not tell (it is not Linux).
    """
    try:
        text = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    kind = kind_of_mount(path.resolve(), text)
    return kind if kind is not None and NETWORK.fullmatch(kind) else None


def kind_of_mount(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that holds an absolute path, by the text of a /proc/PID/mountinfo.

    The longest mount point above the path counts, and of equals the last, which hides the others.
    """
    found: tuple[int, str | None] = (-1, None)
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = Path(ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= found[0]:
            found = (len(point.parts), right.split(" ", 1)[0])
    return found[1]
