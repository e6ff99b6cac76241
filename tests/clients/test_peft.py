"""PEFT: LoRA on the default target modules, trained, saved, reloaded."""

import pytest
import torch
from helpers import batch

import hfbert_scratch


peft = pytest.importorskip("peft")
hfbert_scratch.register_peft()


@pytest.mark.parametrize("case", ["single_label", "token"])
def test_lora(case, checkpoint, tmp_path, agrees):
    import transformers

    directory, _ = checkpoint(case)
    auto = {"single_label": "SequenceClassification", "token": "TokenClassification"}[case]
    model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(directory)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type={"token": "TOKEN_CLS"}.get(case, "SEQ_CLS"), r=4))
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"query", "value"}, "what PEFT adapts in stock bert"
    inputs = batch(case)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    again = getattr(peft, f"AutoPeftModelFor{auto}").from_pretrained(tmp_path / "adapter")
    model.eval(), again.eval()
    pairs = [(again(**inputs).logits, model(**inputs).logits)]
    pairs += [(again.merge_and_unload()(**inputs).logits, model(**inputs).logits)]
    agrees(f"PEFT {peft.__version__}", f"LoRA {auto}: train, save, reload, merge", pairs, 1e-5)


@pytest.mark.parametrize("config", ["AdaLoraConfig", "IA3Config", "VeraConfig", "BOFTConfig"])
def test_other_methods_find_the_modules_too(config, checkpoint):
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint("single_label")[0])
    options = {"total_step": 10} if config == "AdaLoraConfig" else {}
    adapted = peft.get_peft_model(model, getattr(peft, config)(task_type="SEQ_CLS", **options))
    assert 0 < adapted.get_nb_trainable_parameters()[0] < adapted.get_nb_trainable_parameters()[1]
