"""Options of building a corpus and of making training instances from it, declared once; the recipes inherit them."""

import dataclasses
import math
from typing import Any

from ..text.sources import SOURCES_HELP
from ..utils.arguments import argument
from ..utils.errors import InputError
from .dataset import TokenizedDocuments
from .masking import MaskingConfig, PretrainingCollator
from .mixture import MixedDocuments, MixedSampler, source_seed
from .segment_pairs import SegmentPairSampler


@dataclasses.dataclass
class BuildArguments:
    """Options that decide the content of a corpus. A build that is continued must have the same.

    Raises:
        InputError: if a number is out of range.
    """

    text: list[str] = argument(help=SOURCES_HELP)
    tokenizer: str = argument(help="directory of the tokenizer, or its name on the Hub")
    text_column: str = argument("text", help="field or column with the text in .jsonl, .parquet and data sets")
    encoding_errors: str = argument("strict", help="strict: refuse bytes that are not UTF-8; replace: put U+FFFD")
    validation_share: float = argument(
        0.01, help="share of the documents held out, chosen by hash; 0: none, which hfbert pretrain refuses"
    )
    max_seq_length: int = argument(512, help="longest sequence training will ask for, special tokens included")
    no_nsp: bool = argument(False, help="build for pretraining without next-sentence pairs")
    drop_duplicates: bool = argument(True, help="drop documents that are equal to an earlier one")
    seed: int = argument(0, help="decides which documents are held out")
    shard_mb: int = argument(0, help="MB of text per shard; 0: a 64th of the text, between 8 and 64")

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise InputError(f"--validation_share must be at least 0 and below 1, not {self.validation_share}")
        if self.max_seq_length < 5:
            raise InputError(f"--max_seq_length {self.max_seq_length} leaves no room for text; the smallest is 5")
        if self.seed < 0:
            raise InputError(f"--seed must not be negative, not {self.seed}")
        if not 0 <= self.shard_mb <= 512:
            raise InputError(
                f"--shard_mb must be between 1 and 512, or 0 to let it follow the text, not {self.shard_mb}"
            )

    @property
    def next_sentence(self) -> bool:
        """True if the corpus serves next-sentence prediction."""
        return not self.no_nsp

    def as_manifest(self) -> dict[str, Any]:
        """Return this class's own options under their keys in manifest.json."""
        entries: dict[str, Any] = {}
        for field in dataclasses.fields(BuildArguments):
            if field.name == "no_nsp":
                entries["next_sentence"] = self.next_sentence
            else:
                entries[field.name] = getattr(self, field.name)
        return entries | {"text": list(self.text)}


@dataclasses.dataclass(kw_only=True)
class PretrainingDataArguments:
    """Options of segment pairs and masks, for any sequence length."""

    seed: int = argument(0, help="of pairs and masks")
    short_seq_prob: float = argument(
        0.1, help="share of document passes with a random shorter length", group="segment pairs"
    )
    balanced_nsp: bool = argument(
        True, help="exactly half NotNext; false: the original's fair coin, about 55 %%", group="segment pairs"
    )
    no_nsp: bool = argument(False, help="masked LM only, on contiguous spans (section 5.1)", group="segment pairs")
    left_to_right: bool = argument(
        False, help="causal attention and next-token labels (section 5.1); implies no_nsp", group="segment pairs"
    )
    masked_lm_prob: float = argument(0.15, help="share of the tokens to predict", group="masking")
    max_predictions_per_seq: int = argument(
        0, help="at most; 0: the share, rounded up (20 of 128, 77 of 512)", group="masking"
    )
    mask_share: float = argument(0.8, help="of the tokens to predict: replaced by [MASK]", group="masking")
    random_share: float = argument(0.1, help="replaced by a random token", group="masking")
    keep_share: float = argument(0.1, help="left as they are", group="masking")
    whole_word: bool = argument(False, help="mask all pieces of a word together", group="masking")
    random_special: bool = argument(
        False, help="random tokens may be special ones, as in the original code", group="masking"
    )

    def __post_init__(self) -> None:
        self.no_nsp = self.no_nsp or bool(self.left_to_right)

    def mixed_sampler(
        self, documents: TokenizedDocuments | MixedDocuments, max_seq_length: int
    ) -> SegmentPairSampler | MixedSampler:
        """Make the sampler of one corpus's documents, or of a mixture's.

        Args:
            documents: a split.
            max_seq_length: tokens of an instance, special ones included.

        Raises:
            InputError: if an option is out of range, or a split has too few documents.
        """
        if not isinstance(documents, MixedDocuments):
            return self.sampler(documents, max_seq_length)
        samplers = [
            self.sampler(part, max_seq_length, seed=source_seed(self.seed, number))
            for number, part in enumerate(documents.parts)
        ]
        return MixedSampler(samplers, documents.shares)

    def sampler(
        self, documents: TokenizedDocuments, max_seq_length: int, *, seed: int | None = None
    ) -> SegmentPairSampler:
        """Make the sampler of one corpus's documents.

        Args:
            documents: a split.
            max_seq_length: tokens of an instance, special ones included.
            seed: of the pairs. None: the options' own.

        Raises:
            InputError: if an option is out of range, or the split has too few documents.
        """
        return SegmentPairSampler(
            documents,
            max_seq_length=max_seq_length,
            seed=self.seed if seed is None else seed,
            short_seq_prob=self.short_seq_prob,
            balanced_nsp=self.balanced_nsp,
            next_sentence=not self.no_nsp,
        )

    def collator(self, tokenizer: Any, max_seq_length: int, *, seed: int | None = None) -> PretrainingCollator:
        """Make the collator that masks instances.

        Args:
            tokenizer: the corpus's.
            max_seq_length: tokens of an instance, special ones included. Where max_predictions_per_seq is 0, it
                decides the most predictions of an instance.
            seed: of the masks. None: the options' own.

        Raises:
            InputError: if an option is out of range, or the tokenizer lacks a special token.
        """
        most = self.max_predictions_per_seq or max(1, math.ceil(max_seq_length * self.masked_lm_prob))
        masking = MaskingConfig(
            max_predictions_per_seq=most,
            masked_lm_prob=self.masked_lm_prob,
            mask_share=self.mask_share,
            random_share=self.random_share,
            keep_share=self.keep_share,
            whole_word=self.whole_word,
            random_special=self.random_special,
        )
        return PretrainingCollator(tokenizer, masking, self.seed if seed is None else seed, self.left_to_right)
