"""Where a model runs: what may be asked for, what is said of it, and what is refused before anything is loaded."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

import interp
import models
from ci import toolchain
from conftest import PROMPT
from interp import devices, fit, header, remote

OPTIONS = dict(n_ctx=64, kv_type="f32", flash_attn=False, n_threads=1)


# what a model has where


@pytest.fixture(scope="module")
def on_cpu():
    with interp.Model(models.tiny("llama"), device="cpu", n_gpu_layers=-1, **OPTIONS) as model:
        yield model


def test_the_cpu_alone_is_what_a_cpu_build_does_by_itself(on_cpu, tiny):
    assert np.array_equal(on_cpu.run(PROMPT).logits, tiny.run(PROMPT).logits)


def test_devices_say_what_lies_where(on_cpu):
    (cpu,) = [device for device in on_cpu.devices if device.n_bytes]
    assert (cpu.name, cpu.kind, cpu.layers, cpu.embedding, cpu.head) == ("cpu", "cpu", (0, 1, 2, 3), True, True)
    assert 0 < cpu.memory_free <= cpu.memory_total
    assert cpu.n_weights >= 4 * on_cpu.n_params * 0.9, "the weights are F32"
    # keys and values of 4 layers, 2 heads of 16, F32, in cells that come in 256s
    assert cpu.n_cache == 4 * 2 * 2 * 16 * 4 * 256
    assert cpu.n_compute > 0
    title, row = repr(on_cpu.devices).splitlines()
    assert title.split() == ["device", "description", "free", "layers", "weights", "cache", "compute"]
    assert "embedding, 0-3, head" in row


def test_a_closed_model_has_no_devices():
    model = interp.Model(models.tiny("llama"), **OPTIONS)
    model.close()
    with pytest.raises(interp.RunError, match="closed"):
        model.devices  # noqa: B018


def _record(kind: str, backend: str, name: str, description: str = "") -> header.Device:
    record = header.Device(type=header.DEVICE_TYPES.index(kind), memory_free=1 << 30, memory_total=1 << 31)
    record.backend, record.name, record.description = backend.encode(), name.encode(), description.encode()
    return record


FOUND = devices.Devices(
    devices.named([
        _record("gpu", "CUDA", "CUDA0"),
        _record("gpu", "CUDA", "CUDA1"),
        _record("gpu", "Vulkan", "Vulkan0"),
        _record("gpu", "MTL", "MTL0"),
        _record("accel", "BLAS", "BLAS"),
        _record("cpu", "CPU", "CPU"),
        _record("gpu", "RPC", "RPC0", "host:1234"),
    ])
)  # fmt: skip


def test_devices_are_called_as_users_write_them():
    assert FOUND.names() == ["cuda:0", "cuda:1", "vulkan:0", "metal", "blas", "cpu", "rpc://host:1234"]
    assert all(device.name == devices.parse(device.name)[0] for device in FOUND)


@pytest.mark.parametrize(
    ("asked", "found"),
    [("cuda", ["CUDA0", "CUDA1"]), ("cuda:1", ["CUDA1"]), ("metal", ["MTL0"]), ("metal:0", ["MTL0"]), ("vulkan", ["Vulkan0"])],
)
def test_a_name_without_a_number_means_all_of_a_kind(asked, found):
    assert [device.ggml_name for device in devices.local(FOUND, asked)] == found


@pytest.mark.parametrize("asked", ["cuda:2", "blas", "sycl"])
def test_a_device_that_does_not_exist_lists_those_that_do(asked):
    with pytest.raises(interp.DeviceError, match="no device .* cuda:0, cuda:1, vulkan:0, metal, cpu") as caught:
        devices.local(FOUND, asked)
    assert "\n" not in str(caught.value)


def test_a_device_of_another_build_names_the_flag():
    here = devices.Devices(devices.named([_record("cpu", "CPU", "CPU")]))
    with pytest.raises(interp.DeviceError, match="but cpu.*build.py --cuda or --metal or --vulkan"):
        devices.local(here, "cuda:0")
    assert {"cpu", *devices.BUILD_FLAGS} <= {*toolchain.BACKENDS}


def test_layers_are_shown_as_spans():
    device = devices.Device("cuda:0", "", "gpu", 0, 0, layers=(0, 1, 2, 5, 7, 8), embedding=True, n_weights=1)
    assert devices._held(device) == "embedding, 0-2, 5, 7-8"
    assert "?" in repr(devices.Devices([device])), "a device that does not say how much is free"


# what may be asked for


@pytest.mark.parametrize("given", ["", "cuda:", ":0", "cuda:x", "cpu cuda", "rpc://", "rpc://host", "rpc://host:0",
                                   "rpc://host:65536", "rpc://host:1:2", "cpu,,cuda", [], [1], 5, True, {"cpu": 1}, b"cpu"])
def test_a_malformed_device_shows_the_forms(given):
    with pytest.raises(interp.DeviceError, match='give "cpu"') as caught:
        devices.parse(given)
    assert "\n" not in str(caught.value)


def test_lists_and_texts_mean_the_same():
    assert devices.parse("rpc://a:1, RPC://b:2") == devices.parse(["rpc://a:1", "rpc://b:2"]) == ["rpc://a:1", "rpc://b:2"]


def test_a_device_given_twice_and_a_cpu_beside_others_are_refused():
    with pytest.raises(interp.DeviceError, match="twice"):
        devices.parse("cuda:0,CUDA:0")
    with pytest.raises(interp.DeviceError, match="n_gpu_layers"):
        devices.parse("cpu,cuda:0")


# whether it fits


def _needs(monkeypatch, n_layer: int, per_layer: int, fixed: int, free: int) -> None:
    """A model of so many bytes per layer on a device with so many free."""

    def needed(_lib, _path, params):
        n = n_layer + 1 if params.n_gpu_layers < 0 else min(params.n_gpu_layers, n_layer + 1)
        gpu = devices.Device("cuda:0", "", "gpu", free, 10 * free, n_weights=n * per_layer, n_compute=fixed)
        return [gpu, devices.Device("cpu", "", "cpu", 0, 1, n_weights=1 << 50)], n_layer

    monkeypatch.setattr(fit, "_needed", needed)


@pytest.mark.parametrize(
    ("asked", "free", "says"),
    [
        (-1, 2500, r"with all layers, cuda:0 needs .* 24 of 32 layers fit: n_gpu_layers=24"),
        (30, 2500, r"with 30 of 32 layers, .* n_gpu_layers=24"),
        (99, 3300, r"with all layers, .* 32 of 32 layers fit: n_gpu_layers=32"),
        (-1, 90, r'no layer fits: device="cpu"'),
    ],
)
def test_too_many_layers_for_the_memory_say_how_many_fit(monkeypatch, tmp_path, asked, free, says):
    _needs(monkeypatch, n_layer=32, per_layer=100, fixed=80, free=free)
    params = header.Params(n_gpu_layers=asked, n_ctx=64)
    with pytest.raises(interp.DeviceError, match=f"(?i){says}") as caught:
        fit.check(None, tmp_path / "large.gguf", params)
    assert "\n" not in str(caught.value) and params.n_gpu_layers == asked


@pytest.mark.parametrize(("asked", "free"), [(-1, 3380), (24, 2480), (0, 80), (-1, 0)])
def test_what_fits_is_not_refused(monkeypatch, tmp_path, asked, free):
    """0 free of 0: a device that does not say."""
    _needs(monkeypatch, n_layer=32, per_layer=100, fixed=80, free=free)
    fit.check(None, tmp_path / "small.gguf", header.Params(n_gpu_layers=asked, n_ctx=64))


def test_what_a_model_needs_is_what_it_takes_when_it_is_loaded(on_cpu):
    params = header.Params(n_ctx=64, n_batch=64, n_ubatch=64, n_seq_max=64, n_threads=1, devices=b"",
                           n_gpu_layers=-1, use_extra_bufts=1)  # fmt: skip
    needed, n_layer = fit._needed(on_cpu._lib, on_cpu.path, params)
    (took,) = on_cpu.devices
    assert n_layer == on_cpu.n_layer
    assert needed[0].n_cache == took.n_cache and abs(needed[0].n_weights - took.n_weights) < 1 << 16


# whether a server is there


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def _answering(listener: socket.socket, answer: bytes) -> int:
    def run():
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    return listener.getsockname()[1]


def test_a_server_that_is_not_there_is_an_error_at_once():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(interp.DeviceError, match=f"No RPC server at 127.0.0.1:{port}: connection refused. Start one"):
        interp.Model(models.tiny("llama"), device=f"rpc://127.0.0.1:{port}", **OPTIONS)
    assert time.monotonic() - started < 5


def test_a_server_that_is_silent_is_an_error_within_the_limit(listener):
    started = time.monotonic()
    with pytest.raises(interp.DeviceError, match="did not answer .* within 0.5 s. A server serves one program"):
        remote.probe("127.0.0.1", listener.getsockname()[1], seconds=0.5)
    assert 0.4 < time.monotonic() - started < 5
    assert remote.ANSWER_SECONDS == 10


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0", b"", bytes(36)])
def test_what_is_no_rpc_server_is_told_from_one(listener, answer):
    port = _answering(listener, answer)
    with pytest.raises(interp.DeviceError, match="is no RPC server"):
        remote.probe("127.0.0.1", port, seconds=5)


def test_an_unknown_host_is_an_error():
    with pytest.raises(interp.DeviceError, match="the host is unknown"):
        remote.probe("no-such-host.invalid", 50052)
