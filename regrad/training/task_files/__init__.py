"""Task files of question sets: what `regrad tasks` makes and `regrad train` reads."""
