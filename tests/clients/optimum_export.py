"""Run with transformers 4: optimum exports a stock directory to ONNX; prints features of token ids as JSON.

Arguments: directory, output directory, JSON list of lists of token ids.
"""

import json
import sys

import optimum.version
import torch
import transformers
from optimum.onnxruntime import ORTModelForFeatureExtraction


directory, output, rows = sys.argv[1:]
model = ORTModelForFeatureExtraction.from_pretrained(directory, export=True)
model.save_pretrained(output)
features = []
for ids in json.loads(rows):
    inputs = {"input_ids": torch.tensor([ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    features.append(model(**inputs).last_hidden_state[0].tolist())
versions = {"optimum": optimum.version.__version__, "transformers": transformers.__version__}
print(json.dumps({"versions": versions, "features": features}))
