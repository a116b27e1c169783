"""`regrad ask`."""

from __future__ import annotations

from typing import Any

import click

from regrad.client import AnswerClient


@click.command("ask")
@click.argument("question")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Where the server is.")
@click.option("--method", default="regrad", show_default=True, help="direct, rag, regrad, regrad+icl, regrad-online.")
@click.option("--k", default=3, show_default=True, help="How many passages to retrieve.")
@click.option("--gamma", default=1.0, show_default=True, help="Scale of the update.")
@click.option("--max-new-tokens", default=20, show_default=True, help="Length of the answer at most.")
def command(question: str, url: str, method: str, k: int, gamma: float, max_new_tokens: int) -> None:
    """Ask a running server one question; shows the answer, the passages behind it and where the time went.

    The API key, if the server wants one, is taken from REGRAD_API_KEY.
    """
    options = {"method": method, "k": k, "gamma": gamma, "max_new_tokens": max_new_tokens}
    answer = AnswerClient(url).answer(question, **options)
    for passage in answer["passages"]:
        score = "" if passage["score"] is None else f"{passage['score']:.3f}"
        click.echo(f"  {score:>8}  {passage['tier'] or '':8}  {passage['id']}  {passage['title']}", err=True)
    for step in answer["degraded"]:
        click.echo(f"  degraded ({step['policy']}): {step['reason']}", err=True)
    click.echo(_footer(answer), err=True)
    click.echo(answer["answer"])


def _footer(answer: dict[str, Any]) -> str:
    stages = "  ".join(f"{name} {value:.1f}" for name, value in answer["milliseconds"].items())
    bank = f"  bank {answer['bank_version']}" if answer["bank_version"] else ""
    return f"  {answer['method']}{bank}  prompt {answer['usage']['prompt_tokens']} tokens  ms: {stages}"
