"""Text as people have it to token ids: strings, columns of tables and data sets, or ids that were made elsewhere.

Leaves: `input_ids` `(batch, length)`, with the tokenizer's own special tokens, padded to the longest text of the batch,
and `attention_mask` `(batch, length)`, true in the text itself, if the texts differ in length.

By default a token is a byte of UTF-8, as in ByT5 (Xue et al. 2022, section 3.1), which needs no file and knows every
language. Any tokenizer of transformers serves as well, and `train_from_iterator` makes one of your own texts: byte
pairs (Sennrich et al. 2016) over bytes (Radford et al. 2019, section 2.2).
"""

import copy
import warnings
from collections.abc import Iterable, Mapping, Set
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from .base import ModalityProcessor, errors_at, pad_to_longest, several
from .readers.arrays import to_array
from .vocabulary import BYTES, check_characters, encode, load_tokenizer, special_frame, train_bpe

__all__ = ["TextProcessor", "pool_windows"]

LongText = Literal["truncate", "error"]


class TextProcessor(ModalityProcessor):
    """Encode with a tokenizer of transformers, cut what is too long, pad.

    Args:
        tokenizer: `"bytes"`; the name or folder of any other tokenizer that `AutoTokenizer` loads; a tokenizer of
            transformers, or of the library `tokenizers`, as an object; or its saved state. A fast tokenizer is saved
            whole with this processor, a slow one (written in Python) by its name only.
        max_length: Most tokens of a sample, special tokens included; `None` for no limit.
        long_text: What happens to longer ones: `"truncate"` cuts their end off and warns, `"error"` refuses them.
            `windows` loses nothing.

    Raises:
        ValueError: The tokenizer cannot be loaded, saved, or has no vocabulary; or a setting is out of range.
        TypeError: `tokenizer` is something else.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    long_text: LongText

    def __init__(
        self,
        *,
        tokenizer: Any = BYTES,
        max_length: int | None = None,
        long_text: LongText = "truncate",
        **kwargs: Any,
    ) -> None:
        super().__init__(max_length=max_length, long_text=long_text, **kwargs)
        self.tokenizer, self._stored = load_tokenizer(tokenizer)
        self._vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self._frame = special_frame(self.tokenizer)
        if long_text not in get_args(LongText):
            raise ValueError(f"long_text must be one of {get_args(LongText)}, got {long_text!r}.")
        least = sum(map(len, self._frame)) + 1
        if max_length is not None and (not isinstance(max_length, Integral) or max_length < least):
            raise ValueError(
                f"max_length must be None or an integer of at least {least}, which is one token beside the special "
                f"tokens, got {max_length!r}."
            )

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name != "tokenizer" and name[0] != "_"}
        state = {"tokenizer": self._stored, "feature_extractor_type": type(self).__name__}
        return copy.deepcopy({**own, **state})

    def tokenizer_config(self) -> dict[str, Any]:
        return {"vocab_size": self._vocab_size}

    @classmethod
    def for_tokenizer(cls, options: dict[str, Any]) -> "TextProcessor":
        processor = cls()
        if options.get("vocab_size", processor._vocab_size) != processor._vocab_size:
            raise ValueError(
                f"A vocabulary of {options['vocab_size']} tokens does not tell which tokenizer it belongs to; load the "
                "processor that was saved with the model, or make TextProcessor(tokenizer=...) of that tokenizer."
            )
        return processor

    @classmethod
    def train_from_iterator(cls, texts: Iterable[str], *, vocab_size: int, **settings: Any) -> "TextProcessor":
        """A processor with a byte-level BPE tokenizer trained on `texts`.

        Args:
            texts: Training texts; an iterator is consumed text by text.
            vocab_size: Most entries of the vocabulary: two special tokens, 256 bytes, and merges. Of few texts there
                may be fewer.
            settings: Of the processor, as of `TextProcessor`.

        Returns:
            The processor. Its tokenizer ends each text with `</s>`.

        Raises:
            ValueError: No text, or a vocabulary smaller than 258.
            TypeError: A text that is no string, or one string in place of many.
        """
        if not isinstance(vocab_size, Integral) or vocab_size < 258:
            raise ValueError(f"vocab_size must be an integer of at least 258, got {vocab_size!r}.")
        return cls(tokenizer=train_bpe(texts, int(vocab_size)), **settings)

    def __call__(self, samples: Any, *, return_tensors: str | None = "pt") -> BatchFeature:
        """Process one text or a list of texts, of any lengths.

        Args:
            samples: Each a string, or token ids of this tokenizer: a list, numpy array or torch tensor of integers,
                taken as they are. A column of `datasets` or pandas and an array of strings are lists of texts. An
                empty text becomes the special tokens alone, or the end token where the tokenizer adds none.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_ids`, and `attention_mask` if the samples differ in number of tokens.

        Raises:
            ValueError: No sample, ids that the tokenizer does not have or that hold padding, halves of characters
                (surrogates), or a text longer than `max_length` under `long_text="error"`.
            TypeError: A sample that is neither text nor ids, such as a missing cell.
        """
        encoded = self._encode(samples)
        if self.max_length is not None:
            lengths = [len(ids) for ids in encoded]
            if long := [index for index, length in enumerate(lengths) if length > self.max_length]:
                self._report(long, lengths)
                encoded = [self._split(ids, 0)[0] for ids in encoded]
        return self._batch(encoded, return_tensors)

    def windows(
        self, samples: Any, *, stride: int = 0, return_tensors: str | None = "pt"
    ) -> tuple[BatchFeature, Tensor]:
        """Cut long texts into windows of at most `max_length` tokens, each with the special tokens around it.

        Args:
            samples: As of `__call__`.
            stride: How many tokens neighbouring windows share, as in transformers' tokenizers.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            The batch with one row for each window, and `overflow_to_sample_mapping` `(windows,)`: the index of the
            sample that each window is of. It turns labels of samples into labels of windows, and `pool_windows` turns
            outputs for windows into outputs for samples.

        Raises:
            ValueError: `max_length` is not set, `stride` leaves no room for new tokens, or as of `__call__`.
            TypeError: As of `__call__`.
        """
        if self.max_length is None:
            raise ValueError("Windows need a length; set TextProcessor(max_length=...).")
        room = self.max_length - sum(map(len, self._frame))
        if not isinstance(stride, Integral) or not 0 <= stride < room:
            raise ValueError(f"stride must be an integer in 0..{room - 1} for this max_length, got {stride!r}.")
        pieces = [self._split(ids, int(stride)) for ids in self._encode(samples)]
        mapping = torch.arange(len(pieces)).repeat_interleave(torch.tensor([len(each) for each in pieces]))
        batch = self._batch([window for windows in pieces for window in windows], return_tensors)
        return batch, mapping

    def _report(self, long: list[int], lengths: list[int]) -> None:
        worst = max(lengths)
        if self.long_text == "error":
            raise ValueError(
                f"text[{long[0]}]: {lengths[long[0]]} tokens are more than max_length={self.max_length}; enlarge it, "
                "set long_text='truncate', or use windows()."
            )
        warnings.warn(
            f"{len(long)} of {len(lengths)} texts were cut to max_length={self.max_length} tokens, the longest of "
            f"{worst}. windows() would keep all of them.",
            stacklevel=3,
        )

    def _encode(self, samples: Any) -> list[list[int]]:
        """Token ids of each sample, at least one, with special tokens where it is a text."""
        listed = _as_list(samples)
        encoded: list[list[int]] = []
        for index, sample in enumerate(listed):
            with errors_at(f"text[{index}]"):
                encoded.append([] if _is_text(sample) else self._check_ids(sample))
        places = [index for index, sample in enumerate(listed) if isinstance(sample, str)]
        if places:
            texts = [str(listed[index]) for index in places]
            for index, ids in zip(places, encode(self.tokenizer, texts), strict=True):
                encoded[index] = ids
        return encoded if all(encoded) else [ids or [self._end()] for ids in encoded]

    def _check_ids(self, sample: Any) -> list[int]:
        array = to_array(sample)
        if array.size == 0 and array.ndim == 1:
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(
                f"token ids must be integers of one dimension, got {array.dtype} of shape {array.shape}; join words "
                "to a string."
            )
        if array.min() < 0 or array.max() >= self._vocab_size:
            raise ValueError(
                f"token ids must lie in 0..{self._vocab_size - 1}, the tokenizer's vocabulary, got "
                f"{array.min()}..{array.max()}; make them with TextProcessor.tokenizer."
            )
        pad = self.tokenizer.pad_token_id
        if pad is not None and pad != self.tokenizer.eos_token_id and pad in (array[0], array[-1]):
            raise ValueError(f"the token ids hold padding ({pad}) at an end; give them without, each row by itself.")
        return array.tolist()

    def _end(self) -> int:
        """What stands for an empty text where the tokenizer adds no special tokens."""
        known = [getattr(self.tokenizer, f"{name}_token_id") for name in ("eos", "sep", "bos", "cls", "pad")]
        found = next((token for token in known if token is not None), None)
        if found is None:
            raise ValueError("A text is empty, and the tokenizer has no end token to stand for it; leave the text out.")
        return found

    def _split(self, ids: list[int], stride: int) -> list[list[int]]:
        """Windows of at most `max_length` tokens, each in the special tokens that `ids` are in."""
        if self.max_length is None or len(ids) <= self.max_length:
            return [ids]
        before, after = self._frame
        if ids[: len(before)] != before or ids[len(ids) - len(after) :] != after:
            before, after = [], []  # ids that the user made without special tokens
        core = ids[len(before) : len(ids) - len(after)]
        room = self.max_length - len(before) - len(after)
        return [[*before, *core[at : at + room], *after] for at in range(0, len(core) - stride, room - stride)]

    def _batch(self, encoded: list[list[int]], return_tensors: str | None) -> BatchFeature:
        rows = [torch.tensor(ids, dtype=torch.int64) for ids in encoded]
        input_ids, mask = pad_to_longest(rows, value=self.tokenizer.pad_token_id or 0)
        data = {"input_ids": input_ids.numpy()}
        if mask is not None:
            data["attention_mask"] = mask.numpy()
        return BatchFeature(data, tensor_type=return_tensors)

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[str]:
        random = np.random.default_rng(seed)
        words = ["a", "frozen", "trunk", "reads", "every", "kind", "of", "signal"]
        return [" ".join(random.choice(words, size=count)) for count in random.integers(2, 6, size=batch_size)]


def _as_list(samples: Any) -> list[Any]:
    """The samples one by one, be it one text, one row of ids, a list, a column or an array of them."""
    if isinstance(samples, str):
        return [samples]
    if isinstance(samples, bytes | Mapping | Set):
        raise TypeError(
            f"text must be a string, token ids or a list of such, got {type(samples).__name__}; decode bytes, and give "
            "one column of a data set."
        )
    array = isinstance(samples, np.ndarray | Tensor)
    listed = [samples] if array and not samples.ndim else list(several(samples, "text")[1])
    if array:
        return [samples] if samples.ndim == 1 and not isinstance(listed[0], str) and samples.dtype != object else listed
    return [listed] if all(isinstance(each, Integral) for each in listed) else listed


def _is_text(sample: Any) -> bool:
    """Whether a sample is text and not token ids; anything else is refused."""
    if isinstance(sample, str):
        check_characters(sample)
        return True
    if isinstance(sample, list | tuple | np.ndarray | Tensor):
        return False
    raise TypeError(
        f"a sample must be a string, or token ids as a list or array, got {type(sample).__name__}; fill missing cells "
        "with '', or leave them out."
    )


def pool_windows(values: Tensor, overflow_to_sample_mapping: Tensor) -> Tensor:
    """Mean over the windows of each sample, with gradients.

    Args:
        values: `(windows, ...)`, such as logits or features.
        overflow_to_sample_mapping: `(windows,)`, from `TextProcessor.windows`.

    Returns:
        `(samples, ...)`.

    Raises:
        ValueError: The two differ in length, or a sample below the highest index has no window.
    """
    mapping = torch.as_tensor(overflow_to_sample_mapping, device=values.device)
    if mapping.shape != values.shape[:1] or mapping.is_floating_point() or not mapping.numel():
        raise ValueError(
            f"overflow_to_sample_mapping must hold one integer for each of the {len(values)} windows, got "
            f"{mapping.dtype} of shape {tuple(mapping.shape)}."
        )
    counts = torch.bincount(mapping)
    if not counts.all():
        raise ValueError(f"Sample {int(counts.argmin())} has no window; give the windows of whole batches.")
    sums = values.new_zeros(len(counts), *values.shape[1:]).index_add(0, mapping, values)
    return sums / counts.view(-1, *[1] * (values.dim() - 1))
