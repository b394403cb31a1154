#!/usr/bin/env python3
"""Makes a tiny random checkpoint of every family, and what Transformers says of it.

Requirements: torch 2.15 (CPU), transformers 5.17, tokenizers 0.23, safetensors 0.8.
Usage: python tests/golden/families/make.py [NAME...]
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from rows import ROWS, settings

HERE = pathlib.Path(__file__).parent
TEXTS = {
    "short": "The baton is on its way.",
    "long": "A relay race is run by four; each one carries the baton as far as he can and hands it on.",
}
STEPS = 24
# A step whose two largest logits are nearer than this could fall either way.
GAP = 0.02


def tokenizer() -> Tokenizer:
    """256 bytes, a few merges, three control tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    control = [AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>", "<|eot|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(TEXTS.values())] * 4, trainer)
    return trained


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Values large enough that answers differ clearly, exact in bf16 and f16."""
    generator = torch.Generator().manual_seed(seed)
    # Embeddings that are scaled up would drown what the layers add.
    scaled = model.config.model_type.startswith("gemma")
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            # What they are before training, and a large last one where embeddings are small.
            last = 3.0 if name == "model.norm.weight" else 0.0
            values = (last if scaled else 1.0) + 0.25 * noise
        elif name.endswith("bias"):
            values = 0.5 * noise
        elif "embed" in name:
            values = (0.1 if scaled else 0.6) * noise
        else:
            values = noise * 1.6 / weight.shape[-1] ** 0.5
        weight.data = values.bfloat16().half().float()


@torch.no_grad()
def answer(model: torch.nn.Module, prompt: list[int]) -> dict:
    """Greedy tokens, computed from the whole sequence at every step."""
    ids, gaps, first = list(prompt), [], None
    for _ in range(STEPS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        top = logits.topk(16)
        gaps.append(float(top.values[0] - top.values[1]))
        if first is None:
            first = logits, top
        ids.append(int(top.indices[0]))
    logits, top = first
    return {
        "prompt_ids": prompt,
        "output_ids": ids[len(prompt) :],
        "smallest_gap": round(min(gaps), 5),
        "first_step_top16": [[int(i), round(float(v), 5)] for v, i in zip(*top)],
        "first_step_logits": [round(float(value), 5) for value in logits],
    }


def save(model: torch.nn.Module, directory: pathlib.Path, row: dict) -> None:
    dtype = getattr(torch, row.get("_dtype", "bfloat16"))
    state = {name: weight.to(dtype).contiguous() for name, weight in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for old in directory.glob("*.safetensors*"):
        old.unlink()
    if not row.get("_shards"):
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        return
    halves = {f"model-0000{half + 1}-of-00002.safetensors": dict(list(state.items())[half::2]) for half in range(2)}
    for file, tensors in halves.items():
        save_file(tensors, directory / file, metadata={"format": "pt"})
    index = {name: file for file, tensors in halves.items() for name in tensors}
    write(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def write(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def make(name: str, row: dict) -> None:
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    write(directory / "config.json", settings(row))
    text = tokenizer()
    text.save(str(directory / "tokenizer.json"), pretty=False)
    prompts = {kind: text.encode(prompt).ids for kind, prompt in TEXTS.items()}
    config = AutoConfig.from_pretrained(directory, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for seed in range(200):
        randomise(model, seed)
        answers = {kind: answer(model, prompt) for kind, prompt in prompts.items()}
        clear = min(case["smallest_gap"] for case in answers.values()) > GAP
        if clear and all(len(set(case["output_ids"])) >= 10 for case in answers.values()):
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear answers")
    save(model, directory, row)
    cases = [{"name": kind, "prompt_text": TEXTS[kind], **answers[kind]} for kind in TEXTS]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (directory / "golden.json").write_text(f'{{"seed": {seed}, "cases": [\n{lines}\n]}}\n')
    sizes = {kind: len(prompt) for kind, prompt in prompts.items()}
    print(name, "seed", seed, "prompts", sizes, "gaps", [case["smallest_gap"] for case in cases], flush=True)


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ROWS:
        make(name, ROWS[name])
