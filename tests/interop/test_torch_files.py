"""torch's own .bin files are read to the bit, and no pickle gets to run anything."""

import io
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from polylm_jax.errors import UserError
from polylm_jax.interop.hugging_face import HEAD, matched
from polylm_jax.interop.tensor_files import open_folder
from polylm_jax.interop.torch_files import torch_tensors
from polylm_jax.sizes import Size
from tests import golden

GOLDEN = Path(golden.__file__).parent
SIZE = Size(vocabulary=40, context=16, layers=2, heads=2, d_model=8, d_ff=24)
KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", KINDS)
def test_what_torch_saved_is_read_to_the_bit(dtype, tmp_path):
    shutil.copy(GOLDEN / f"torch_{dtype}.bin", tmp_path / "pytorch_model.bin")
    found = open_folder(str(tmp_path))
    with np.load(GOLDEN / "torch.npz") as file:
        expected = dict(file)
    assert found.keys() == expected.keys()
    taken = matched({name: stored.shape for name, stored in found.items()}, SIZE)
    assert len(taken) == 2 * 12 + 4
    for name in [*taken.values(), HEAD]:
        values = found[name].read(0, found[name].size).reshape(found[name].shape)
        np.testing.assert_array_equal(values, expected[name].astype(KINDS[dtype]), err_msg=name)
    assert found[HEAD].read(8, 24).tolist() == found[HEAD].read(0, 320)[8:24].tolist()


def test_the_format_from_before_torch_1_6_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"torch_1.4.bin is no zip archive.*before 1.6"):
        torch_tensors(GOLDEN / "torch_1.4.bin")


class Calls:
    """Pickles as a call of a function, which pickle.load would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(file, content, **entries):
    """A zip archive as torch writes it, with this data.pkl."""
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data.pkl", content)
        for name, data in entries.items():
            out.writestr(f"archive/{name}", data)
    return file


def touch(path):
    return Calls(os.system, f"touch {path}")


ATTACKS = {
    "system": (lambda p: touch(p), "the global posix.system"),
    "nested": (lambda p: OrderedDict(weight=[{"a": (touch(p),)}]), "the global posix.system"),
    "in a dict": (lambda p: {"weight": (touch(p),)}, "the global posix.system"),
    "as a key": (lambda p: {touch(p): 1}, "the global posix.system"),
    "eval": (lambda p: Calls(eval, f"open({str(p)!r}, 'w')"), "the global builtins.eval"),
    "getattr": (lambda p: Calls(getattr, "", "join"), "the global builtins.getattr"),
    "import": (lambda p: Calls(__import__, "antigravity"), "the global builtins.__import__"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_is_named_and_not_run(attack, protocol, tmp_path):
    make, sentence = ATTACKS[attack]
    trap = tmp_path / "trap"
    content = pickle.dumps(make(trap), protocol).replace(b"__builtin__", b"builtins")
    file = archive(tmp_path / "pytorch_model.bin", content)
    with pytest.raises(UserError) as refused:
        torch_tensors(file)
    assert str(refused.value).startswith(f"{file} holds {sentence}")
    assert "\n" not in str(refused.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content", [b"(S'x'\nios\nsystem\n.", b"ccollections\nOrderedDict\n)\x81.", b"\x82\x01."]
)
def test_the_opcodes_that_make_objects_are_not_known(content, tmp_path):
    """INST, NEWOBJ and EXT1."""
    with pytest.raises(UserError, match="holds the pickle opcode"):
        torch_tensors(archive(tmp_path / "a.bin", content))


class Tensor:
    """Pickles as torch pickles a tensor, or a parameter made of one."""

    def __init__(self, stride=(3, 1), offset=0, key="0", kind="FloatStorage", parameter=False):
        self.arguments = (key, offset, (2, 3), stride, kind, parameter)


class TorchPickler(pickle._Pickler):
    """Writes torch's globals by name, without torch."""

    def save(self, value, *rest):
        if not isinstance(value, Tensor):
            return super().save(value, *rest)
        key, offset, shape, stride, kind, parameter = value.arguments
        if parameter:
            self.write(b"ctorch._utils\n_rebuild_parameter\n(")
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        self.write(b"(X\x07\x00\x00\x00storagectorch\n%s\n" % kind.encode())
        for part in (key, "cpu", 6):
            super().save(part)
        self.write(b"tQ")
        for part in (offset, shape, stride, False):
            super().save(part)
        self.write(b"ccollections\nOrderedDict\n)RtR")
        if parameter:
            super().save(True)
            self.write(b"ccollections\nOrderedDict\n)RtR")
        return None


def torch_pickle(value):
    out = io.BytesIO()
    TorchPickler(out, 2).dump(value)
    return out.getvalue()


DATA = np.arange(6, dtype="<f4").tobytes()


def test_a_tensor_as_torch_describes_it_is_found_in_the_archive(tmp_path):
    content = torch_pickle({"weight": Tensor()})
    file = archive(tmp_path / "a.bin", content, **{"data/0": DATA, "byteorder": b"little"})
    place = torch_tensors(file)["weight"]
    assert file.read_bytes()[place.offset :][: len(DATA)] == DATA


def test_parameters_and_tensors_of_other_types_are_harmless(tmp_path):
    tensors = {
        "parameter": Tensor(parameter=True),
        "buffer": Tensor(key="1", kind="LongStorage"),
        "double": Tensor(key="1", kind="DoubleStorage"),
    }
    content = torch_pickle(OrderedDict(tensors))
    file = archive(tmp_path / "a.bin", content, **{"data/0": DATA, "data/1": DATA + DATA})
    found = torch_tensors(file)
    assert {name: place.dtype for name, place in found.items()} == {
        "parameter": "F32",
        "buffer": "I64",
        "double": "F64",
    }
    assert file.read_bytes()[found["parameter"].offset :][: len(DATA)] == DATA


@pytest.mark.parametrize(
    ("value", "entries", "sentence"),
    [
        ({"weight": Tensor(stride=(1, 2))}, {}, "a tensor that is not contiguous"),
        ({"weight": Tensor(offset=1)}, {}, "is broken"),
        ({"weight": Tensor(offset=-1)}, {}, "is broken"),
        ({"weight": Tensor(key="7")}, {}, "is broken"),
        ({"weight": 7}, {}, "an entry 'weight' that is no tensor; save the model's state_dict"),
        (Tensor(), {}, "something that is not a dict of tensors"),
        (
            {"epoch": 3, "rates": [0.1, 1], "model": {"weight": Tensor()}},
            {},
            r"holds its tensors under 'model'; .*torch.save\(torch.load\(FILE\)\['model'\], FILE\)",
        ),
        ({"weight": Tensor()}, {"byteorder": b"big"}, "byte order big"),
    ],
)
def test_what_is_no_dict_of_tensors_is_refused(value, entries, sentence, tmp_path):
    file = archive(tmp_path / "a.bin", torch_pickle(value), **{"data/0": DATA}, **entries)
    with pytest.raises(UserError, match=sentence):
        torch_tensors(file)


def test_compressed_tensors_and_cut_files_are_refused(tmp_path):
    file = tmp_path / "a.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", torch_pickle({"weight": Tensor()}))
        out.writestr("archive/data/0", DATA)
    with pytest.raises(UserError, match="compressed tensors"):
        torch_tensors(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="is no zip archive: it is cut short"):
        torch_tensors(file)
