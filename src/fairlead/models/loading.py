"""Load a model by name, by folder, or a bundled organism.

A folder is read without any network use; a name goes through the Hugging Face cache (`HF_HUB_OFFLINE=1` keeps
it off the network). Code that comes with a checkpoint runs only with `trust_remote_code=True`. Weights are
safetensors where the checkpoint has them; older `.bin` files are read by transformers with `weights_only`.
Whatever goes wrong is a `ModelError` that says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fairlead.core.errors import ConfigError, ModelError
from fairlead.core.progress import say
from fairlead.models.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ORGANISM = "organism:"
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
_HARMLESS = ("pooler", "contact_head", "position_ids", "rotary_emb")  # parts that no site or logit depends on


def load_model(
    name_or_folder: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """Load a causal language model or an encoder with its tokenizer.

    Args:
        name_or_folder: A Hugging Face name ("Qwen/Qwen2.5-0.5B"), a folder, or "organism:pocket".
        dtype: "float32", "bfloat16", "float16", "float64", or "auto" for that of the checkpoint.
        device: "auto" (a GPU where there is one), or a torch device.
        trust_remote_code: Run code that comes with the checkpoint.
        revision: Branch, tag or commit of the model on the hub.
        adapter: Folder (or name) of a LoRA adapter (PEFT), which is merged into the weights.

    Raises:
        ModelError: The model or tokenizer is missing, broken or needs remote code, or the two do not fit
            together.
        ConfigError: Unknown dtype or device.
        OrganismError: The organism is not there.
    """
    name = str(name_or_folder)
    wanted, place = _dtype(dtype), _device(device)
    source = _source(name)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    if os.path.isdir(source):
        common |= {"local_files_only": True, "revision": None}
    config = _config(name, source, common)
    tokenizer = _tokenizer(name, source, common)
    hf = _weights(name, source, config, wanted, common)
    if adapter is not None:
        hf = _merge_adapter(hf, adapter)
    check_tokenizer(tokenizer, hf, name)
    set_pad_token(tokenizer)
    placed: Any = hf
    return Model(placed.to(place).eval(), tokenizer, name)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, hf: PreTrainedModel, name: str) -> None:
    """Check that every token id has an embedding.

    Raises:
        ModelError: It has not: this is the tokenizer of another model.
    """
    embedding: Any = hf.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    ids = tokenizer.get_vocab().values()
    highest = max(ids, default=-1)
    if highest < 0:
        raise ModelError(f"{name}: its tokenizer is empty. Next: check the tokenizer files.")
    if highest >= rows:
        raise ModelError(
            f"{name}: the tokenizer has token ids up to {highest}, the model has embeddings for {rows}: it "
            f"is the "
            "tokenizer of another model. Next: put the tokenizer that the model was trained with into its "
            "folder."
        )
    if 2 * (highest + 1) < rows and rows - highest > 1024:
        say(
            f"note: {name} has {rows} embeddings but its tokenizer only {highest + 1} tokens; is it the "
            f"right one?"
        )


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a pad token one: end of sequence, else unknown, else token 0.

    Padding is always masked, so that any token will do; no token is added to the vocabulary.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)


def _source(name: str) -> str:
    """Folder or hub name to read from."""
    if name.startswith(ORGANISM):
        organism = name.removeprefix(ORGANISM)
        if organism != "pocket":
            raise ModelError(f"'{name}': no such organism. Next: use organism:pocket.")
        from fairlead.organisms import pocket_path

        return str(pocket_path())
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise ModelError(
                f"{name}: not a model folder (no config.json). Next: give the folder that holds "
                f"config.json, the weights "
                "and the tokenizer."
            )
        return name
    looks_like_path = (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    )
    if looks_like_path or os.path.exists(name):
        raise ModelError(f"{name}: no such model folder. Next: check the path.")
    return name


def _config(name: str, source: str, common: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, **common)
    except Exception as error:
        raise _explain(name, error, "config") from error


def _tokenizer(name: str, source: str, common: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"{name}: no tokenizer in the folder (no {_TOKENIZER_FILES[0]}). Next: save it there with "
            "tokenizer.save_pretrained(folder)."
        )
    try:
        return AutoTokenizer.from_pretrained(source, **common)
    except Exception as error:
        raise _explain(name, error, "tokenizer") from error


def _weights(
    name: str, source: str, config: Any, dtype: torch.dtype | str, common: dict[str, Any]
) -> PreTrainedModel:
    loader = _loader(config)
    try:
        with _no_bar():
            hf, info = loader.from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True, **common
            )
    except Exception as error:
        raise _explain(name, error, "weights") from error
    missing = sorted(key for key in info["missing_keys"] if not any(part in key for part in _HARMLESS))
    if missing:
        raise ModelError(
            f"{name}: the checkpoint lacks {len(missing)} weights ({', '.join(missing[:3])}, ...), which "
            f"would be random. "
            "Next: use a complete checkpoint of this architecture."
        )
    return hf


@contextmanager
def _no_bar() -> Iterator[None]:
    """Without transformers' bar (downloads keep theirs) and its report of keys, which are checked here."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _loader(config: Any) -> Any:
    """The Auto class for a checkpoint: with its language-modelling head where it has one."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    architecture = (getattr(config, "architectures", None) or [""])[0]
    remote = getattr(config, "auto_map", None) or {}
    if architecture.endswith(("ForMaskedLM", "ForPreTraining")):
        return AutoModelForMaskedLM
    if architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return AutoModelForCausalLM
    if "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked:
        return AutoModelForCausalLM
    return AutoModel


def _merge_adapter(hf: PreTrainedModel, adapter: str | Path) -> PreTrainedModel:
    from peft import PeftModel

    if not os.path.isfile(os.path.join(str(adapter), "adapter_config.json")) and os.path.exists(str(adapter)):
        raise ModelError(f"{adapter}: not a LoRA adapter (no adapter_config.json). Next: check the folder.")
    try:
        return PeftModel.from_pretrained(hf, str(adapter)).merge_and_unload()
    except Exception as error:
        raise ModelError(
            f"{adapter}: cannot load this adapter ({_first_line(error)}). Next: use a LoRA adapter "
            "that was trained on this model."
        ) from error


def _explain(name: str, error: Exception, part: str) -> ModelError:
    """A transformers error as one that says what to do."""
    text = str(error)
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    if "trust_remote_code" in text or "custom code" in text:
        return ModelError(
            f"{name}: this checkpoint brings its own code, which is not run unasked. Next: read that code, "
            "then pass trust_remote_code=True."
        )
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        return ModelError(
            f"{name}: transformers does not know this architecture ({_first_line(error)}). Next: update "
            "transformers, or use a model of a known type."
        )
    if os.path.isdir(name) or name.startswith(ORGANISM):
        return ModelError(
            f"{name}: the {part} cannot be read ({type(error).__name__}: {_first_line(error)}). Next: check "
            "the files in this folder, or fetch them again."
        )
    if "gated" in text or "401" in text or "403" in text:
        why = "it is gated or private. Next: accept its licence on huggingface.co and log in (hf auth login)."
    elif offline or "couldn't connect" in text or "Cannot find the requested files" in text:
        why = (
            "it is not in the local cache and the hub was not reached"
            + (" (HF_HUB_OFFLINE is set)" if offline else "")
            + ". Next: give a folder, or fetch the model once with the network on."
        )
    elif "not a valid model identifier" in text or "404" in text or "Repository Not Found" in text:
        why = "no such model on huggingface.co and no such folder. Next: check the spelling."
    else:
        why = f"{type(error).__name__}: {_first_line(error)}. Next: check the name, or give a folder."
    return ModelError(f"{name}: cannot load its {part}: {why}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _dtype(dtype: str) -> torch.dtype | str:
    if dtype == "auto":
        return "auto"
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; use one of {', '.join([*_DTYPES, 'auto'])}.")
    return _DTYPES[dtype]


def _device(device: str) -> torch.device:
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        local = os.environ.get("LOCAL_RANK")  # set by launchers of several processes, one per GPU
        return torch.device("cuda" if local is None else f"cuda:{local}")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device is {device!r}; use auto, cpu, cuda or cuda:N.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but there is no GPU here. Next: use auto or cpu.")
    return place


def reloadable(model: Model, scratch: Path) -> str:
    """A name or folder from which another process loads this very model; saved to `scratch` where its name gives another or none."""
    try:
        same = load_model(model.name, device=str(model.device)).fingerprint == model.fingerprint
    except ModelError:
        same = False
    return model.name if same else str(model.save(scratch))
