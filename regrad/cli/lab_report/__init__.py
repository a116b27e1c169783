"""`regrad lab report`, behind the command: the steps on a cluster, one after the other or side by side."""
