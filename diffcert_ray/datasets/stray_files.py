"""Files and folders that programs leave beside data: never a class, an image or a part of a table.

Hidden ones (.ipynb_checkpoints, .DS_Store, .cache, macOS's ._a.png), what archives and shares add
(__MACOSX, @eaDir, Thumbs.db, desktop.ini), and what Spark writes beside its tables (_SUCCESS).
"""

from __future__ import annotations

import re

_NAMES = frozenset(
    {
        "__macosx",
        "__pycache__",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "icon\r",
        "cvs",
    }
)
_COPIES = re.compile(r"~$|^~\$")  # an editor's copy, an open office file
_TABLE_COMPANIONS = re.compile(r"_[A-Za-z]")  # _SUCCESS, _temporary, _delta_log, _metadata


def is_stray(name: str) -> bool:
    """Whether a file or folder of this name is none of the data.

    Args:
        name: the last part of a path.
    """
    return name.startswith(".") or name.lower() in _NAMES or _COPIES.search(name) is not None


def is_stray_path(path: str) -> bool:
    """The same of a path with ``/``, where a stray folder makes all in it stray."""
    return any(is_stray(part) for part in path.split("/"))


def is_stray_image(path: str) -> bool:
    """The same of an image by the path that a table gives for it, which may be another machine's.

    A hidden folder alone says nothing there: many caches are in one.
    """
    *folders, last = path.replace("\\", "/").split("/")
    return is_stray(last) or any(f.lower() in _NAMES | {".ipynb_checkpoints"} for f in folders)


def is_beside_a_table(path: str) -> bool:
    """Whether a file below a folder of Parquet is none of its rows, as Spark and Hive take it."""
    return is_stray_path(path) or any(_TABLE_COMPANIONS.match(part) for part in path.split("/"))
