"""Tiny models with random weights and a fixed seed, saved by transformers; prompts are token ids."""

import torch
import transformers

VOCABULARY = 640
MAX_LENGTH = 8192

# Head size 32 is the least that vLLM's own CPU backend takes. The initialiser ranges are wide enough for random weights
# to generate many distinct tokens.
_SMALL = dict(vocab_size=VOCABULARY, max_position_embeddings=MAX_LENGTH, initializer_range=0.25)


def _llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **_SMALL,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _qwen2():
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            **_SMALL,
            hidden_size=96,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=1,
        )
    )


def _opt():
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=MAX_LENGTH,
            init_std=0.25,
            hidden_size=128,
            ffn_dim=128,
            word_embed_proj_dim=128,
            num_hidden_layers=2,
            num_attention_heads=2,  # head size 64
        )
    )


def _gemma2():
    """Alternating window and full layers, soft-capped logits."""
    model = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **_SMALL,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=200,
            attn_logit_softcapping=20.0,
        )
    )
    # Its embeddings are tied; where they outweigh the layers' normed outputs the model repeats its input.
    model.get_input_embeddings().weight.data.mul_(0.1)
    return model


def _bloom():
    """ALiBi."""
    model = transformers.BloomForCausalLM(
        transformers.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=128, n_layer=2, n_head=4, initializer_range=0.1, seq_length=MAX_LENGTH
        )
    )
    # Its embeddings are tied; random signs before the head keep it from repeating its input.
    model.transformer.ln_f.weight.data.copy_(torch.randint(0, 2, (128,)) * 2 - 1)
    return model


MODELS = {"llama": _llama, "qwen2": _qwen2, "opt": _opt, "gemma2": _gemma2, "bloom": _bloom}


def save(name: str, folder: str) -> str:
    torch.manual_seed(2)
    MODELS[name]().float().save_pretrained(folder)
    return folder
