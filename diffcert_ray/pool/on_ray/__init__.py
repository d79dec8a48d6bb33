"""All that imports Ray: workers as actors, the cluster they are in, calibration there, metrics."""

import os
import sys

if "ray" not in sys.modules:  # Ray reads them while it is imported, and never again
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # calls of a lost actor are dropped
