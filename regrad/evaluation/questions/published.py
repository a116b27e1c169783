"""The SHA-256 of the published files, as those who published or mirrored them state it."""

from __future__ import annotations

from regrad.config.evaluation import QuestionSetConfig
from regrad.evaluation.questions.files import unpacked_name

PUBLISHED = {
    "2wikimultihopqa": {
        "dev.json": "79f77ae104088ea8e25b1a65dbece768d45771194663bc5660ec9a98070dadf5",  # of data_ids_april7.zip
        "2wikimultihopqa.json": "895cba294064df0c3302c76847b1fc08d99b5619f7663dfaa3b65cd780f1cac4",  # HippoRAG's
    },
    "hotpotqa": {
        "hotpot_train_v1.1.json": "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316",
        "hotpot_dev_distractor_v1.json": "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea",
        "hotpot_dev_fullwiki_v1.json": "2f1f3e594a3066a3084cc57950ca2713c24712adaad03af6ccce18d1846d5618",
    },
    "musique": {
        "musique_ans_v1.0_train.jsonl": "83a75b1e11e4e9bb8f8308e72ac40ca617ae4431b3a0d955b61cab259248490a",
        "musique_ans_v1.0_dev.jsonl": "15fa63794d18a94ce12411aca6e2327e65b6e83b0b1490efab3f1962e48abf3b",
        "musique_full_v1.0_train.jsonl": "b1cd998f7e0e2838d6fda024e4ad1eb0e7fc3edefdadb0bd9b5b10b0907f2034",
        "musique_full_v1.0_dev.jsonl": "8cab31d56a3a1c4ef491b205a8dab3f1ac9c66e472098c6cf1de4e20294f7a4a",
    },
    "popqa": {"popQA.tsv": "9a5227f41bff0e4c331d4a774d946b12f95307892b58f860a9606ef356e6089b"},
    "nq": {
        "NQ-open.train.jsonl": "0c93aaf13b12f855628489665e4ef85ffb8573ad444646f11f4fabdc57a0aabf",
        "NQ-open.dev.jsonl": "f15567f38099f3615f5b8a685c0aef449c11ad90d3da3735e8d1b98115b40616",
    },
    "pubmedqa": {"ori_pqal.json": "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d"},
}
"""Checksums by format and file name."""


def published_checksum(config: QuestionSetConfig) -> str | None:
    """The checksum that a set's file must have, unpacked: of one that bears a published file's name, compressed or not.

    None if it bears none, or if the settings state a checksum of their own, or `any`.
    """
    if config.sha256 is not None:
        return None
    return PUBLISHED.get(config.format, {}).get(unpacked_name(config.path))
