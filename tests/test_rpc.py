"""A model on two RPC servers and the local CPU: the same bits as on the CPU alone; and servers that go away."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import interp
import models
from ci import sanitize
from conftest import PROMPT
from forks import FOREIGN, forked
from interp import at, rpc_server
from rpc_servers import ROOT, Server

pytestmark = pytest.mark.rpc

OTHER = "The Colosseum is located in the city of"

OPTIONS = dict(n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1)

#: on the devices: the last two of four layers and the head, or all
SPLITS = {"split": 3, "whole": -1}


def _local(path, **options) -> interp.Model:
    return interp.Model(path, device="cpu", n_gpu_layers=-1, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def servers():
    made = [Server(), Server()]
    yield made
    for server in made:
        server.kill()


@pytest.fixture(scope="module", params=SPLITS)
def pair(request, servers):
    """The same model on the servers and on the CPU."""
    path, where = models.tiny("llama"), [server.device for server in servers]
    with (
        interp.Model(path, device=where, n_gpu_layers=SPLITS[request.param], **OPTIONS) as remote,
        _local(path) as local,
    ):
        yield remote, local


def same(one: interp.Run, other: interp.Run, sites=()) -> bool:
    return np.array_equal(one.logits, other.logits) and all(np.array_equal(one[site], other[site]) for site in sites)


# the same bits


def test_every_layer_lies_on_one_device_and_both_servers_have_a_part(pair, servers):
    remote, local = pair
    found = remote.devices
    assert found.names() == [*(server.device for server in servers), "cpu"]
    assert sorted(layer for device in found for layer in device.layers) == list(range(remote.n_layer))
    assert sum(device.head for device in found) == 1 and found[-1].embedding
    assert all(device.n_weights for device in found)
    assert sum(device.n_cache for device in found) == sum(device.n_cache for device in local.devices)


def test_reading_gives_the_bits_of_the_local_run(pair):
    sites = ("l_out", "attn_scores", "attn_logits", "z", "q", "k", "v", "mlp_act", "attn_out", "resid_mid", "final_norm")
    remote, local = pair
    assert same(remote.run(PROMPT, capture=sites), local.run(PROMPT, capture=sites), sites)
    chosen = [at("attn_scores", layers=[1, 3], heads=[0, 2], queries=[2, -1]), at("l_out", positions=[1, -1])]
    assert same(remote.run(PROMPT, capture=chosen), local.run(PROMPT, capture=chosen), ("attn_scores", "l_out"))
    assert same(remote.run(PROMPT), local.run(PROMPT)), "nothing read"


def _edits(model: interp.Model) -> dict[str, object]:
    """One of each kind, made from runs of this model."""
    direction = np.random.default_rng(3).normal(size=model.n_embd).astype(np.float32)
    other = model.run(OTHER, capture=("l_out", "z"))
    layers = range(model.n_layer)
    return {
        "ablate": interp.ablate(heads=[(0, 1), (3, 2)]),
        "mean": interp.ablate(heads=[(1, 1)], mode="mean", mean=other),
        "keep_only": interp.keep_only(2, 3),
        "patch": interp.patch("l_out", 2, other, positions=-1),
        "steer": [interp.steer("l_out", layer, direction, coef=0.5) for layer in layers],
        "project_out": interp.project_out("l_out", layers, direction),
        "knockout": interp.knockout(layers, queries=-1, keys=[1, 2]),
        "scale": interp.scale(at("attn_scores", layers=3, heads=1), 0.0),
        "add": interp.add("mlp_out-3", direction),
        "replace": interp.replace(at("resid_mid", layers=1, positions=2), direction),
        "edit": interp.edit("ffn_inp-2", lambda x: x * 0.5 + x.tanh()),
        "edit_host": interp.edit_host("l_out-2", lambda x: np.sort(x, axis=-1)),
        "control": interp.ControlVector({1: direction, 3: direction}).steer(0.25),
    }


def test_every_kind_of_edit_gives_the_bits_of_the_local_run(pair):
    remote, local = pair
    plain, ours, theirs = local.run(PROMPT), _edits(remote), _edits(local)
    for kind in ours:
        edited = remote.run(PROMPT, capture="l_out", edits=ours[kind])
        assert same(edited, local.run(PROMPT, capture="l_out", edits=theirs[kind]), ["l_out"]), kind
        assert not np.array_equal(edited.logits, plain.logits), kind


def test_parts_of_a_model_give_the_bits_of_the_whole(pair):
    remote, local = pair
    whole = local.run(PROMPT, capture="l_out")
    for layer in range(remote.n_layer):
        stopped = remote.run(PROMPT, capture="l_out", stop_after=layer)
        assert stopped.logits is None and np.array_equal(stopped["l_out", layer], whole["l_out", layer])
    for layer in range(1, remote.n_layer):
        assert np.array_equal(remote.resume(whole["l_out", layer - 1], layer, PROMPT).logits, whole.logits), layer
    assert np.array_equal(remote.unembed(whole["l_out", -1]), whole.logits)


def test_generation_with_edits_and_captures_gives_the_same(pair):
    remote, local = pair
    options = dict(max_tokens=12, capture="l_out", edits=interp.ablate(heads=[(1, 0)]), temperature=0.7, seed=5)
    one, other = remote.generate(PROMPT, **options), local.generate(PROMPT, **options)
    assert one.tokens == other.tokens and same(one.run, other.run, ["l_out"])


@pytest.mark.parametrize("method", ["serial", "batched"])
def test_sweeps_give_the_same_values(pair, method):
    """Batched, the local run multiplies two rows of the head alone, which rounds otherwise than all rows together."""
    metric, noise = interp.logit_diff(" Mary", " John"), 0 if method == "serial" else 2e-6
    for sweep in (
        lambda m: interp.patch_sweep(m, PROMPT, OTHER, "l_out", metric, method=method),
        lambda m: interp.patch_sweep(m, PROMPT, OTHER, "z", metric, method=method),
        lambda m: interp.ablation_sweep(m, PROMPT, metric, method=method),
        lambda m: interp.knockout_sweep(m, PROMPT, metric, keys=[1, 2], window=2, method=method),
    ):  # fmt: skip
        remote, local = (sweep(model).values for model in pair)
        assert local.std() > 0.01 and np.abs(remote - local).max() <= noise


def test_statistics_are_the_same(pair, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(f"{PROMPT} Paris. {OTHER} Rome.\n" * 8)
    one, other = (interp.stats(model, corpus, sites="l_out") for model in pair)
    for name in ("mean", "max"):
        assert np.array_equal(getattr(one, name)("l_out", 3), getattr(other, name)("l_out", 3)), name


def test_a_cache_goes_from_the_servers_to_a_file_and_to_the_cpu(pair, tmp_path):
    remote, local = pair
    with remote.prefix(PROMPT):
        continued = remote.run(" and then")
        remote.save_state(tmp_path / "prefix.safetensors")
    with local.load_state(tmp_path / "prefix.safetensors"):
        assert same(local.run(" and then"), continued)
    assert np.array_equal(remote.weight("blk.3.attn_q.weight"), local.weight("blk.3.attn_q.weight"))


@pytest.mark.parametrize("arch", ["gpt2", "gemma3", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("flash_attn", [False, True])
def test_other_architectures_give_the_same_bits(servers, arch, flash_attn):
    path, where = models.tiny(arch), [server.device for server in servers]
    with interp.Model(path, device=where, **OPTIONS | {"flash_attn": flash_attn}) as remote, _local(path, flash_attn=flash_attn) as local:
        sites = ("l_out", "attn_scores")
        assert same(remote.run(PROMPT, capture=sites), local.run(PROMPT, capture=sites), sites)


def test_the_default_model_gives_the_same_bits(servers):
    where = ",".join(server.device for server in servers)
    # a server has no weights repacked for its processor
    with interp.Model(device=where, n_gpu_layers=20, n_ctx=64, n_threads=1, repack=False) as remote:
        with interp.Model(device="cpu", n_ctx=64, n_threads=1, repack=False) as local:
            assert same(remote.run(PROMPT, capture="l_out"), local.run(PROMPT, capture="l_out"), ["l_out"])
            assert "Paris" in remote.generate(PROMPT, max_tokens=3).text


# memory and several models


def test_too_many_layers_for_the_memory_of_a_server_say_how_many_fit(servers):
    with pytest.raises(interp.DeviceError, match=r"does not fit: with all layers, rpc://.* needs .* has .* free") as caught:
        interp.Model(device=servers[0].device, n_ctx=1 << 20, kv_type="f32", n_threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sanitize.ACTIVE, reason="AddressSanitizer reserves terabytes")
def test_a_server_that_cannot_allocate_is_an_error_and_lives():
    """A server that serves its CPU calls all of its memory free."""
    server = Server(memory=2 << 30)
    try:
        with pytest.raises(interp.InterpError, match="tiny-llama") as caught:
            interp.Model(models.tiny("llama"), device=server.device, n_ctx=1 << 22, kv_type="f32", n_threads=1)
        assert "\n" not in str(caught.value) and "went away" not in str(caught.value)
        with _split(server) as model:
            assert model.run(PROMPT).logits is not None
    finally:
        server.kill()


def test_models_share_a_server_and_who_asks_for_no_device_gets_none(servers):
    path, where = models.tiny("llama"), servers[0].device
    with interp.Model(path, device=where, **OPTIONS) as one:
        with interp.Model(path, device=where, **OPTIONS) as other:
            expected = other.run(PROMPT)
        with interp.Model(path, device=None, n_gpu_layers=-1, **OPTIONS) as nowhere:
            assert not any(name.startswith("rpc") for name in nowhere.devices.names())
        assert same(one.run(PROMPT), expected)


# servers that go away


@pytest.fixture
def mortal():
    server = Server()
    yield server
    server.kill()


def _split(server: Server, path=None, **options) -> interp.Model:
    return interp.Model(path or models.tiny("llama"), device=server.device, n_gpu_layers=3, **OPTIONS | options)


LOST = "A part of the model is lost: the RPC server 127.0.0.1:.* went away"


def test_a_server_killed_in_a_generation_ends_it_and_a_new_one_is_found_again(mortal):
    model, n, killed = _split(mortal), 0, 0.0
    expected = model.run(PROMPT).logits
    with pytest.raises(interp.RunError, match=LOST) as caught:
        for _ in model.stream(PROMPT, max_tokens=200):
            n += 1
            if n == 5:
                mortal.kill()
                killed = time.monotonic()
    assert n < 10 and time.monotonic() - killed < 5 and "\n" not in str(caught.value)

    for use in (
        lambda: model.run(PROMPT), lambda: model.generate(PROMPT), lambda: model.prefix(PROMPT), lambda: model.devices,
        lambda: model.sites() and model.weight("blk.3.attn_q.weight"), lambda: model.unembed(np.zeros((1, model.n_embd))),
    ):  # fmt: skip
        with pytest.raises(interp.RunError, match=LOST):
            use()

    mortal.start()
    # the dead one is still held, as it is while a notebook runs the line that loads it again
    with _split(mortal) as again:
        assert np.array_equal(again.run(PROMPT).logits, expected)
        with pytest.raises(interp.RunError, match="This model is closed: the RPC server .* went away. Load it again."):
            model.run(PROMPT)
        model.close()
        assert np.array_equal(again.run(PROMPT).logits, expected)


def test_servers_may_die_in_turn_while_old_models_are_still_held(mortal):
    other = Server()
    try:
        where, held = [mortal.device, other.device], []
        for victim in (mortal, other, mortal, other):
            held.append(interp.Model(models.tiny("llama"), device=where, n_gpu_layers=-1, **OPTIONS))
            held[-1].run(PROMPT)
            # only the last one of them that a name still holds
            held = held[-2:]
            victim.kill()
            with pytest.raises(interp.RunError, match=LOST):
                held[-1].run(PROMPT)
            victim.start()
    finally:
        other.kill()


def test_a_server_killed_in_the_middle_of_a_batch_ends_it(mortal):
    """The library waits for the server at that moment."""
    tokens = np.random.default_rng(0).integers(0, 40000, 1500).tolist()
    model = interp.Model(device=mortal.device, n_ctx=1536, n_threads=1)
    timer = threading.Timer(1.5, mortal.kill)
    timer.start()
    started = time.monotonic()
    with pytest.raises(interp.RunError, match=LOST):
        for _ in range(20):
            model.run(tokens, capture="l_out", logits="last")
    assert time.monotonic() - started < 60
    timer.join()
    model.close()


def test_a_server_that_died_between_two_runs_is_noticed_before_the_second(mortal):
    model = _split(mortal)
    model.run(PROMPT)
    mortal.kill()
    with pytest.raises(interp.RunError, match=LOST):
        model.run(PROMPT)
    model.close()
    with pytest.raises(interp.DeviceError, match="connection refused"):
        _split(mortal)


def test_a_server_that_stops_answering_is_an_error_after_the_limit(mortal, monkeypatch):
    monkeypatch.setenv("LLAMA_INTERP_RPC_TIMEOUT", "3")
    model = _split(mortal)
    model.run(PROMPT)
    mortal.send(signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(interp.RunError, match="did not answer for 3 s .LLAMA_INTERP_RPC_TIMEOUT is the limit"):
        model.run(PROMPT)
    assert time.monotonic() - started < 15
    model.close()
    mortal.send(signal.SIGCONT)
    with _split(mortal) as again:
        assert again.run(PROMPT).logits is not None


def test_the_other_models_of_the_process_go_on(mortal, servers):
    path = models.tiny("llama")
    with interp.Model(path, device=servers[0].device, **OPTIONS) as other, _local(path) as local:
        expected = other.run(PROMPT).logits
        model = _split(mortal)
        mortal.kill()
        with pytest.raises(interp.RunError, match=LOST):
            model.run(PROMPT)
        assert np.array_equal(other.run(PROMPT).logits, expected)
        assert np.array_equal(local.run(PROMPT).logits, expected)
        model.close()


def test_a_server_is_free_for_another_program_as_soon_as_its_models_are_closed(mortal):
    with _split(mortal) as model:
        expected = model.run(PROMPT)
    # the process of an isolated model is another program; the closed model is still held
    with _split(mortal, isolated=True) as other:
        assert same(other.run(PROMPT), expected)
    with pytest.raises(interp.RunError, match="This model is closed"):
        model.run(PROMPT)


def test_a_process_whose_server_died_ends_well(mortal):
    """Nothing is closed by hand: what is left at the end of the process must not abort it."""
    program = f"""
import sys; sys.path[:0] = ["tests"]
import interp, models
model = interp.Model(models.tiny("llama"), device={mortal.device!r}, n_ctx=64, n_threads=1)
print("loaded", flush=True); input()
try: model.run("hello")
except interp.RunError as error: print(error)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "loaded\n"
    mortal.kill()
    out, err = child.communicate("\n", timeout=60)
    assert child.returncode == 0 and "went away" in out and err == ""


# being a server


def test_a_port_in_use_is_one_line_and_ctrl_c_is_a_clean_end(mortal):
    command = [sys.executable, "-m", "interp.cli", "rpc-server", "--threads", "1", "--port"]
    done = subprocess.run([*command, str(mortal.port)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: Cannot listen at 127.0.0.1:{mortal.port}: address already in use. Choose another port.\n"

    server = subprocess.Popen([*command, "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "serving cpu; Ctrl-C ends it" in server.stdout.readline()
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=30)
    assert (server.returncode, out) == (0, "ended\n")
    assert err == "warning: the protocol has no authentication: every user of this machine can use it\n"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machines_is_refused(host):
    with pytest.raises(interp.DeviceError, match=f"Cannot listen at {host}:0: "):
        rpc_server.serve(host, 0)


def test_loopback_is_told_from_the_network():
    assert rpc_server.is_loopback("127.0.0.1") and not rpc_server.is_loopback("0.0.0.0")


# in a process of its own


def test_an_isolated_model_has_the_same_bits_and_finds_its_server_again(mortal):
    with _local(models.tiny("llama")) as local:
        expected = local.run(PROMPT, capture="l_out")
    with _split(mortal, isolated=True) as model:
        assert same(model.run(PROMPT, capture="l_out"), expected, ["l_out"])
        assert model.devices.names() == [mortal.device, "cpu"]
        first = model.pid
        with pytest.raises(interp.RunError, match=LOST):
            for n, _ in enumerate(model.stream(PROMPT, max_tokens=200)):
                if n == 3:
                    mortal.kill()
        with pytest.raises(interp.DeviceError, match="No RPC server at"):
            model.run(PROMPT)
        mortal.start()
        with pytest.warns(RuntimeWarning, match="the RPC server 127.0.0.1:.* went away. Another one was started"):
            again = model.run(PROMPT, capture="l_out")
        assert same(again, expected, ["l_out"]) and model.pid != first


def test_the_process_of_an_isolated_model_is_ended_where_a_server_is_silent(mortal, monkeypatch):
    monkeypatch.setenv("LLAMA_INTERP_RPC_TIMEOUT", "3")
    with _split(mortal, isolated=True) as model:
        expected = model.run(PROMPT).logits
        mortal.send(signal.SIGSTOP)
        with pytest.raises(interp.ProcessError, match="did not answer for 3 s"):
            model.run(PROMPT)
        mortal.send(signal.SIGCONT)
        with pytest.warns(RuntimeWarning, match="did not answer"):
            assert np.array_equal(model.run(PROMPT).logits, expected)


# forks


def test_a_fork_does_not_speak_on_the_connections_of_its_parent(servers):
    """Found by abuse: a fork that let go of its copy of a model on a server waited for ever, on a socket that is not its own."""
    with interp.Model(models.tiny("llama"), device=servers[0].device, **OPTIONS) as remote:
        before = remote.run(PROMPT).logits
        stream = remote.stream(PROMPT, 9)
        next(stream)
        for call in (
            lambda: remote.run(PROMPT), lambda: next(stream), lambda: remote.devices,
            lambda: interp.Model(models.tiny("llama"), device=servers[0].device, **OPTIONS),
        ):  # fmt: skip
            status, said = forked(call)
            assert status == 0 and FOREIGN in said, said
        for quiet in (stream.close, remote.close):
            assert forked(quiet) == (0, "None")
        stream.close()
        assert np.array_equal(remote.run(PROMPT).logits, before)
