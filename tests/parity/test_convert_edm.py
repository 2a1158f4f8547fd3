"""The conversion of EDM's pickles: all tensors, none of the code."""

import importlib.util
import io
import json
import os
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest

from diffjax.interop import read_tensors

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "convert_edm.py"


@pytest.fixture(name="script", scope="module")
def _script():
    spec = importlib.util.spec_from_file_location("convert_edm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pretend(monkeypatch, name, **contents):
    """A module of a name, there while a pickle is written."""
    monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
    module = types.ModuleType(name)
    vars(module).update(contents)
    for thing in contents.values():
        thing.__module__ = name
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parity
def test_all_tensors_and_none_of_the_code(script, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    class EasyDict(dict):
        pass

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the pickle's own reader ran")

    EasyDict.__qualname__, _reconstruct_persistent_obj.__qualname__ = "EasyDict", "_reconstruct_persistent_obj"

    class Persistent(torch.nn.Module):
        def __reduce__(self):
            source = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
            state = dict(vars(self))
            meta = EasyDict(type="class", version=6, module_src=source, class_name="Net", state=state)
            return _reconstruct_persistent_obj, (meta,)

    class Block(Persistent):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 2, 1, 1))
            self.bias = None
            self.register_buffer("kernel", torch.randn(2, 3).T)
            self.register_buffer("passing", torch.ones(2), persistent=False)
            self.register_buffer("narrow", torch.tensor([1.0, 0.1]).bfloat16())
            self.kept = np.sqrt(2).item()

    class Net(Persistent):
        def __init__(self):
            super().__init__()
            self.img_resolution, self.dtype, self.levels = 32, torch.float16, [1, 2]
            self.enc = torch.nn.ModuleDict({"32x32_block0": Block(), "32x32_conv": torch.nn.Conv2d(2, 3, 3)})
            self.norm = torch.nn.GroupNorm(1, 4).half()

    network = Net()
    _pretend(monkeypatch, "dnnlib.util", EasyDict=EasyDict)
    _pretend(monkeypatch, "torch_utils.persistence", _reconstruct_persistent_obj=_reconstruct_persistent_obj)
    for protocol in (4, 2):
        (tmp_path / "n.pkl").write_bytes(pickle.dumps({"ema": network, "dataset_kwargs": EasyDict(a=1)}, protocol))
        script.convert(tmp_path / "n.pkl", tmp_path / "n.safetensors", "ema")
        found, expected = read_tensors(tmp_path / "n.safetensors"), network.state_dict()
        assert set(found) == set(expected)
        for key, value in expected.items():
            assert str(found[key].dtype) == str(value.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(found[key].astype(np.float64), value.double().numpy())
    settings = json.loads((tmp_path / "n.json").read_text())
    assert settings[""] == {"training": True, "img_resolution": 32, "dtype": "float16", "levels": [1, 2]}
    assert settings["enc.32x32_block0"]["kept"] == 2**0.5
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="there is no network 'net'; there are ema"):
        script.convert(tmp_path / "n.pkl", tmp_path / "n.safetensors", "net")


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, __import__, open, pickle.loads])
def test_code_is_refused(call, script, tmp_path):
    ran = tmp_path / "ran"
    for protocol in (0, 2, 4):
        (tmp_path / "n.pkl").write_bytes(pickle.dumps({"ema": Evil(call, f"touch {ran}")}, protocol))
        with pytest.raises(ValueError, match="refused: it asks for"):
            script.read(tmp_path / "n.pkl")
    assert not ran.exists()


HUGE = pickle.PROTO + b"\4" + pickle.BINUNICODE8 + b"\xff" * 8 + b"a"
BUILD_ON_AN_INT = pickle.PROTO + b"\4" + b"K\1" + b"}" + b"X\1\0\0\0a" + b"K\1" + b"s" + pickle.BUILD + b"."
TWO_LINES = pickle.PROTO + b"\4" + b"X\3\0\0\0a\nb" * 2 + pickle.STACK_GLOBAL + b"."


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing of the kind", pickle.dumps({"a": [1, 2, 3]})[:-3], HUGE, BUILD_ON_AN_INT, TWO_LINES],
    ids=["empty", "text", "cut", "huge", "build", "two lines"],
)
def test_what_is_no_pickle_is_refused(content, script, tmp_path):
    (tmp_path / "n.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"n\.pkl: refused: .") as error:
        script.read(tmp_path / "n.pkl")
    assert "\n" not in str(error.value)


def _cycle(record):
    record.state = {"_modules": {"again": record}}


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.state.update(_parameters=[1]),
        lambda record: record.state.update(_parameters="word"),
        lambda record: record.state.update(_buffers={"a": "no tensor\nat all"}),
        lambda record: record.state.update(_buffers={1: None, 2: 3}),
        lambda record: record.state.update(_modules=7),
        _cycle,
    ],
)
def test_what_is_no_network_is_refused(change, script, tmp_path, monkeypatch):
    record = script.Record()
    change(record)
    monkeypatch.setattr(script, "read", lambda path: {"ema": record})
    with pytest.raises(ValueError, match=r"n\.pkl: 'ema' is no network: ") as error:
        script.convert(tmp_path / "n.pkl", tmp_path / "n.safetensors", "ema")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parity
def test_a_tensor_beyond_its_storage_is_refused(script, tmp_path):
    torch = pytest.importorskip("torch")
    storage = torch.zeros(3).storage()
    for offset, size, stride in ((0, (1000,), (1,)), (1, (3,), (1,)), (0, (2, 2), (2, 1))):
        evil = Evil(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})
        (tmp_path / "n.pkl").write_bytes(pickle.dumps({"ema": evil}))
        with pytest.raises(ValueError, match="is beyond its storage"):
            script.read(tmp_path / "n.pkl")


@pytest.mark.parity
def test_code_in_the_bytes_of_a_tensor_is_refused(script, tmp_path):
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(Evil(os.system, f"touch {tmp_path / 'ran'}"), file)
    evil = Evil(torch.storage._load_from_bytes, file.getvalue())
    (tmp_path / "n.pkl").write_bytes(pickle.dumps({"ema": evil}))
    with pytest.raises(ValueError, match="the bytes of a tensor are no storage"):
        script.read(tmp_path / "n.pkl")
    assert not (tmp_path / "ran").exists()
