"""Tiny models on disk for the library's pipeline tests, and what is checked of each pipeline's answers.

The library's tests open the models, build the batches and call these classes by the names of its own.
"""

import json
from pathlib import Path

import torch
import transformers
from helpers import CASES, TINY

import hfbert_scratch
from hfbert_scratch.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer, save_tokenizer


WORDS = ("the", "bank", "of", "a", "river", "is", "green", "##s", "and", "people", "walk", ",", ".", "this", "example")
TEXTS = ["The bank of a river is green.", "People walk, and the river.", "a bank"]
# task of the library's table → the head that serves it
HEADS = {
    "feature-extraction": "base",
    "fill-mask": "masked_lm",
    "text-classification": "single_label",
    "token-classification": "token",
    "zero-shot": "single_label",
}


def write_tiny_models(directory: Path) -> None:
    """A checkpoint with a tokenizer for each of these heads, ours and stock's, laid out as the library's tests ask."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = bert_tokenizer(vocabulary, lowercase=True, model_max_length=TINY["max_position_embeddings"])
    summary = {}
    for case in set(HEADS.values()):
        ours, stock, fields = CASES[case]
        for library, name, config in (
            (hfbert_scratch, ours, hfbert_scratch.HFBertConfig),
            (transformers, stock, transformers.BertConfig),
        ):
            torch.manual_seed(0)
            target = directory / config.model_type / name
            getattr(library, name)(config(**(TINY | fields | {"vocab_size": len(vocabulary)}))).save_pretrained(target)
            save_tokenizer(tokenizer, target)
            summary[name] = {"tokenizer_classes": ["BertTokenizer"], "processor_classes": []}
    (directory / "reports").mkdir()
    (directory / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))


class _Check:
    task: str
    options: dict = {}

    def get_test_pipeline(self, model, tokenizer, dtype="float32", **processors):
        assert not processors
        model = model.to(getattr(torch, dtype))
        pipeline = transformers.pipeline(self.task, model=model, tokenizer=tokenizer, **self.options)
        return pipeline, [self.example(text, tokenizer) for text in TEXTS]

    def example(self, text, tokenizer):
        return text

    def run_pipeline_test(self, pipeline, examples):
        # From a generator every pipeline gives one answer a text; from lists, some unpack lists of one.
        single = list(pipeline(example for example in examples))
        together = list(pipeline((example for example in examples), batch_size=len(examples)))
        for example, alone, batched in zip(examples, single, together, strict=True):
            self.check(pipeline, example, alone)
            self.check(pipeline, example, batched)

    @torch.no_grad()
    def forward(self, pipeline, text):
        return pipeline.model(**pipeline.tokenizer(text, return_tensors="pt"))


def _close(pipeline, left, right) -> bool:
    tolerance = 1e-5 if pipeline.model.dtype == torch.float32 else 2e-2
    return torch.allclose(torch.as_tensor(left).float(), torch.as_tensor(right).float(), atol=tolerance)


class FeatureExtractionPipelineTests(_Check):
    task = "feature-extraction"

    def check(self, pipeline, text, answer):
        expected = self.forward(pipeline, text).last_hidden_state
        # In a batch, the shorter texts carry the padding's vectors behind their own.
        assert _close(pipeline, torch.tensor(answer)[:, : expected.shape[1]], expected)


class FillMaskPipelineTests(_Check):
    task = "fill-mask"

    def example(self, text, tokenizer):
        return f"{text} {tokenizer.mask_token}"

    def check(self, pipeline, text, answer):
        place = pipeline.tokenizer(text)["input_ids"].index(pipeline.tokenizer.mask_token_id)
        best = self.forward(pipeline, text).logits[0, place].float().softmax(-1).topk(len(answer))
        assert len(answer) == 5
        assert _close(pipeline, [guess["score"] for guess in answer], best.values)
        assert all(guess["token_str"] in pipeline.tokenizer.get_vocab() for guess in answer)


class TextClassificationPipelineTests(_Check):
    task = "text-classification"
    options = {"top_k": None}

    def check(self, pipeline, text, answer):
        scores = self.forward(pipeline, text).logits[0].float().softmax(-1)
        found = {guess["label"]: guess["score"] for guess in answer}
        assert found.keys() == pipeline.model.config.label2id.keys()
        assert _close(pipeline, [found[label] for label in pipeline.model.config.id2label.values()], scores)


class TokenClassificationPipelineTests(_Check):
    task = "token-classification"

    def check(self, pipeline, text, answer):
        expected = self.forward(pipeline, text).logits[0, 1:-1].float().softmax(-1)
        assert len(answer) == len(expected)
        for token, scores in zip(answer, expected, strict=True):
            assert _close(pipeline, scores[pipeline.model.config.label2id[token["entity"]]], token["score"])
            assert text[token["start"] : token["end"]].lower() == token["word"].removeprefix("##")


class ZeroShotClassificationPipelineTests(_Check):
    task = "zero-shot-classification"
    options = {"candidate_labels": ["river", "bank"]}

    def check(self, pipeline, text, answer):
        assert answer["sequence"] == text and set(answer["labels"]) == {"river", "bank"}
        assert _close(pipeline, sum(answer["scores"]), 1.0)


# module of the library's → class in it
CHECKS = {
    "feature_extraction": FeatureExtractionPipelineTests,
    "fill_mask": FillMaskPipelineTests,
    "text_classification": TextClassificationPipelineTests,
    "token_classification": TokenClassificationPipelineTests,
    "zero_shot": ZeroShotClassificationPipelineTests,
}
