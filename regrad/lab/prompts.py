"""The lab's prompt format, the one its base model was trained on."""

from regrad.prompts import PromptFormat

LAB_PROMPTS = PromptFormat(
    passage="{title}\n {text}",
    atom=" {passage}",
    context="Passage: {passage}\n",
    question="Question: {question}\nAnswer:",
    answer=" {answer}",
)
