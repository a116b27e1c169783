"""The ReGrad paper on the lab world: `plan.py` is what is run, `claims` what is concluded, `text.py` what is said.

`regrad lab report` runs it. It is not part of the installed package: it needs a checkout of the repository.
"""
