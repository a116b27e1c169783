"""Synthetic supervision: a language model writes questions for passages that have none, and the same model judges them.

`pairs` reads what was written, `writer` makes the drafts of passages and judges them one by one, `tasks` compares
passages with each other and lays out meta-training tasks.
"""
