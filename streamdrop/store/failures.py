"""LMDB's and the system's errors in our words."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import lmdb

from streamdrop.errors import StoreCorruptError, StoreError, StoreFullError, StoreVersionError

_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.BadTxnError)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def ours(error: BaseException, path: Path, file: Path, need: int) -> BaseException:
    """An error that LMDB's ``file`` in the folder ``path`` gave, as one of ours; any other as it is.

    ``need``: bytes that were being written.
    """
    if not isinstance(error, (lmdb.Error, OSError)):
        return error
    if isinstance(error, _DAMAGE):
        return StoreCorruptError(f"{path} is damaged ({error}): restore it, or start anew")
    if isinstance(error, lmdb.VersionMismatchError):
        return StoreVersionError(f"{path} has another LMDB version ({error}): use another path")
    if isinstance(error, lmdb.ReadersFullError):
        return StoreError(f"{path} has too many readers ({error}): close some")
    return _of_the_system(error, path, file, need)


def _of_the_system(error: Exception, path: Path, file: Path, need: int) -> StoreError:
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    # A write that the disk takes only in part is reported by LMDB as an I/O error.
    if code in _NO_ROOM or isinstance(error, lmdb.DiskError) or (code == errno.EIO and not _room_for(need, path, file)):
        free = shutil.disk_usage(path).free
        wanted, remedy = (f" for {need} bytes", "free that much") if need else ("", "free some space")
        return StoreFullError(f"no room in {path}{wanted} ({free} free): {remedy}; what is stored is whole")
    return StoreError(f"{path} cannot be used: {error}; check the folder and its permissions")


def _room_for(need: int, path: Path, file: Path) -> bool:
    grown = need + (1 << 16)
    if shutil.disk_usage(path).free < grown:
        return False
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    except ImportError:
        return True
    return limit == resource.RLIM_INFINITY or file.stat().st_size + grown <= limit
