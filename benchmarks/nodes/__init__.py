"""Nodes of a cluster that are all on this machine, and what they take to build a bank and to serve."""
