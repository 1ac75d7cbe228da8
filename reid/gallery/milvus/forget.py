"""Taking what was deleted out of Milvus's files, as far as a client can ask for it."""

from __future__ import annotations

import time

from reid.gallery.milvus.client import Collections


def merge_files(at: Collections, wait: float) -> str:
    """Asks Milvus to take what was deleted out of its files; what it has done by then, a clause."""
    at.call("flush", at.images)
    if at.folder is not None:
        return (
            "Milvus Lite keeps deleted rows in its files until it merges these by itself: to be sure, merge "
            "what remains into another gallery and delete this one"
        )
    job = at.call("compact", at.images)
    end = time.monotonic() + wait
    while (state := str(at.call("get_compaction_state", job))) != "Completed" and time.monotonic() < end:
        time.sleep(0.2)
    done = "has merged its files" if state == "Completed" else f"was asked to merge its files (job {job}, {state})"
    return (
        f"Milvus {done} and deletes the old ones after its retention time (dataCoord.gc.dropTolerance); its "
        "message log and backups were not looked at"
    )
