"""The report of finished certificates: tables, curves, one HTML page, logs."""
