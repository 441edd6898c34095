"""Make a tiny Llama checkpoint and its tokenizer out of nothing but the standard library's own text.

    python make_model.py OUT_DIR

Random weights with a fixed seed: with `temperature: 0` it repeats one token, which is deterministic and therefore good
for tests; it never says anything. About two seconds, about 1 MB. Needs torch, transformers and tokenizers, no network.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
HIDDEN = 64
HEAD_DIM = 32  # vLLM's attention kernel for the CPU takes 32, 64, 80, 96, 112, 128, ... only
CONTEXT = 4096
END_OF_TEXT, TURN, END_OF_TURN = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main(out: Path) -> None:
    """Write config, weights, tokenizer and chat template into `out`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = _tokenizer()
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    _model(tokenizer.get_vocab_size(), ids).to(torch.bfloat16).save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out)
    # Without this file transformers writes defaults that stop at other tokens than the template's end of turn.
    defaults = {"eos_token_id": ids[END_OF_TURN], "pad_token_id": ids[END_OF_TEXT]}
    (out / "generation_config.json").write_text(json.dumps(defaults))


def _tokenizer() -> Tokenizer:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted([*library.glob("*.py"), *library.glob("asyncio/*.py")])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((file.read_text("utf-8", "ignore") for file in files), trainer)
    return tokenizer


def _model(vocabulary: int, ids: dict[str, int]) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN * 3,
            num_hidden_layers=2,
            num_attention_heads=HIDDEN // HEAD_DIM,
            num_key_value_heads=HIDDEN // HEAD_DIM,
            head_dim=HEAD_DIM,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=ids[END_OF_TURN],
            pad_token_id=ids[END_OF_TEXT],
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
