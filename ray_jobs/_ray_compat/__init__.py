"""All that the jobs use of Ray's private modules, which any minor release may move: hence the upper pin of `ray`.

A file for each of Ray's libraries, so that a process that trains nothing does not load Ray Train, and torch with it.

To raise the pin, check each name here against the new release, and look for the public one that its comment asks for.
"""
