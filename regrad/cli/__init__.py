"""The `regrad` command: a file for each group of verbs; every verb that runs a Ray job is a row in `jobs.py`."""
