"""What reproduces a paper: lists of `regrad` commands, claims, figures. Only `regrad lab report` imports it."""
