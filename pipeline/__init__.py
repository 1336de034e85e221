"""Trains, distils, judges and exports relevance models; every stage turns artifacts into one artifact.

Importing this package tells the libraries that we use not to report to their makers. Each of our other packages imports
it first, so the variables are set before any of these libraries is imported.
"""

import os

NO_TELEMETRY = {
    # ONNX Runtime 1.29 and later look up a host of Microsoft's and keep a device number in ~/.cache/Microsoft.
    "ORT_DISABLE_TELEMETRY": "1",
    # Prefect's server counts its users; its client and others read the second name.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The hub's client names the versions of all libraries when it downloads a model.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ray counts its users once it is told an address.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables that switch telemetry off; a value that was set before is replaced."""

os.environ.update(NO_TELEMETRY)
