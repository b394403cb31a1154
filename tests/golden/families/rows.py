"""One row for each family: its name and a `config.json` as the Hub has it, but tiny."""

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rope_theta": 10000.0}

QWEN = {"hidden_act": "silu", "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "sliding_window": 8, "max_window_layers": 2}

GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}

PHI3 = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_act": "silu", "tie_word_embeddings": False}

# `_dtype` and `_shards` say how the weights are saved.
ROWS = {
    "llama2": LLAMA | {"tie_word_embeddings": False, "num_key_value_heads": 4, "_dtype": "float32", "num_hidden_layers": 2},
    "llama2-linear": LLAMA | {"tie_word_embeddings": False, "rope_scaling": {"type": "linear", "factor": 4.0}, "_dtype": "float16"},
    "llama3": LLAMA
    | {
        "rope_theta": 500000.0,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "eos_token_id": [2, 3],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "head_dim": 16,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    | QWEN
    | {"use_sliding_window": False, "tie_word_embeddings": True, "_shards": True},
    "qwen2-window": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    | QWEN
    | {
        "use_sliding_window": True,
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    | QWEN
    | {
        "use_sliding_window": False,
        "sliding_window": None,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "rope_theta": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "gemma2": {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
        "rope_theta": 10000.0,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 12.0,
    }
    | GEMMA,
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 7,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "_sliding_window_pattern": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }
    | GEMMA,
    "phi3": PHI3 | {"sliding_window": 8, "rope_scaling": None, "rope_theta": 10000.0, "num_key_value_heads": 4},
    # Every sequence is longer than the original context, so that the long factors hold from the start.
    "phi3-longrope": PHI3
    | {
        "sliding_window": 262144,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 4,
        "partial_rotary_factor": 0.75,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4],
            "long_factor": [1.0, 1.5, 2.5, 4.0, 9.0, 16.0],
        },
    },
    "smollm2": LLAMA | {"tie_word_embeddings": True, "rope_theta": 100000.0, "rope_interleaved": False},
    "smollm3": {
        "model_type": "smollm3",
        "architectures": ["SmolLM3ForCausalLM"],
        "hidden_act": "silu",
        "rope_theta": 5000000.0,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0],
        "use_sliding_window": False,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "olmo2": {
        "model_type": "olmo2",
        "architectures": ["Olmo2ForCausalLM"],
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
}


def settings(row: dict) -> dict:
    """The row as `config.json`."""
    json = SIZES | row
    return {key: value for key, value in json.items() if key not in ("_dtype", "_shards")}
