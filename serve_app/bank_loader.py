"""Deployment: fetch the atoms of the retrieved passages and sum them, so that one vector travels, whatever k is."""

from __future__ import annotations

import asyncio
import time

import torch

from regrad.bank.reader import BankReader
from regrad.config import ServeConfig
from regrad.meta_init import read_card
from serve_app.messages import GradientSum, Retrieved


class BankLoaderDeployment:
    """Reads one version of the bank, bound to the MetaInit's fingerprint."""

    def __init__(self, config: ServeConfig) -> None:
        self._bank = BankReader(config.bank, read_card(config.meta_init)["fingerprint"], tiers=config.tiers)

    async def load(self, retrieved: Retrieved) -> GradientSum:
        """The sum [P] of the atoms, added in float32, sent in bf16; raises `BankError` if one is missing or damaged."""
        started = time.perf_counter()
        passages = [hit.passage for hit in retrieved.hits]
        total = await asyncio.to_thread(self._bank.sum, passages)
        milliseconds = (time.perf_counter() - started) * 1e3
        manifest = self._bank.manifest
        return GradientSum(total.to(torch.bfloat16), manifest.fingerprint, manifest.label, milliseconds)
