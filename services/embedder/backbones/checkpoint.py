"""A Hugging Face checkpoint on disk: a local folder as it is, a hub id through the hub's own cache.

Only safetensors are read (never pickles), only the tensors asked for, and the identity of a checkpoint is the hash of
its weight files: two names with the same weights make the same bundle.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from services.embedder.bundle import file_sha256
from servox.errors import BadInput, NotFound

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; '
    f"save_file({{k: v.clone() for k, v in torch.load('{PICKLE}', weights_only=True).items()}}, '{WEIGHTS}')\""
)
OPTIONAL = ("preprocessor_config.json",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Config and weight files of one model; `name` is the hub id or the folder's own name."""

    name: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def sha256(self) -> str:
        """Hash of the weights: of the one file, or of the list of hashes where they are sharded."""
        hashes = [file_sha256(path) for path in self.weights]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    def preprocessor(self) -> dict[str, Any]:
        """The feature extractor's settings, empty where the checkpoint has none."""
        path = self.folder / OPTIONAL[0]
        return _json(path) if path.is_file() else {}

    def tensors(self, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        """Tensors in float32 whose name starts with one of `prefixes`, named without it.

        Raises:
            BadInput: when there is none.
        """
        found: dict[str, Tensor] = {}
        for path in self.weights:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safetensors' file is not a mapping
                    prefix = next((p for p in prefixes if name.startswith(p)), None)
                    if prefix is not None:
                        found[name.removeprefix(prefix)] = file.get_tensor(name).float()
        if not found:
            raise BadInput(
                f"checkpoint {self.name} has no tensors named {' or '.join(prefixes)}…: is it the right family?"
            )
        return found


def open_checkpoint(source: str) -> Checkpoint:
    """The checkpoint at a local folder or, where no such folder exists, of a hub id such as `openai/whisper-base`.

    Raises:
        NotFound: when neither is there.
        BadInput: when the folder is not a checkpoint.
    """
    folder = Path(source)
    if not folder.is_dir():
        return _local(_download(source), name=source)
    return _local(folder, name=folder.resolve().name)


def checked(name: str, expected: Mapping[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """`found`, if it has the tensors and shapes that the config promises.

    Raises:
        BadInput: naming the first that is missing, unknown or of another shape.
    """
    for key, tensor in expected.items():
        if key not in found:
            raise BadInput(f"checkpoint {name} lacks the tensor {key}: fetch it again, or correct its config.json")
        if found[key].shape != tensor.shape:
            raise BadInput(
                f"tensor {key} of checkpoint {name} is {list(found[key].shape)} and its config.json says "
                f"{list(tensor.shape)}: fetch the checkpoint again"
            )
    if extra := sorted(found.keys() - expected.keys()):
        raise BadInput(f"checkpoint {name} has a tensor {extra[0]} that its config.json does not know: fetch it again")
    return found


def _local(folder: Path, *, name: str) -> Checkpoint:
    if not (folder / CONFIG).is_file():
        raise BadInput(
            f"{name} is not a checkpoint: it has no {CONFIG}; give a hub id or a folder saved by transformers"
        )
    config = _json(folder / CONFIG)
    if (folder / WEIGHTS).is_file():
        weights: tuple[Path, ...] = (folder / WEIGHTS,)
    elif (folder / INDEX).is_file():
        weights = tuple(folder / part for part in sorted(set(_json(folder / INDEX)["weight_map"].values())))
    elif (folder / PICKLE).is_file():
        raise BadInput(
            f"checkpoint {name} holds its weights as a pickle, which can run code when it is read: convert it where "
            f"you trust it, in its folder: {CONVERT}"
        )
    else:
        raise BadInput(f"checkpoint {name} has no {WEIGHTS}: save it again with transformers' save_pretrained")
    return Checkpoint(name=name, folder=folder, config=config, weights=weights)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path.name} of the checkpoint is not readable JSON: fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path.name} of the checkpoint is not a JSON object: fetch the checkpoint again")
    return content


def _download(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(hub_id, name))

    try:
        config = fetch(CONFIG)
        for name in OPTIONAL:
            _optional(fetch, name, EntryNotFoundError)
        if _optional(fetch, WEIGHTS, EntryNotFoundError) is None:
            index = _optional(fetch, INDEX, EntryNotFoundError)
            for part in sorted(set(_json(index)["weight_map"].values())) if index else ():
                fetch(part)
            if index is None:
                raise BadInput(
                    f"model {hub_id!r} of the hub has no safetensors: download it, convert its {PICKLE} in its folder "
                    f"({CONVERT}), and give that folder"
                )
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        raise NotFound(
            f"source {hub_id!r} is neither a folder nor a model that the hub gave ({type(error).__name__}): "
            "check the name and the network, or download the checkpoint and give its folder"
        ) from error
    return config.parent


def _optional(fetch: Callable[[str], Path], name: str, absent: type[Exception]) -> Path | None:
    try:
        return fetch(name)
    except absent:
        return None
