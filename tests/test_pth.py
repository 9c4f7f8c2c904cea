"""`minigrad.pth` reads what PyTorch has written, in both of its formats, runs nothing, and says in one sentence why it does not read another file."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from conformer import conformer_cifar_nano
from minigrad import pth
from minigrad.nn import Linear

BOTH = pytest.mark.parametrize("archive", [True, False], ids=["archive", "pickles"])
KINDS = [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
KINDS += [torch.uint16, torch.uint32, torch.uint64]  # whose storages are bytes


def saved(value: Any, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def loaded(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return pth.load(path)


@BOTH
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_tensors_of_every_dtype_are_read(path: Path, dtype: torch.dtype, archive: bool) -> None:
    values = torch.arange(-3, 9).to(dtype)
    tensors = [values, values.reshape(3, 4).T, values[5:8], values.reshape(2, 2, 3)[:, 1, ::2], values[3], values[:0].reshape(0, 4), values[:]]
    found = loaded(path, saved(tensors, archive))
    assert isinstance(found, list)
    for array, tensor in zip(found, tensors, strict=True):
        assert_array_equal(array, tensor.numpy(), strict=True)
        array[...] = 0  # each has memory of its own, and may be written


@BOTH
def test_bfloat16_becomes_float32(path: Path, archive: bool) -> None:
    values = torch.tensor([1.0, -2.5, float("inf"), 3e38, 1e-40, -0.0]).bfloat16()
    array = loaded(path, saved(values, archive))
    assert_array_equal(array, values.float().numpy(), strict=True)
    assert np.signbit(array[-1])


@BOTH
def test_a_turned_tensor_that_has_its_storage_for_itself_and_one_without_numbers(path: Path, archive: bool) -> None:
    for tensor in (torch.arange(6.0).reshape(2, 3).T, torch.zeros(3, 0), torch.zeros(0, 2)):
        assert_array_equal(loaded(path, saved(tensor, archive)), tensor.numpy(), strict=True)


def test_tensors_that_share_a_storage_get_memory_of_their_own(path: Path) -> None:
    values = torch.arange(4.0)
    first, second = loaded(path, saved([values, values.reshape(2, 2)]))
    first[...] = -1
    assert_array_equal(second, [[0, 1], [2, 3]])


@pytest.mark.parametrize("dtype", [np.float64, np.uint16])
def test_storages_of_a_machine_with_the_other_byte_order_are_turned(path: Path, dtype: type[np.generic]) -> None:
    values = np.arange(3).astype(dtype)
    with zipfile.ZipFile(io.BytesIO(saved(torch.from_numpy(values)))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (folder,) = {name.partition("/")[0] for name in members}
    members |= {f"{folder}/byteorder": b"big", f"{folder}/data/0": values.astype(values.dtype.newbyteorder(">")).tobytes()}
    assert_array_equal(loaded(path, zipped(members)), values, strict=True)


@BOTH
def test_storages_of_bytes_are_read(path: Path, archive: bool) -> None:
    """A storage by itself, and one that ends within a number."""
    data = torch.arange(5, dtype=torch.uint8)
    found = loaded(path, saved([data.untyped_storage(), data[:4].view(torch.uint16)], archive))
    assert_array_equal(found[0], np.arange(5, dtype=np.uint8), strict=True)
    assert_array_equal(found[1], data[:4].view(torch.uint16).numpy(), strict=True)


@BOTH
def test_of_a_checkpoint_with_more_than_weights_all_but_objects_is_read(path: Path, archive: bool) -> None:
    """What the official training program writes, and what people add to it."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.randn(4, 3, 3, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    tagged = torch.nn.Parameter(torch.ones(2))
    tagged.note = "x"  # type: ignore[attr-defined]
    everything = {
        "model": module.state_dict(), "optimizer": optimizer, "epoch": 3, "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float64(0.5), "shape": torch.Size([2, 3]), "dtype": torch.float32, "tagged": tagged,
        "plain": [None, True, (1.5, "text", b"bytes")],
    }  # fmt: skip
    found = loaded(path, saved(everything, archive))
    assert type(found["model"]) is OrderedDict and found["model"].keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert_array_equal(found["model"][name], tensor.numpy(), strict=True)
    assert_array_equal(found["optimizer"]["state"][0]["exp_avg"], optimizer["state"][0]["exp_avg"].numpy(), strict=True)
    assert (found["epoch"], found["shape"], found["plain"]) == (3, (2, 3), everything["plain"])
    assert_array_equal(found["tagged"], np.ones(2, np.float32), strict=True)
    assert isinstance(found["args"], pth.Unread) and repr(found["args"]) == "<argparse.Namespace, not read>" and not hasattr(found["args"], "lr")
    assert isinstance(found["best"], pth.Unread)


@BOTH
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module_is_not_read(path: Path, archive: bool) -> None:
    assert repr(loaded(path, saved(torch.nn.Linear(2, 2), archive))) == "<torch.nn.modules.linear.Linear, not read>"


def test_a_checkpoint_of_a_conformer_goes_into_the_network(path: Path) -> None:
    """A stand-in for the published ones: the same kinds of entries under the same names."""
    model, other = conformer_cifar_nano(), conformer_cifar_nano()
    state = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in model.state_dict().items())
    found = loaded(path, saved({"model": state, "epoch": 1}))["model"]
    other.load_state_dict(found)
    for name, value in model.state_dict().items():
        assert_array_equal(other.state_dict()[name], value, strict=True)


class Trap:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def test_a_tensor_that_is_negative_by_a_mark_is_negated(path: Path) -> None:
    """The imaginary part of a conjugate is a view, of which PyTorch only notes that its numbers are to be negated."""
    values = torch.tensor([1 + 2j, 3 + 4j]).conj().imag
    assert values.is_neg()
    assert_array_equal(loaded(path, saved(values)), [-2.0, -4.0])


@BOTH
@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_parameters_and_tensors_with_attributes_are_read(path: Path, archive: bool, protocol: int) -> None:
    values = torch.tensor([1.0, -2.0, 3.0])
    parameter, noted, tensor = torch.nn.Parameter(values), torch.nn.Parameter(values + 1), values + 2
    noted.note = tensor.note = "x"  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save({"a": parameter, "b": noted, "c": tensor, "d": tensor}, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    found = loaded(path, buffer.getvalue())
    for name, expected in {"a": [1, -2, 3], "b": [2, -1, 4], "c": [3, 0, 5], "d": [3, 0, 5]}.items():
        assert_array_equal(found[name], np.array(expected, np.float32), strict=True)


WIDE = collections.namedtuple("WIDE", [f"option_{k}" for k in range(150)])  # type: ignore[misc]


def test_what_is_not_read_may_have_many_parts(path: Path) -> None:
    """Options as one namedtuple, beside the weights."""
    found = loaded(path, saved({"options": WIDE(*range(150)), "w": torch.ones(2)}))
    assert repr(found["options"]).endswith("WIDE, not read>")
    assert_array_equal(found["w"], np.ones(2, np.float32), strict=True)


def test_protocol_4_names_classes_too(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save([OrderedDict(a=1), argparse.Namespace(b=2), OrderedDict(c=3)], buffer, pickle_protocol=4)
    first, second, third = loaded(path, buffer.getvalue())
    assert (first, third) == (OrderedDict(a=1), OrderedDict(c=3)) and repr(second) == "<argparse.Namespace, not read>"


def test_an_array_that_is_all_of_its_storage_is_not_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a checkpoint would be in memory twice while it is read."""
    storages = []
    monkeypatch.setattr(pth, "_numbers", lambda *args, real=pth._numbers: storages.append(real(*args)) or storages[-1])
    for values in (torch.arange(4.0), torch.arange(4).to(torch.uint16)):
        first, second = loaded(path, saved([values.reshape(2, 2), values[:]]))
        assert np.shares_memory(first, storages[-1]) and not np.shares_memory(second, storages[-1])


@BOTH
def test_containers_and_numbers_are_read(path: Path, archive: bool) -> None:
    everything = {"set": {1, 2}, "complex": 1 + 2j, "key": {(1, "a"): 2, None: 3, 1.5: 4, True: 5, b"b": 6}, "long": 1 << 70, "deep": [[[()]]]}
    assert loaded(path, saved(everything, archive)) == everything


class WithKeywords:
    """Protocol 4 has an instruction of its own for such a class."""

    def __new__(cls, *, value: int) -> WithKeywords:
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple:
        return (), {"value": 1}


class Named(NamedTuple):
    value: int


@BOTH
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_what_protocols_and_collections_have_is_read(path: Path, protocol: int, archive: bool) -> None:
    """Containers of the standard library become the plain ones, and no instruction that a protocol has is unknown."""
    circle: tuple = (1, 2, 3, [])
    circle[3].append(circle)
    short: tuple = ([],)
    short[0].append(short)
    everything = [
        collections.defaultdict(int, a=1), collections.defaultdict(None, {2: 3}), collections.Counter("aab"), collections.Counter(),
        frozenset({1, "a"}), frozenset(), {1, (2, "b")}, set(), {"a": b"x" * 300}, 1 << 3000,
        bytearray(b"abc"), WithKeywords(value=1), Named(1), np.ones(2), circle, short, True, False, 7,
    ]  # fmt: skip
    buffer = io.BytesIO()
    torch.save(everything, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    found = loaded(path, buffer.getvalue())
    plain = [{"a": 1}, {2: 3}, {"a": 2, "b": 1}, {}, {1, "a"}, set(), {1, (2, "b")}, set(), {"a": b"x" * 300}, 1 << 3000]
    assert found[:10] == plain and [type(value) for value in found[:10]] == [type(value) for value in plain]
    assert found[10] == bytearray(b"abc") if protocol == 5 else isinstance(found[10], pth.Unread)
    assert all(isinstance(value, pth.Unread) for value in found[11:14])
    assert repr(found[11]).endswith("WithKeywords, not read>" if protocol >= 4 else "functools.partial, not read>" if protocol > 1 else "not read>")
    assert found[14][:3] == (1, 2, 3) and found[14][3][0][:3] == (1, 2, 3) and type(found[15][0][0]) is tuple and found[16:] == [True, False, 7]


@BOTH
def test_protocol_0_is_not_read(path: Path, archive: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"epoch": 1}, buffer, pickle_protocol=0, _use_new_zipfile_serialization=archive)
    with pytest.raises(
        ValueError, match="has the instruction DICT, which torch.save does not write with the pickle protocols that are read, 1 to 5$"
    ):
        loaded(path, buffer.getvalue())


def test_an_ordered_dict_of_python_2_comes_as_a_list_of_pairs(path: Path) -> None:
    program = b"ccollections\nOrderedDict\n](](" + text("b") + b"K\1e](" + text("a") + b"K\2ee\x85R"
    found = loaded(path, zipped({"x/data.pkl": b"\x80\2" + program + b"."}))
    assert type(found) is OrderedDict and list(found.items()) == [("b", 1), ("a", 2)]


@BOTH
def test_a_state_saved_as_a_defaultdict_is_loaded(path: Path, archive: bool) -> None:
    state = collections.defaultdict(int, torch.nn.Linear(3, 2).state_dict())
    target = Linear(3, 2)
    target.load_state_dict(loaded(path, saved(state, archive)))
    assert_array_equal(target.weight.numpy(), state["weight"].numpy())


@BOTH
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_what_load_state_dict_says_of_what_was_not_read(path: Path, archive: bool) -> None:
    with pytest.raises(TypeError, match=r"this is <torch.nn.modules.linear.Linear, not read>; of a PyTorch module, save its state_dict\(\)$"):
        Linear(3, 2).load_state_dict(loaded(path, saved(torch.nn.Linear(3, 2), archive)))
    with pytest.raises(ValueError, match=r"weight is <numpy\S+, not read>, not an array of numbers \(in PyTorch, save a tensor\); bias is"):
        Linear(3, 2).load_state_dict(loaded(path, saved({"weight": np.ones((2, 3)), "bias": np.ones(2)}, archive)))


@BOTH
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_in_a_file_is_run(path: Path, tmp_path: Path, archive: bool) -> None:
    traps = [
        Trap(Path.touch, tmp_path / "touched"),
        Trap(eval, f"open({str(tmp_path / 'touched')!r}, 'w')"),
        Trap(getattr, "text", "upper"),
        Trap(np.load, str(path)),
    ]
    found = loaded(path, saved(traps, archive))
    assert all(isinstance(value, pth.Unread) for value in found) and not (tmp_path / "touched").exists()


def test_the_same_file_is_run_by_pickle(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    pickle.loads(pickle.dumps(Trap(Path.touch, tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tensor_pickle(kind: str, count: Any, offset: Any, shape: Any, strides: Any) -> bytes:
    """The pickle of one tensor, with whatever numbers."""

    class Pickler(pickle._Pickler):  # the one in Python can be told what to write
        def persistent_id(self, value: Any) -> Any:
            return ("storage", Global("torch", f"{kind}Storage"), "0", "cpu", count) if value is storage else None

    class Global:
        def __init__(self, module: str, name: str):
            self.text = f"c{module}\n{name}\n".encode()

    Pickler.dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]
    Pickler.dispatch[Global] = lambda self, value: self.write(value.text)  # type: ignore[attr-defined]
    storage, buffer = object(), io.BytesIO()
    pickler = Pickler(buffer, 2)
    pickler.proto, pickler.bin = 2, 1  # type: ignore[attr-defined]
    pickler.write(pickle.PROTO + b"\x02")  # type: ignore[attr-defined]
    pickler.save(Global("torch._utils", "_rebuild_tensor_v2"))  # type: ignore[attr-defined]
    pickler.save((storage, offset, shape, strides, False, None))  # type: ignore[attr-defined]
    pickler.write(pickle.REDUCE + pickle.STOP)  # type: ignore[attr-defined]
    return buffer.getvalue()


def archive_of(kind: str = "Float", count: Any = 4, offset: Any = 0, shape: Any = (2, 2), strides: Any = (2, 1), data: bytes | None = None) -> bytes:
    stored = np.arange(4, dtype=np.float32).tobytes() if data is None else data
    return zipped({"x/data.pkl": tensor_pickle(kind, count, offset, shape, strides), "x/data/0": stored})


def test_the_forged_archive_is_one_that_pytorch_reads(path: Path) -> None:
    assert_array_equal(loaded(path, archive_of()), [[0, 1], [2, 3]])
    members = {"x/data.pkl": tensor_pickle("Float", 4, 0, (2, 2), (2, 1)), "x/data/0": np.arange(4, dtype=np.float32).tobytes(), "x/version": b"3"}
    assert_array_equal(torch.load(io.BytesIO(zipped(members))), [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offset": 1}, r"a tensor of shape \(2, 2\) is not within its storage of 4 numbers"),
        ({"offset": -1}, "is not within its storage"),
        ({"strides": (3, 1)}, "is not within its storage"),
        ({"strides": (-1, 1), "offset": 2}, "is not within its storage"),
        ({"shape": (-2, -2)}, "is not within its storage"),
        ({"shape": (2, 2, 2)}, r"or is damaged \(ValueError: zip\(\) .*\)$"),
        ({"shape": (1,) * 101}, "a tensor is not made of a storage and whole numbers"),
        ({"shape": (1,) * 100, "strides": (1,) * 100}, r"or is damaged \(ValueError: .*dimension"),
        ({"shape": (1 << 63,), "strides": (0,)}, "a tensor is not made of a storage and whole numbers"),
        (
            {"shape": (1 << 40,), "strides": (0,)},
            r"holds an expanded tensor, of shape \(1099511627776,\) with a storage of only 4; save it as .contiguous\(\)",
        ),
        ({"shape": (1 << 62, 4), "strides": (0, 1)}, "with a storage of only 4"),
        ({"shape": ("2", 2)}, "a tensor is not made of a storage and whole numbers"),
        ({"shape": (2.0, 2)}, "a tensor is not made of a storage and whole numbers"),
        ({"count": 5}, "is damaged: 5 numbers of 4 bytes are 16 bytes"),
        ({"count": -4}, "is damaged: -4 numbers"),
        ({"count": "4"}, "it refers to what is not a storage"),
        ({"data": b""}, "4 numbers of 4 bytes are 0 bytes"),
        ({"kind": "ComplexFloat"}, r"numbers of a dtype that minigrad does not have \(ComplexFloatStorage\); save them in another"),
        ({"kind": "Untyped"}, "4 numbers of 1 bytes are 16 bytes"),
    ],
    ids=str,
)
def test_a_forged_tensor_is_refused(path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"weights.pth .*{said}"):
        loaded(path, archive_of(**changes))


def test_what_is_no_such_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot read .*weights.pth: No such file"):
        pth.load(path)
    with pytest.raises(IsADirectoryError, match="cannot read .*: Is a directory"):
        pth.load(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "program.pt"))
    for data, said in [
        (b"", "is not a file that torch.save has written, or is damaged"),
        (b"<html>not found</html>", "is not a file that torch.save has written, or is damaged"),
        (pickle.dumps({"a": 1}), "is not a file that torch.save has written$"),
        (zipped({"a.txt": b"x"}), "is a ZIP archive, but not one that torch.save has written"),
        (zipped({"x/data.pkl": pickle.dumps(1), "y/data.pkl": pickle.dumps(1)}), "is a ZIP archive, but not one that torch.save has written"),
        (zipped({"x/data.pkl": pickle.dumps("a" * 1000)}, zipfile.ZIP_DEFLATED), "is damaged: data.pkl is compressed, which torch.save does not do"),
        (zipped({"x/data.pkl": tensor_pickle("Float", 1, 0, (1,), (1,))}), "or is damaged"),
        (archive_of()[:-5] + b"\1" + archive_of()[-4:], r"or is damaged \(OSError: .*Invalid argument\)"),  # a directory before the file's start
        ((tmp_path / "program.pt").read_bytes(), r"is a program that torch.jit.save has written; save the state_dict\(\) of its module"),
    ]:
        with pytest.raises(ValueError, match=f"weights.pth .*{said}"):
            loaded(path, data)


def other_kinds() -> dict[str, tuple[torch.Tensor, str, Callable[[torch.Tensor], Any] | None]]:
    """Tensors that are refused, what is said of them, and what PyTorch makes of them if one does as it says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of prototypes and of what it gives up
        ones = torch.ones(2, 2)
        quantised = torch.quantize_per_tensor(ones, 0.5, 0, torch.qint8)
        nested = torch.nested.nested_tensor([ones, torch.ones(3, 2)])
        return {
            "float8": (
                ones.to(torch.float8_e5m2),
                r"dtype that minigrad does not have \(torch.float8_e5m2\); save them in .*\.float\(\)",
                torch.Tensor.float,
            ),
            "half complex": (
                ones.to(torch.complex32),
                r"\(torch.complex32\); save them in another .*view_as_real\(\) of complex",
                torch.view_as_real,
            ),
            "bits": (
                torch.arange(4, dtype=torch.uint8).view(torch.bits8),
                r"\(torch.bits8\); PyTorch has no arithmetic for them; save .view\(torch.uint8\), their bytes$",
                lambda tensor: tensor.view(torch.uint8),
            ),
            "float4": (
                torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
                r"\(torch.float4_e2m1fn_x2\); PyTorch has no arithmetic for them; save .view\(torch.uint8\), their bytes$",
                lambda tensor: tensor.view(torch.uint8),
            ),
            "complex": (ones.to(torch.complex64), r"\(ComplexFloatStorage\); save them in another .*view_as_real\(\) of complex", torch.view_as_real),
            "quantised": (quantised, r"minigrad does not have \((_rebuild_qtensor|QInt8Storage)\); save .*\.dequantize\(\)", torch.Tensor.dequantize),
            "sparse": (
                ones.to_sparse(),
                r"kind that minigrad does not have \(_rebuild_sparse_tensor\); save it as .to_dense\(\)$",
                torch.Tensor.to_dense,
            ),
            "nested": (nested, r"\(_rebuild_nested_tensor\); save the list of its .unbind\(\)$", lambda tensor: list(tensor.unbind())),
            "meta": (ones.to("meta"), r"\(_rebuild_meta_tensor_no_storage\); such a one has no numbers$", None),
            "expanded": (
                torch.ones(1).expand(2, 2),
                r"shape \(2, 2\) with a storage of only 1; save it as .contiguous\(\)$",
                torch.Tensor.contiguous,
            ),
        }


OTHER_KINDS = other_kinds()


@BOTH
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_tensor_of_another_kind_is_refused_with_advice_that_helps(path: Path, kind: str, archive: bool) -> None:
    tensor, said, advice = OTHER_KINDS[kind]
    with pytest.raises(ValueError, match=f"weights.pth holds .*{said}"):
        loaded(path, saved(tensor, archive))
    if advice:
        made = advice(tensor)
        for found, expected in zip(loaded(path, saved(made, archive)), made, strict=True):
            assert_array_equal(found, expected.numpy(), strict=True)


def test_a_short_file_that_says_it_holds_much_is_refused(path: Path) -> None:
    """It is refused before memory is asked for."""
    data = saved(torch.ones(3), archive=False)
    place = data.index(struct.pack("<q", 3) + np.ones(3, np.float32).tobytes())
    count = next(position or 0 for code, value, position in pickletools.genops(object_of(data)) if value == 3 and code.name == "BININT1")
    start = data.index(object_of(data))
    assert data[start + count : start + count + 2] == b"K\x03"
    longer = (
        data[: start + count] + b"J" + struct.pack("<i", 1 << 30) + data[start + count + 2 : place] + struct.pack("<q", 1 << 30) + data[place + 8 :]
    )
    with pytest.raises(ValueError, match="1073741824 numbers of 4 bytes are 12 bytes"):
        loaded(path, longer)
    with pytest.raises(ValueError, match="storage .* is not as long as its tensors say"):
        loaded(path, data[:place] + struct.pack("<q", 2) + data[place + 8 :])


def object_of(data: bytes) -> bytes:
    """The fourth pickle of a file of the old format."""
    file = io.BytesIO(data)
    for _ in range(3):
        for _ in pickletools.genops(file):
            pass
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    return data[start : file.tell()]


WHOLE = {archive: saved({"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(2)}, archive) for archive in (True, False)}


@BOTH
@given(data=st.data())
def test_a_damaged_file_is_an_object_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, archive: bool, data: st.DataObject) -> None:
    """One byte changed, or the end lost. An archive has checksums: what can be read is what was written."""
    whole = WHOLE[archive]
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(st.sampled_from([whole[:place], whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]]))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    try:
        found = loaded(path, damaged)
    except ValueError as error:
        assert str(error).startswith(str(path))
    else:
        if archive:
            assert_array_equal(found["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
            assert found["n"] == 2


# --- files made to do harm


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def long(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def stored(kind: str, key: str, count: int) -> bytes:
    """A reference to a storage."""
    return b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + long(count) + b"tQ"


def made_of(storage: bytes, shape: bytes, strides: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(" + shape + b"t(" + strides + b"t\x89NtR"


def one_number(kind: str, key: str) -> bytes:
    """A tensor without axes, which is not the whole number that it stands for here."""
    return made_of(stored(kind, key, 1), b"", b"")


def again(function: bytes, arguments: bytes) -> tuple[bytes, dict[str, bytes], str]:
    """What makes the same thing of the same arguments many times."""
    return function + b"q\0" + arguments + b"q\1](" + b"h\0h\1R" * 60 + b"e", {}, "more than 16 times its own size"


HARMFUL: dict[str, tuple[bytes, dict[str, bytes], str]] = {
    "a stride whose product wraps": (
        made_of(stored("Char", "0", 100), long(100), one_number("Char", "1")), {"0": bytes(100), "1": b"\3"}, "whole numbers",
    ),
    "a stride far outside": (
        made_of(stored("Char", "0", 100), long(3), one_number("Long", "1")), {"0": bytes(100), "1": b"\0" * 7 + b"@"}, "whole numbers",
    ),
    "a shape of numbers that take for ever to multiply": (
        made_of(stored("Char", "0", 1), long(1 << 2000) * 60, b"K\0" * 60), {"0": b"x"}, "whole numbers",
    ),
    "the same many arguments": (
        b"ctorch\nSize\nq\0(" + b"K\1" * 20_000 + b"tq\1](" + b"h\0h\1R" * 20_000 + b"e", {}, "calls torch.Size with 20,000 arguments",
    ),
    "a long tuple that is a key again and again": (
        b"(" + b"K\1" * 20_000 + b"tq\0}" + b"h\0Ns" * 20_000, {}, "is a long tuple or a number of more than 64 bits",
    ),
    "the same in a set": (b"\x8f((" + b"K\1" * 20_000 + b"tq\0" + b"h\0" * 20_000 + b"\x90", {}, "is a long tuple or a number of more than 64 bits"),
    "numbers that hash alike": (
        b"}(" + b"".join(long(k * (2**61 - 1)) + b"N" for k in range(20_000)) + b"u", {}, "is a long tuple or a number of more than 64 bits",
    ),
    "a long number that is a key again and again": (
        b"\x8b" + struct.pack("<i", 20_000) + b"\1" * 20_000 + b"\x85q\0}" + b"h\0Ns" * 20_000, {}, "is a long tuple or a number of more than 64",
    ),
    "a function of an extension": (b"\x82\x08(" + text("x") + b"tR", {}, "has the instruction EXT1"),
    "a key that takes for ever to hash": (b"}q\1)q\0" + b"h\0h\0\x86q\0" * 60 + b"h\1h\0Ns", {}, "has a dict or a set of what is neither text"),
    "a key too deep to hash": (b"})" + b"\x85" * 200_000 + b"Ns", {}, "has a dict or a set of"),
    "a set of the same": (b"c__builtin__\nset\n(])" + b"\x85" * 200_000 + b"atR", {}, "has a dict or a set of"),
    "a key of an ordered dict too deep to hash": (b"ccollections\nOrderedDict\n](](" + b")" + b"\x85" * 200_000 + b"Nee\x85R", {}, "has a dict or"),
    "a member of a set of protocol 4 too deep to hash": (b"\x8f()" + b"\x85" * 200_000 + b"\x90", {}, "has a dict or a set of"),
    "a member of a frozenset of protocol 4 too deep to hash": (b"()" + b"\x85" * 200_000 + b"\x91", {}, "has a dict or a set of"),
    "the same set without end": again(b"c__builtin__\nfrozenset\n", b"](" + b"K\1" * 5_000 + b"e\x85"),
    "the same ordered dict without end": again(b"ccollections\nOrderedDict\n", b"](" + b"](K\1K\1e" * 5_000 + b"e\x85"),
    "the same bytes without end": again(b"c_codecs\nencode\n", text("a" * 100_000) + text("latin1") + b"\x86"),
    "the same name without end": (
        text("a" * 100_000) + b"q\0" + text("b") + b"q\1](" + b"h\0h\1\x93" * 60 + b"e", {}, "more than 16 times its own size",
    ),
    "a name that takes for ever to write": (b")q\0" + b"h\0h\0\x86q\0" * 60 + text("b") + b"\x93", {}, "or is damaged"),
    "a dtype that is none": (
        b"ctorch._utils\n_rebuild_tensor_v3\n(" + stored("Untyped", "0", 2) + b"K\x00K\1\x85K\1\x85\x89N" + text("torch.uint16") + b"tR",
        {"0": b"xx"}, r"a dtype that minigrad does not have \(\?\)",
    ),
    "a mark of complex numbers at others": (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored("Char", "0", 2) + b"K\0(K\2t(K\1t\x89N}" + text("conj") + b"\x88stR",
        {"0": b"\1\2"}, r"a tensor of a kind that minigrad does not have \(conj\)",
    ),
    "copies without end": (
        stored("Short", "0", 1 << 15) + b"q\0]" + made_of(b"h\0", long(1 << 15), long(1)) * 40, {"0": bytes(1 << 16)}, "share storages",
    ),
    "a text longer than the file": (b"\x8d" + struct.pack("<Q", 1 << 60), {}, "or is damaged"),
    "nothing on the stack": (b"R", {}, "or is damaged"),
    "the mark of nobody": (b"t", {}, "or is damaged"),
    "a list that is a number": (b"K\1K\2a", {}, "appends something to what is not a list"),
    "a dict that is a tensor": (made_of(stored("Char", "0", 1), b"", b"") + b"K\1K\2s", {"0": b"x"}, "puts something into what is not a dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_a_file_made_to_do_harm_is_refused(path: Path, name: str) -> None:
    code, storages, said = HARMFUL[name]
    with pytest.raises(ValueError, match=f"weights.pth .*{said}"):
        loaded(path, program(code, storages))


def test_an_old_file_with_a_shape_that_takes_for_ever_to_look_through(path: Path) -> None:
    """Whose storages come after the tensors: until then these are only noted."""
    function, storage, shape = b"ctorch._utils\n_rebuild_tensor_v2\n", stored("Char", "0", 1), b"(" + b"K\1" * 200 + b"t"
    code = function + b"q\0(" + storage + b"K\0" + shape + b"q\1h\1\x89Ntq\2](" + b"h\0h\2R" * 50 + b"e"
    parts = [pickle.dumps(value, 2) for value in (pth.MAGIC, 1001, {})]
    with pytest.raises(ValueError, match="a tensor is not made of a storage and whole numbers"):
        loaded(path, b"".join(parts) + b"\x80\2" + code + b".")


def program(code: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """An archive of it."""
    return zipped({"x/data.pkl": b"\x80\2" + code + b"."} | {f"x/data/{key}": data for key, data in (storages or {}).items()})


def test_what_is_just_short_enough_is_read(path: Path) -> None:
    assert loaded(path, program(b"ctorch\nSize\n(" + b"K\1" * 100 + b"tR")) == 1
    assert loaded(path, program(b"(" + text("module") + text("x") + b"K\1" * 98 + b"tQ")) == "x"
    assert loaded(path, program(b"}(" + b"K\1" * 100 + b"tNs" + long(2**64 - 1) + b"Ns")) == {(1,) * 100: None, 2**64 - 1: None}
    assert loaded(path, program(b"ca module\na name\n")).kind == "a.module a name"
    marks = b"}(" + text("neg") + b"\x88" + b"".join(text(str(k)) + b"\x89" for k in range(99)) + b"u"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored("Char", "0", 2) + b"K\0(K\2t(K\1t\x89N" + marks + b"tR"
    assert_array_equal(loaded(path, program(tensor, {"0": b"\1\2"})), [-1, -2])


@BOTH
def test_how_much_may_be_made_of_a_file(path: Path, archive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 times its size, and a megabyte, so that small ones may have views: here 100 of the same 4 kB."""
    most: list[int] = []
    made = pth._Tensors.__init__
    monkeypatch.setattr(pth._Tensors, "__init__", lambda self, bytes_, big: most.append(bytes_) or made(self, bytes_, big))
    storage = torch.arange(1000.0)
    data = saved([storage[: 1000 - k] for k in range(100)], archive)
    assert sum(array.nbytes for array in loaded(path, data)) > 16 * len(data)
    assert set(most) == {16 * len(data) + (1 << 20)}


def test_what_is_made_is_counted_in_bytes() -> None:
    """Of containers 8 for each member."""
    tensors = pth._Tensors(8 * 5 + 8 * 3 + 7, False)
    meaning = pth._meaning(tensors)
    assert meaning["collections.OrderedDict"]([(k, k) for k in range(5)]) == {k: k for k in range(5)}
    assert meaning["builtins.set"]([1, 2, 3]) == {1, 2, 3}
    tensors.spend(7)
    with pytest.raises(pth._Refused, match="holds more than 16 times its own size"):
        tensors.spend(1)


def test_a_memo_is_no_larger_than_what_is_noted_in_it(path: Path) -> None:
    assert loaded(path, program(b"Nr\xff\xff\xff\xff")) is None


def test_an_old_file_whose_weights_hold_the_end_of_an_archive(path: Path) -> None:
    numbers = np.frombuffer(b"PK\5\6" + bytes(18) + b"\0\0", np.uint8)
    assert_array_equal(loaded(path, saved(torch.from_numpy(numbers.copy()), archive=False)), numbers, strict=True)


def test_a_file_for_which_there_is_no_memory_is_not_called_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> None:
        raise MemoryError("Unable to allocate 1.00 TiB")

    monkeypatch.setattr(pth, "_numbers", none_left)
    with pytest.raises(MemoryError, match="Unable to allocate 1.00 TiB"):
        loaded(path, saved(torch.ones(2)))
