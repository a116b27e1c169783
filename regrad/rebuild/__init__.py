"""A whole rebuild: steps that are skipped when they are done, versions, promotion by a score, and plans."""
