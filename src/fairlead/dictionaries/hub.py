"""Dictionaries by their Hugging Face name: `hf:ORG/REPOSITORY/FOLDER`, downloaded through huggingface_hub's cache.

`hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`; the organisation of Gemma Scope may be left out. Only the files
that the layouts need are fetched; pickled ones from Goodfire's repositories only, whose releases are such (`released` reads tensors and
nothing else). This is the one place that touches the network.
"""

from __future__ import annotations

from pathlib import Path

from fairlead.core.errors import DictionaryError

PREFIX = "hf:"
_FILES = ("*.json", "*.safetensors", "*.npz")
_PICKLES = ("*.pt", "*.pth")
_PICKLED = ("goodfire",)  # owners whose dictionaries are state dicts of tensors
_OWNERS = {"gemma-scope": "google"}


def split_name(name: str) -> tuple[str, str]:
    """Repository and folder within it of a `hf:` name.

    Raises:
        DictionaryError: No repository is named.
    """
    parts = name.removeprefix(PREFIX).strip("/").split("/")
    owner = next((o for start, o in _OWNERS.items() if parts[0].startswith(start)), None)
    if owner is not None:
        parts = [owner, *parts]
    if len(parts) < 2 or not all(parts):
        raise DictionaryError(
            f"'{name}' names no repository. Next: write hf:ORG/REPOSITORY or hf:ORG/REPOSITORY/FOLDER."
        )
    return "/".join(parts[:2]), "/".join(parts[2:])


def fetch_dictionary(name: str) -> Path:
    """Local folder of a `hf:` name, downloaded where the cache lacks it.

    Raises:
        DictionaryError: No network and nothing in the cache, no such repository, or no file there that can be read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, folder = split_name(name)
    tail = f"{folder}/" if folder else ""
    pickled = _PICKLES if repo.split("/")[0].lower() in _PICKLED else ()
    patterns = [f"{tail}{ending}" for ending in (*_FILES, *pickled)]  # an asterisk also matches folders below
    try:
        root = Path(snapshot_download(repo, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise DictionaryError(
            f"{name}: not in the cache, and Hugging Face cannot be reached. Next: go online (unset HF_HUB_OFFLINE), or pass a local folder."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DictionaryError(
            f"{name}: no repository '{repo}' that you may read ({type(error).__name__}). Next: check the name, or `hf auth login`."
        ) from error
    except OSError as error:
        raise DictionaryError(
            f"{name}: cannot be downloaded ({error}). Next: check the network and try again."
        ) from error
    found = root / folder
    if not found.is_dir() or not any(path.is_file() for path in found.rglob("*")):
        raise DictionaryError(
            f"{name}: holds no file that can be read ({', '.join(_FILES)}; pickled weights are fetched from Goodfire's repositories only). "
            f"Next: check the folder's name at https://huggingface.co/{repo}/tree/main."
        )
    return found
