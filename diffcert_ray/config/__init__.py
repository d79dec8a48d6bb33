"""The configuration of a run: its tables, how it is read, and its identity."""
