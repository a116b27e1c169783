"""Predictors of updates: networks that say in a forward pass what gradient steps on a context would give."""
