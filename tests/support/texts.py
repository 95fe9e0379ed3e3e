"""Small tokenizers of known models, made without files."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, CLIPTokenizer

from meta_transformer.processors.text import TextProcessor


def bert() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "is", "good", "un", "##funny", "!", "a"]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def clip() -> CLIPTokenizer:
    characters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{each}</w>" for each in characters), "th", "the</w>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("t", "h"), ("th", "e</w>")])


def rows(processor: TextProcessor, samples: object) -> list[list[int]]:
    """The ids of each sample without padding."""
    batch = processor(samples)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"], dtype=torch.bool))
    return [ids[real].tolist() for ids, real in zip(batch["input_ids"], mask, strict=True)]


def japanese() -> Tokenizer:
    """A BPE tokenizer in BERT's template that knows no Latin letter, and drops what it does not know."""
    words = ["[CLS]", "[SEP]", "日", "本", "語", "日本"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("日", "本")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:2])
    special = [("[CLS]", 0), ("[SEP]", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer
