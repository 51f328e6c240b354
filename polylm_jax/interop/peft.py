"""The adapters of a run as a folder that `peft` loads onto the exported base.

GPT-2's Conv1D keeps a kernel [inputs, outputs], as the decoder does, and peft the two factors the
other way about: A [rank, inputs] and B [outputs, rank], so that its sum is (B A) transposed, which
is what fan_in_fan_out says.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from polylm_jax.errors import UserError
from polylm_jax.interop.tensor_files import DTYPES, create_safetensors
from polylm_jax.model.lora import Lora, adapter_count
from polylm_jax.model.parameters import layer_parameters
from polylm_jax.sizes import Size
from polylm_jax.train.door import Run, read_adapters

_MODEL = "base_model.model."  # what peft wraps a model in


def write_peft(run: Run, folder: Path) -> None:
    """adapter_config.json, adapter_model.safetensors in float32, and a README.md.

    UserError where the run has no adapters, or they are not as they were saved or not finite.
    """
    tensors = peft_tensors(read_adapters(run), run.size, run.lora)
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise UserError(
            "the run's adapters are not finite, so no file of them is of use; export a checkpoint "
            "from before the run went wrong."
        )
    shapes = {name: values.shape for name, values in tensors.items()}
    places = create_safetensors(folder / "adapter_model.safetensors", shapes, "F32")
    for name, stored in places.items():
        out = np.memmap(stored.file, DTYPES["F32"], "r+", stored.offset, stored.shape)
        out[:] = tensors[name]
    config = json.dumps(peft_config(run.size, run.lora), indent=1) + "\n"
    (folder / "adapter_config.json").write_text(config, encoding="utf-8")
    (folder / "README.md").write_text(_card(run), encoding="utf-8")


def peft_config(size: Size, lora: Lora) -> dict[str, Any]:
    """The adapter_config.json; the base is whatever model peft is given."""
    modules = [_module(size, name).partition(".h.{layer}.")[2] for name in lora.targets]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "lora_dropout": 0.0,
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }


def peft_tensors(adapters: dict[str, Any], size: Size, lora: Lora) -> dict[str, np.ndarray]:
    """A [rank, inputs] and B [outputs, rank] of each layer's targets by peft's names, float32."""
    found = {}
    for name in lora.targets:
        a, b = np.asarray(adapters[f"{name}_a"]), np.asarray(adapters[f"{name}_b"])
        for layer in range(size.layers):
            module = _MODEL + _module(size, name).format(layer=layer)
            found[f"{module}.lora_A.weight"] = a[layer].reshape(-1, lora.rank).T
            found[f"{module}.lora_B.weight"] = b[layer].reshape(lora.rank, -1).T
    return found


def _module(size: Size, name: str) -> str:
    return layer_parameters(size)[name].hugging_face.removesuffix(".weight")


def _card(run: Run) -> str:
    assert run.base is not None
    base, lora = run.base, run.lora
    return "\n".join([
        *["---", "library_name: peft", "pipeline_tag: text-generation", "---", "", "# PolyLM", ""],
        f"{adapter_count(run.size, lora):,} parameters of adapters (LoRA) of rank {lora.rank} on",
        f"{', '.join(lora.targets)}, step {run.step} of their run, to the model of step",
        f"{base.step} of `{os.path.basename(base.folder)}` (parameters' checksum",
        f"{run.meta['fingerprints']['base']}), which `polylm export` writes:",
        *["", "```python", "from peft import PeftModel"],
        *["from transformers import AutoModelForCausalLM, AutoTokenizer", ""],
        *['tokenizer = AutoTokenizer.from_pretrained(".")'],
        *['model = AutoModelForCausalLM.from_pretrained("EXPORTED BASE")'],
        *['model = PeftModel.from_pretrained(model, ".")', "```", ""],
    ])  # fmt: skip
