"""Names of the files of a Hugging Face model that are read; all of them lie in one folder."""

from __future__ import annotations

from tapml.formats.huggingface import CONFIG, INDEX, SHARDS, WEIGHTS

TOKENIZER = (  # what turns text into the model's input, and back
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "generation_config.json",
)
READ = (CONFIG, WEIGHTS, INDEX, SHARDS, *TOKENIZER)
