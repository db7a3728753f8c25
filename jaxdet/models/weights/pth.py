"""The tensors of a .pth file, read without torch, and without doing what the file says.

`torch.save` writes a pickle that describes the tensors, and their numbers beside it. A pickle is a
program: it calls whatever its reader lets it find. Here it finds four things, which only write
descriptions down; arrays are made afterwards, and none reaches beyond its storage.
"""

import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip

# How a file of torch before version 1.6 begins: the pickle of a certain number.
BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Tensor(NamedTuple):
    """What a pickle says of a tensor: its storage's key; the rest is counted in numbers of it."""

    storage: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


# Objects without attributes, so that a pickle cannot set any.
class RebuildTensor:
    """Takes the place of torch._utils._rebuild_tensor_v2."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, requires_grad, hooks, metadata=None):
        return Tensor(storage, offset, size, stride)


class RebuildParameter:
    """Takes the place of torch._utils._rebuild_parameter."""

    __slots__ = ()

    def __call__(self, tensor, requires_grad, hooks):
        return tensor


class DescriptionReader(pickle.Unpickler):
    """Reads dictionaries, lists, strings, numbers, and descriptions of tensors; nothing else.

    `kinds` has the kind (of DTYPES) of each storage that was named.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.kinds: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return RebuildTensor()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return RebuildParameter()
        if module == "torch" and name in DTYPES:
            return name
        raise ValueError(
            f"it asks for {module}.{name}, and only tensors are read: save the state dict alone, "
            "by torch.save(model.state_dict(), FILE)"
        )

    def persistent_load(self, pid: Any) -> str:
        word, kind, key, _, _, *view = pid
        if word != "storage" or any(view) or self.kinds.setdefault(key, kind) != kind:
            raise ValueError("it has a storage of a kind that is not read")
        return key


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, read-only; a training script's is looked for in "model".

    Raises:
        ValueError: for a file that is not torch's or holds more than tensors.
        Exception: others, of a file that is broken.
    """
    with path.open("rb") as stream:
        start = stream.read(len(BEFORE_1_6))
        stream.seek(0)
        if start == BEFORE_1_6:
            content, storages = _read_before_1_6(stream)
        elif zipfile.is_zipfile(stream):
            content, storages = _read_zip(stream)
        else:
            raise ValueError(
                "it is not of torch since version 0.4: if you trust it, load it with torch and "
                "save its state dict again"
            )
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ValueError("it is not a state dict, which has tensors by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"its {name!r} is not a tensor: save the state dict alone")
    return {name: _array(tensor, storages) for name, tensor in content.items()}


def _read_zip(stream):
    """What the pickle describes, and the storages by key."""
    with zipfile.ZipFile(stream) as file:

        def member(name):
            if file.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its {name} is compressed, which torch does not do")
            return file.open(name)

        (pickled,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        order = f"{folder}byteorder"  # since torch 2.1
        if order in file.namelist() and member(order).read() != b"little":
            raise ValueError("its numbers are not little-endian")
        reader = DescriptionReader(member(pickled))
        content = reader.load()
        return content, {
            key: np.frombuffer(member(f"{folder}data/{key}").read(), DTYPES[kind])
            for key, kind in reader.kinds.items()
        }


def _read_before_1_6(stream):
    """As `_read_zip`, of a stream of five pickles, the fourth of which is the content, and the
    storages in the order of the fifth: each its length and its numbers."""
    for _ in range(3):  # the number that it begins with, a version, the machine
        DescriptionReader(stream).load()
    reader = DescriptionReader(stream)
    content, keys, storages = reader.load(), DescriptionReader(stream).load(), {}
    for key in keys:
        dtype = np.dtype(DTYPES[reader.kinds[key]])
        (length,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(length * dtype.itemsize), dtype)
        if len(storages[key]) != length:
            raise ValueError("it is cut off")
    return content, storages


def _array(tensor, storages):
    storage = storages[tensor.storage]
    step = storage.itemsize
    strides = [step * n for n in tensor.stride]
    # NumPy refuses what does not lie within the storage.
    return np.ndarray(tensor.size, storage.dtype, storage, step * tensor.offset, strides)
