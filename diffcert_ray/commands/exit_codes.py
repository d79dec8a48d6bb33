"""The exit codes of every command: done, failed, bad use, incomplete (run the same again)."""

DONE, FAILED, BAD_USE, INCOMPLETE = 0, 1, 2, 3
