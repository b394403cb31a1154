#!/usr/bin/env python3
"""Rows of the engine table by Transformers in bf16: transformers_rows.py GGUF THREADS.

Reads `prefill N` and `decode N` lines, writes tokens a second for each. The
weights are those of the GGUF file; a static batch, so the fastest loop that
Transformers has on a processor without compiling. Needs: torch,
transformers==5.17.0, gguf==0.19.0, numpy.
"""

import os
import sys
import time

import torch
from transformers import AutoModelForCausalLM, logging

CONTEXT, GENERATED = 128, 64


def prefill(model, tokens: int) -> float:
    prompt = torch.randint(100, 30_000, (1, tokens))
    began = time.perf_counter()
    model(prompt, use_cache=True, logits_to_keep=1)
    return tokens / (time.perf_counter() - began)


def decode(model, streams: int) -> float:
    prompts = torch.randint(100, 30_000, (streams, CONTEXT))
    out = model(prompts, use_cache=True, logits_to_keep=1)
    began = time.perf_counter()
    for _ in range(GENERATED):
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    return streams * GENERATED / (time.perf_counter() - began)


def main(file: str, threads: int) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    folder, name = os.path.split(os.path.abspath(file))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        prefill(model, CONTEXT)
        print("ready", flush=True)
        for line in sys.stdin:
            kind, size = line.split()
            rate = {"prefill": prefill, "decode": decode}[kind](model, int(size))
            print(f"{rate:.2f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]))
