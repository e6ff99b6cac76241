"""transformers' own common tests (modeling, configuration, training, pipelines) on every head, and on stock's.

A test that both fail tells of the release or the environment; with transformers 5.24.0 there is none.
"""

import unittest
from unittest import mock

import pipeline_checks
import pytest
import torch
import transformers
from helpers import CASES, TINY
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from tests.test_pipeline_mixin import PipelineTesterMixin
from tests.test_training_mixin import TrainingTesterMixin

import hfbert_scratch
from hfbert_scratch import HEADS
from hfbert_scratch.model import modeling_hfbert


pytestmark = pytest.mark.transformers_common


class ModelTester:
    """The tiny configuration and the inputs that the mixins ask for."""

    batch_size = 3
    seq_length = 9
    is_training = True
    num_choices = 4
    num_hidden_layers = TINY["num_hidden_layers"]
    num_attention_heads = TINY["num_attention_heads"]
    hidden_size = TINY["hidden_size"]

    def __init__(self, config_class):
        self.config_class = config_class

    def get_config(self):
        return self.config_class(**(TINY | {"max_position_embeddings": 64}))

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.seq_length)
        mask = torch.ones(shape, dtype=torch.long)
        mask[1, -3:] = 0
        inputs = {
            "input_ids": torch.randint(5, TINY["vocab_size"], shape),
            "attention_mask": mask,
            "token_type_ids": torch.randint(2, shape),
        }
        return self.get_config(), inputs


class CommonTests(ModelTesterMixin, TrainingTesterMixin, PipelineTesterMixin):
    """What both models are put through; `index` is the place of the model's classes in CASES."""

    model_tester = None
    library, config_class, index = hfbert_scratch, hfbert_scratch.HFBertConfig, 0

    def __init_subclass__(cls, **kwargs):
        heads = [name.removeprefix("" if cls.index == 0 else "HF") for name in HEADS.values()]
        cls.all_model_classes = tuple(getattr(cls.library, name) for name in heads)
        cls.pipeline_model_mapping = {
            task: getattr(cls.library, CASES[case][cls.index]) for task, case in pipeline_checks.HEADS.items()
        }
        super().__init_subclass__(**kwargs)

    def setUp(self):
        self.model_tester = ModelTester(self.config_class)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            inputs["next_sentence_label"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
        return inputs

    def _get_trainable_model_class(self):
        return getattr(self.library, CASES["masked_lm"][self.index])

    def test_config(self):
        ConfigTester(self, config_class=self.config_class, hidden_size=36).run_common_tests()


class HFBertTest(CommonTests, unittest.TestCase):
    """Ours."""

    def test_model_weights_reload_no_missing_tied_weights(self):
        """A file with none of the model's weights is refused; without the refusal the reports are the library's."""
        with self.assertRaisesRegex(ValueError, r"do not belong to its config\.json"):
            super().test_model_weights_reload_no_missing_tied_weights()
        with mock.patch.object(modeling_hfbert, "check_weight_names"):
            super().test_model_weights_reload_no_missing_tied_weights()


class StockBertTest(CommonTests, unittest.TestCase):
    """Stock's, as the control."""

    library, config_class, index = transformers, transformers.BertConfig, 1
