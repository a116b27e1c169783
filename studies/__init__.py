"""What reproduces a paper: lists of `regrad` commands, claims and their tests, figures. Nothing else imports it."""
