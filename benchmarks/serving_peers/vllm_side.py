"""vLLM's side of `peers.py`, run by a Python that has vLLM and not this project: see `ours.py` for the lines."""

from __future__ import annotations

import json
import os
import sys
from time import perf_counter, process_time
from typing import Any

# In one process, so that its processor time is all there is; and on one core, without moving other threads about.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    """Answer line by line."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    torch.set_num_threads(1)
    settings = json.loads(sys.argv[1])
    count = settings["requests"]
    lora: dict[str, Any] = {}
    if count:
        lora = {"enable_lora": True, "max_loras": count, "max_cpu_loras": 2 * count, "max_lora_rank": 16}
    llm = LLM(
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=1024,
        max_num_seqs=64,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **lora,
    )
    numbers: dict[str, int] = {}
    for line in sys.stdin:
        work = json.loads(line)
        new = work["new_tokens"]
        params = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
        asked = [TokensPrompt(prompt_token_ids=ids) for ids in work["prompts"]]
        updates = None
        if work["adapters"]:
            places = [(place, numbers.setdefault(place, len(numbers) + 1)) for place in work["adapters"]]
            updates = [LoRARequest(str(number), number, place) for place, number in places]
        wall, cpu = perf_counter(), process_time()
        answers = llm.generate(asked, params, lora_request=updates, use_tqdm=False)
        times = {"cpu": process_time() - cpu, "wall": perf_counter() - wall}
        print(json.dumps(times | {"tokens": [list(each.outputs[0].token_ids) for each in answers]}), flush=True)


if __name__ == "__main__":
    main()
