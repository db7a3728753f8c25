"""Files of torch.save: made up, hostile, and real ones where torch is there."""

import io
import pickle
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdet.models.weights.pth import read_pth


def write(path, pickled, storages=(), compression=zipfile.ZIP_STORED, **more):
    """A file as torch.save makes it, of given parts."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for key, numbers in dict(storages).items():
            file.writestr(f"archive/data/{key}", numbers)
        for name, content in more.items():
            file.writestr(f"archive/{name}", content)
    return path


class Call:
    """Pickled as a call of the function of that name."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    def __init__(self, kind, key):
        self.kind, self.key = kind, key


class Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


class Pickler(pickle._Pickler):
    """Writes calls of functions that need not be here."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(Global(obj.module, obj.name))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Storage):
            self.save(("storage", Global("torch", obj.kind), obj.key, "cpu", 0))
            self.write(pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)


def pickled(content):
    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def tensor(key="0", offset=0, size=(2, 3), stride=(3, 1), kind="FloatStorage"):
    arguments = Storage(kind, key), offset, size, stride, False, OrderedDict()
    return Call("torch._utils", "_rebuild_tensor_v2", *arguments)


NUMBERS = np.arange(6, dtype="<f4")


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": x, "epoch": 3, "lr": 0.1}])
def test_tensors_are_read(tmp_path, wrap):
    state = {
        "whole": tensor(),
        "turned": tensor(size=(3, 2), stride=(1, 3)),
        "part": tensor(offset=4, size=(2,), stride=(1,)),
        "number": tensor("1", size=(), stride=(), kind="LongStorage"),
        "parameter": Call("torch._utils", "_rebuild_parameter", tensor(), True, OrderedDict()),
        "half": tensor("2", kind="HalfStorage"),
        "brain": tensor("3", kind="BFloat16Storage"),
    }
    storages = {
        "0": NUMBERS, "1": np.array([7]), "2": NUMBERS.astype("f2"),
        "3": NUMBERS.astype(jnp.bfloat16),
    }  # fmt: skip
    content = pickled(wrap(state))
    storages = {key: value.tobytes() for key, value in storages.items()}
    got = read_pth(write(tmp_path / "a.pth", content, storages, byteorder="little"))
    whole = NUMBERS.reshape(2, 3)
    expected = {
        "whole": whole, "turned": whole.T, "part": NUMBERS[4:], "number": np.array(7),
        "parameter": whole, "half": whole.astype("f2"), "brain": whole.astype(jnp.bfloat16),
    }  # fmt: skip
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


# What a pickle may try, and what the message says of it.
ATTACKS = {
    "system": (Call("os", "system", "touch {}"), r"asks for os\.system"),
    "eval": (Call("builtins", "eval", "open('{}', 'w')"), r"asks for builtins\.eval"),
    "old name of eval": (Call("__builtin__", "eval", "open('{}', 'w')"), "asks for __builtin__"),
    "by way of getattr": (
        Call("builtins", "getattr", Global("os", "path"), "join"),
        r"asks for builtins\.getattr",
    ),
    "a name with dots": (Global("collections", "OrderedDict.fromkeys"), "OrderedDict.fromkeys"),
    "numpy": (Call("numpy", "load", "{}", None, True), r"asks for numpy\.load"),
    "another of torch": (Call("torch.hub", "load", "{}"), r"asks for torch\.hub\.load"),
    "torch's loader": (Call("torch.serialization", "_load", "{}"), "asks for torch.serialization"),
    "a module": (Global("torch.nn.modules.conv", "Conv2d"), r"asks for torch\.nn.* alone"),
    "the reader itself": (Global("jaxdet.models.weights.pth", "read_pth"), r"asks for jaxdet"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_a_tensor_is_neither_called_nor_looked_up(tmp_path, attack):
    content, message = ATTACKS[attack]
    victim = tmp_path / "victim"
    if isinstance(content, Call):
        arguments = [a.format(victim) if isinstance(a, str) else a for a in content.arguments]
        content = Call(content.module, content.name, *arguments)
    file = write(tmp_path / "a.pth", pickled({"a": content}), {"0": NUMBERS.tobytes()})
    with pytest.raises(ValueError, match=message):
        read_pth(file)
    assert not victim.exists()


@pytest.mark.parametrize("target", ["torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict"])
@pytest.mark.parametrize("state", [b"}X\1\0\0\0aK\1s", b"N}X\x0c\0\0\0__defaults__)s\x86"])
def test_a_pickle_cannot_change_what_reads_it(tmp_path, target, state):
    """BUILD sets attributes of what was looked up, a dictionary's or another object's."""
    file = write(tmp_path / "a.pth", b"\x80\2c" + target.encode() + b"\n" + state + b"b.")
    with pytest.raises((AttributeError, TypeError), match=r"attribute|assignment"):
        read_pth(file)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (2, 4)},
        {"offset": 1},
        {"offset": -1},
        {"stride": (4, 1)},
        {"stride": (-3, 1)},
        {"stride": (2**62, 1)},
        {"size": (-2, 3)},
        {"size": (2.0, 3)},
        {"size": (2, 3, 1)},
        {"size": (2**40, 2**40), "stride": (0, 1)},
        {"kind": "DoubleStorage"},
        {"key": "1"},
        {"key": "../0"},
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, options):
    file = write(tmp_path / "a.pth", pickled({"a": tensor(**options)}), {"0": NUMBERS.tobytes()})
    with pytest.raises((ValueError, TypeError, KeyError, OverflowError)) as error:
        read_pth(file)
    assert "Type-check" not in str(error.value)


@pytest.mark.parametrize(
    "content,message",
    [
        ({}, "not a state dict"),
        ([tensor()], "not a state dict"),
        (tensor(), "not a state dict"),
        ({"a": tensor(), "b": 3}, "'b' is not a tensor"),
        ({0: tensor()}, "0 is not a tensor"),
        ({"model": {"a": "text"}}, "'a' is not a tensor"),
        ({"a": tensor(), "b": tensor(kind="HalfStorage")}, "a kind that is not read"),
        ({"a": tensor(kind="ComplexFloatStorage")}, "asks for torch.ComplexFloatStorage"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, message):
    file = write(tmp_path / "a.pth", pickled(content), {"0": NUMBERS.tobytes()})
    with pytest.raises(ValueError, match=message):
        read_pth(file)


def test_other_files_are_refused(tmp_path):
    good = pickled({"a": tensor()}), {"0": NUMBERS.tobytes()}
    big_endian = write(tmp_path / "big.pth", *good, byteorder="big")
    with pytest.raises(ValueError, match="little-endian"):
        read_pth(big_endian)
    bomb = write(tmp_path / "bomb.pth", *good, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        read_pth(bomb)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"not of torch since version 0\.4: .* save its state"):
        read_pth(tmp_path / "plain.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_torchs_own_files_are_read_as_torch_reads_them(tmp_path, zipped):
    """Of today's form and of the one before version 1.6."""
    torch = pytest.importorskip("torch")
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    state |= {
        "whole": base, "turned": base.permute(2, 0, 1), "part": base[1:, ::2, 1:4],
        "half": base.half(), "brain": base.bfloat16(), "double": base.double(),
        "empty": torch.zeros(0, 4), "number": torch.tensor(7), "wide": torch.ones(1).expand(4, 5),
        "bytes": torch.arange(5, dtype=torch.uint8), "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(base),
    }  # fmt: skip
    assert not state["turned"].is_contiguous() and not state["part"].is_contiguous()
    for content in (state, {"model": state, "epoch": 3, "optimizer": {"lr": 0.1, "groups": [1]}}):
        file = tmp_path / "a.pth"
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        got, expected = read_pth(file), torch.load(file, weights_only=True)
        expected = expected.get("model", expected)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            assert got[name].dtype.name == str(value.dtype).removeprefix("torch.")
            value = value.detach().double().numpy()
            np.testing.assert_array_equal(got[name].astype(np.float64), value)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(Exception, match=r".+"):
        read_pth(file)
