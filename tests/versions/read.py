"""Open a checkpoint in the transformers of this environment and compare its outputs with the saved ones.

    python read.py package|remote|stock DIRECTORY

Prints JSON: the version, the largest difference, or why the checkpoint does not open. Run by check_versions.py.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Open in the way that is asked for, compute, compare."""
    way, directory = sys.argv[1], Path(sys.argv[2])
    if way == "package":
        import hfbert_scratch  # noqa: F401
    else:
        sys.modules["hfbert_scratch"] = None
    import safetensors.torch
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    result = {"transformers": transformers.__version__}
    reference = safetensors.torch.load_file(directory.parent / "reference.safetensors")
    text = (directory.parent / "text.txt").read_text(encoding="utf-8").splitlines()
    options = {"trust_remote_code": True} if way == "remote" else {}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        difference = 0.0
        for auto_class in ("AutoModelForPreTraining", "AutoModel"):
            model = getattr(transformers, auto_class).from_pretrained(directory, **options).eval()
            inputs = tokenizer(*text, return_tensors="pt")
            with torch.no_grad():
                outputs = model(**inputs)
            for name in outputs.keys() & reference.keys():
                difference = max(difference, (outputs[name] - reference[name]).abs().max().item())
            result[auto_class] = sorted(outputs.keys() & reference.keys())
        result |= {"difference": difference, "ids": inputs["input_ids"][0].tolist()}
    except (ImportError, ValueError, OSError) as error:
        result["error"] = " ".join(str(error).split())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
