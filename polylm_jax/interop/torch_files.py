"""Where the tensors of a torch .bin lie, without unpickling it.

A .bin is a zip archive: `data.pkl` describes the tensors and `data/KEY` holds their bytes,
uncompressed. Unpickling runs whatever the file asks for. Here its opcodes are only read, by a
machine that knows those few with which torch.save describes a dict of tensors, and in which
a global is a name that stands for nothing but itself.
"""

import itertools
import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from polylm_jax.errors import UserError

# bytes of an element and safetensors' name of it; a kind may be harmless and yet of no use
_STORAGES = {
    "torch FloatStorage": (4, "F32"),
    "torch HalfStorage": (2, "F16"),
    "torch BFloat16Storage": (2, "BF16"),
    "torch DoubleStorage": (8, "F64"),
    "torch ByteStorage": (1, "U8"),
    "torch CharStorage": (1, "I8"),
    "torch ShortStorage": (2, "I16"),
    "torch IntStorage": (4, "I32"),
    "torch LongStorage": (8, "I64"),
    "torch BoolStorage": (1, "BOOL"),
}
_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_PARAMETERS = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")


class Place(NamedTuple):
    """A tensor: bytes from the start of the file, name of the element type, shape."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    kind: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    first: int
    shape: tuple[int, ...]


class _Refused(Exception):
    """The pickle asks for something that a dict of tensors does not need."""


class _Unfit(Exception):
    """The pickle is harmless, but holds something else than tensors that can be read in place."""


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IDLE = ("PROTO", "FRAME", "STOP")


def torch_tensors(file: Path) -> dict[str, Place]:
    """The place of each tensor by name, what torch.save wrote of a dict of tensors.

    Parameters are tensors, too. UserError, one sentence that names the file, where it is in
    torch's format from before 1.6, is broken, or holds anything else than contiguous tensors; what
    that is, is named too.
    """
    if not zipfile.is_zipfile(file):
        raise UserError(
            f"{file} is no zip archive: it is cut short, or in torch's format from before 1.6; "
            "save it again with a newer torch, or as safetensors."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            (pickle,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            root = pickle.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist():
                order = archive.read(f"{root}byteorder")
                if order != b"little":
                    raise _Unfit(f"numbers in byte order {order.decode()}; save it as safetensors")
            described = _interpret(archive.read(pickle))
            if not isinstance(described, dict):
                raise _Unfit(
                    "something that is not a dict of tensors; save the model's state_dict()"
                )
            for name, value in described.items():
                if isinstance(value, dict) and any(isinstance(v, _Tensor) for v in value.values()):
                    raise _Unfit(
                        f"its tensors under {name!r}; save those alone, by "
                        f"torch.save(torch.load(FILE)[{name!r}], FILE)"
                    )
            return {
                name: _place(file, archive, root, name, tensor)
                for name, tensor in described.items()
            }
    except _Refused as refused:
        raise UserError(
            f"{file} holds {refused}, which a dict of tensors does not need; nothing of it was run "
            "and nothing imported: fetch the file from a source you trust, or as safetensors."
        ) from None
    except _Unfit as unfit:
        raise UserError(f"{file} holds {unfit}.") from None
    except (ValueError, KeyError, IndexError, TypeError, OSError, zipfile.BadZipFile):
        raise UserError(f"{file} is broken; fetch it again, or as safetensors.") from None


def _interpret(pickle: bytes) -> Any:
    """What a pickle of a dict of tensors describes; _Refused names the first thing beyond that."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = max(i for i, value in enumerate(stack) if value is _MARK)
        values = stack[start + 1 :]
        del stack[start:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(pickle):
        match opcode.name:
            case name if name in _IDLE:
                pass
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case name if name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_known(f"{module} {name}"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_called(function, arguments))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                pairs = since_mark()
                stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                values = since_mark()
                stack[-1].extend(values)
            case "BUILD":  # torch hangs versions of modules on the OrderedDict
                stack.pop()
            case other:
                raise _Refused(f"the pickle opcode {other}")
    (described,) = stack
    return described


def _known(name: str) -> _Global:
    if name not in (*_STORAGES, _TENSOR, *_PARAMETERS, _DICT):
        raise _Refused(f"the global {name.replace(' ', '.')}")
    return _Global(name)


def _storage(described: Any) -> _Storage:
    match described:
        case ("storage", _Global(kind), str(key), _, int()) if kind in _STORAGES:
            return _Storage(kind, key)
    raise _Refused("a persistent id that is no storage of numbers")


def _called(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Global(name), () if name == _DICT:
            return {}
        case _Global(name), (_Tensor() as tensor, bool(), *_) if name in _PARAMETERS:
            return tensor
        case _Global(name), (
            _Storage() as storage,
            int(first),
            tuple(shape),
            tuple(stride),
            *_,
        ) if name == _TENSOR:
            # C order: each stride is the product of the sizes behind it
            steps = list(itertools.accumulate(shape[:0:-1], lambda a, b: a * b, initial=1))[::-1]
            if stride != tuple(steps[: len(shape)]):
                raise _Unfit("a tensor that is not contiguous; save it after .contiguous()")
            return _Tensor(storage, first, shape)
    raise _Refused(f"a call of {getattr(function, 'name', 'no global').replace(' ', '.')} as such")


def _place(file: Path, archive: zipfile.ZipFile, root: str, name: Any, tensor: Any) -> Place:
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise _Unfit(f"an entry {name!r} that is no tensor; save the model's state_dict() alone")
    width, dtype = _STORAGES[tensor.storage.kind]
    entry = archive.getinfo(f"{root}data/{tensor.storage.key}")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise _Unfit("compressed tensors; save it with torch.save")
    end = (tensor.first + math.prod(tensor.shape)) * width
    if not 0 <= tensor.first * width <= end <= entry.file_size:
        raise ValueError
    # the local header's extra field differs from the central directory's: torch pads with it
    with open(file, "rb") as content:
        content.seek(entry.header_offset)
        header = content.read(30)
    start = (
        entry.header_offset
        + 30
        + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    )
    return Place(start + tensor.first * width, dtype, tensor.shape)
