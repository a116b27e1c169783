"""The `regrad` command, one file a verb."""
