#!/usr/bin/env python3
"""Says what Gemma 3 270M answers: writes gemma3-270m-q4_k_m.json.

Requirements: torch 2.15 (CPU), transformers 5.17, gguf 0.19, sentencepiece 0.2, protobuf 6.
Usage: python tests/golden/gemma3.py gemma-3-270m-q4_k_m.gguf
"""

import json
import pathlib
import re
import sys

import gguf
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2 as proto
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

HERE = pathlib.Path(__file__).parent
STEPS = 32
EOS = (1, 106)
CONTROL = re.compile(r"(<bos>|<eos>|<start_of_turn>|<end_of_turn>)")
NAMES = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
RELAY = (
    "A relay race is run by a team. The first runner carries the baton through the first part of the track "
    "and hands it to the second runner, who must already be running when it comes. "
)
CASES = {
    "raw-3": "<bos>Once upon a",
    "raw-code-fib": "<bos>def fibonacci(n):\n    if n < 2:\n        return n\n    ",
    "raw-unicode": "<bos>Le café à côté — 日本語のテキスト 🙂🚀 naïve\tTab\n\n  two   three    spaces: ",
    "raw-special-in-text": "<bos>Tables use <table><tr><td>1</td></tr></table> and\n\n\n- lists",
    # The model is not tuned for Gemma's turns, and its file has no chat template.
    "chat-capital": "<bos>Question: What is the capital of Japan?\nAnswer:",
    "raw-turns": "<bos><start_of_turn>user\nWhat is the capital of Japan?<end_of_turn>\n<start_of_turn>model\n",
    # Longer than the window of 512 tokens.
    "raw-relay-700": "<bos>" + RELAY * 18,
}


def name(tensor: str) -> str:
    if tensor in WHOLE:
        return WHOLE[tensor]
    _, layer, part, suffix = tensor.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{suffix}"


def model(reader: gguf.GGUFReader) -> Gemma3ForCausalLM:
    def value(key: str):
        return reader.fields[f"gemma3.{key}"].contents()

    config = Gemma3TextConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].contents()),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        query_pre_attn_scalar=value("attention.key_length"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        sliding_window=value("attention.sliding_window"),
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": value("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        attn_implementation="eager",
    )
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        # Norms are stored as they are used, and Transformers adds 1. The rest is rounded as engines do.
        state[name(tensor.name)] = values - 1 if values.ndim == 1 else values.bfloat16().float()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    result = Gemma3ForCausalLM(config).eval()
    result.load_state_dict(state)
    return result


def pieces(reader: gguf.GGUFReader) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer as SentencePiece itself runs it."""
    keys = (reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    spec = proto.ModelProto()
    for index, (token, score, kind) in enumerate(zip(*keys)):
        kind = 2 if index == 3 else kind
        spec.pieces.add(piece=token.replace(" ", "▁"), score=score, type=kind)
    spec.trainer_spec.model_type = 2
    spec.trainer_spec.byte_fallback = True
    spec.trainer_spec.unk_id, spec.trainer_spec.bos_id = 3, 2
    spec.trainer_spec.eos_id, spec.trainer_spec.pad_id = 1, 0
    spec.normalizer_spec.name = "identity"
    spec.normalizer_spec.add_dummy_prefix = False
    spec.normalizer_spec.remove_extra_whitespaces = False
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(spec.SerializeToString())
    return processor


def encode(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """Control tokens are meant as such."""
    ids = []
    for part in CONTROL.split(text):
        ids += [processor.PieceToId(part)] if CONTROL.fullmatch(part) else processor.Encode(part)
    return ids


def decode(processor: sentencepiece.SentencePieceProcessor, ids: list[int]) -> str:
    data = b""
    for token in ids:
        piece = processor.IdToPiece(token)
        data += bytes([int(piece[3:5], 16)]) if processor.IsByte(token) else piece.replace("▁", " ").encode()
    return data.decode(errors="replace")


@torch.no_grad()
def case(network: Gemma3ForCausalLM, processor, title: str, prompt: str) -> dict:
    prompt_ids = encode(processor, prompt)
    assert decode(processor, prompt_ids) == prompt, (title, decode(processor, prompt_ids))
    ids, cache, output, steps, first = prompt_ids, None, [], [], None
    for _ in range(STEPS):
        result = network(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits, cache = result.logits[0, -1], result.past_key_values
        top = logits.topk(5)
        values = [round(float(value), 5) for value in top.values]
        first = first or {"ids": top.indices.tolist(), "logits": values, "logsumexp": round(float(logits.logsumexp(0)), 5)}
        steps.append({"top2_ids": top.indices[:2].tolist(), "top2_logits": values[:2], "gap": round(values[0] - values[1], 5)})
        ids = [int(top.indices[0])]
        output += ids
    # The same from the whole text at once, without a cache.
    whole = network(torch.tensor([prompt_ids + output[:-1]]), logits_to_keep=STEPS).logits[0]
    deviation = max(abs(float(row.max()) - step["top2_logits"][0]) for row, step in zip(whole, steps))
    assert whole.argmax(-1).tolist() == output or min(step["gap"] for step in steps) < 1e-3, title
    assert deviation < 1e-3, (title, deviation)

    def until(gap: float) -> int:
        return next((index for index, step in enumerate(steps) if step["gap"] < gap), STEPS)

    end = next((index for index, token in enumerate(output) if token in EOS), None)
    return {
        "name": title,
        "kind": title.split("-")[0],
        "prompt_text": prompt,
        "prompt_ids": prompt_ids,
        "n_prompt": len(prompt_ids),
        "output_ids": output,
        "output_text": decode(processor, output),
        "output_text_until_eos": decode(processor, output[:end]),
        "first_eos_step": end,
        "first_step_top5": first,
        "steps": steps,
        "compare_until_f32": until(0.005),
        "compare_until": until(0.05),
        "compare_until_fast": until(0.3),
    }


def main() -> None:
    reader = gguf.GGUFReader(sys.argv[1])
    processor = pieces(reader)
    network = model(reader)
    cases = []
    for title, prompt in CASES.items():
        cases.append(case(network, processor, title, prompt))
        last = cases[-1]
        print(title, last["n_prompt"], last["compare_until_f32"], last["compare_until_fast"], repr(last["output_text"]), flush=True)
    lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in cases)
    meta = {
        "model": "Gemma 3 270M (Q4_K_M GGUF dequantised, matrices rounded to bf16)",
        "dtype": "float32 compute, eager attention",
        "decoding": f"greedy, {STEPS} steps, EOS ignored (1 and 106)",
        "tokenizer": "SentencePiece with the file's pieces and scores",
    }
    text = f'{{"meta": {json.dumps(meta)},\n"cases": [\n{lines}\n]}}\n'
    (HERE / "gemma3-270m-q4_k_m.json").write_text(text)


if __name__ == "__main__":
    main()
