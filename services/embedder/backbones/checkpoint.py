"""A Hugging Face checkpoint on disk: a local folder as it is, a hub id through the hub's own cache.

Only safetensors are read (never pickles), only the tensors asked for, and the identity of a checkpoint is the hash of
its weight files: two names with the same weights make the same bundle.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.embedder.backbones.hub import download
from services.embedder.bundle import file_sha256
from servox.errors import BadInput

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
CONVERT = (
    'python -c "import glob, torch; from safetensors.torch import save_file; '
    "save_file({k: v.clone(memory_format=torch.contiguous_format) for f in glob.glob('pytorch_model*.bin') "
    f"for k, v in torch.load(f, weights_only=True).items()}}, '{WEIGHTS}')\""
)
OPTIONAL = ("preprocessor_config.json",)

Named = TypeVar("Named", bound=Mapping[str, Tensor])


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

    def tensors(self, prefixes: tuple[str, ...]) -> "Tensors":
        """Tensors whose name starts with one of `prefixes`, named without it.

        Raises:
            BadInput: when there is none, or a file cannot be read.
        """
        found: dict[str, Tensor] = {}
        for path in self.weights:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - safetensors' file is not a mapping
                    prefix = next((p for p in prefixes if name.startswith(p)), None)
                    if prefix is not None:
                        found[name.removeprefix(prefix)] = file.get_tensor(name)
        if not found:
            raise BadInput(
                f"checkpoint {self.name} has no tensors named {' or '.join(prefixes)}…: is it the right family?"
            )
        return Tensors(found)


class Tensors(Mapping[str, Tensor]):
    """A checkpoint's tensors, float32 when they are read.

    Until then they are pages of the mapped file: a depth that is cut away, or a tensor that is read once and copied,
    takes no memory.

    Args:
        stored: by name, as the file holds them.
    """

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def open_checkpoint(source: str) -> Checkpoint:
    """The checkpoint at a local folder or, where no such folder exists, of a hub id such as `openai/whisper-base`.

    Raises:
        NotFound: when neither is there.
        BadInput: when the folder is not a checkpoint.
    """
    folder = Path(source)
    if folder.is_dir():
        return _local(folder, name=folder.resolve().name)
    folder = download(source, config=CONFIG, optional=OPTIONAL, weights=WEIGHTS, index=INDEX, shards=_shards)
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise BadInput(
            f"model {source!r} of the hub has no {WEIGHTS}, only older formats such as pickles, which can run code "
            f"when they are read: fetch it (hf download {source} --local-dir FOLDER), convert it where you trust it, "
            f"in that folder ({CONVERT}), and give the folder"
        )
    return _local(folder, name=source)


def checked(name: str, expected: Mapping[str, Tensor], found: Named) -> Named:
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
        weights = tuple(folder / part for part in _shards(folder / INDEX))
    elif any((folder / pickle).is_file() for pickle in PICKLES):
        raise BadInput(
            f"checkpoint {name} holds its weights as a pickle, which can run code when it is read: convert it where "
            f"you trust it, in its folder: {CONVERT}"
        )
    else:
        raise BadInput(f"checkpoint {name} has no {WEIGHTS}: save it again with transformers' save_pretrained")
    if absent := [path.name for path in weights if not path.is_file()]:
        raise BadInput(f"checkpoint {name} lacks {absent[0]}, which its {INDEX} names: fetch it again")
    return Checkpoint(name=name, folder=folder, config=config, weights=weights)


def _shards(index: Path) -> list[str]:
    """Names of the files that hold the weights, as the index has them.

    Raises:
        BadInput: when it names none, or one outside the checkpoint.
    """
    named = _json(index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise BadInput(f"{index.name} of the checkpoint names no files beside it: fetch the checkpoint again")
    return names


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        BadInput: when it is cut short or is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise BadInput(
            f"{path.name} of the checkpoint is damaged or cut short ({error}): fetch the checkpoint again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path.name} of the checkpoint is not readable JSON: fetch the checkpoint again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path.name} of the checkpoint is not a JSON object: fetch the checkpoint again")
    return content
