"""The lab report: what is run, what is concluded from the records, and how it is written. Knows no Ray."""
