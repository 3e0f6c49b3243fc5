"""Hooks on a device whose memory is not the host's, whichever the library was built for.

    python3 build.py --cuda test -m gpu             or --metal, or --vulkan
    python3 build.py --vulkan test -m vulkan        on Mesa's llvmpipe, which needs no GPU

What is compared with the CPU is bounded by the backend's own noise: how far the unpatched library is from itself,
computed on the device and on the CPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import accelerator_cases as cases
import interp
import unpatched
from accelerator_cases import READ, TOKENS
from interp import native

pytestmark = [pytest.mark.gpu, pytest.mark.vulkan]

ROOT = Path(__file__).resolve().parent.parent

#: prompts that the noise is taken over: kernels differ with the number of rows, and the noise grows with it
PROMPTS = (TOKENS, TOKENS[::-1], *(np.random.default_rng(0).integers(1, cases.N_VOCAB, n).tolist() for n in (12, 40)))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "flash"])
def flash_attn(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def path(accelerator) -> Path:
    return cases.small("llama")


@pytest.fixture(scope="module")
def model(accelerator, path, flash_attn):
    with cases.load(path, flash_attn, accelerator.name) as model:
        yield model


@pytest.fixture(scope="module")
def run(model) -> interp.Run:
    return model.run(TOKENS, capture=READ)


@pytest.fixture(scope="module")
def unpatched_library(accelerator, tmp_path_factory) -> Path:
    """The unpatched library for the same backend; where only that of the CPU was built, with the backend put beside it.

    The second saves compiling a backend's kernels twice: the series leaves their source alone.
    """
    if (built := unpatched.library()) is not None:
        return built
    backend, plain = unpatched.backend(), unpatched.needed("cpu")
    code = (f"ggml/src/ggml-{backend}/", "ggml/src/ggml-backend-reg.cpp")
    for patch in (ROOT / "patches").glob("*.patch"):
        touched = [line[6:] for line in patch.read_text().splitlines() if line.startswith("+++ b/")]
        assert not [name for name in touched if name.startswith(code)], patch.name
    folder, ours = tmp_path_factory.mktemp("unpatched") / "lib", native.find_library().parent
    shutil.copytree(plain, folder, symlinks=True)
    for file in [*ours.glob("libggml.*"), *ours.glob(f"libggml-{backend}.*")]:
        (folder / file.name).unlink(missing_ok=True)
        shutil.copy2(file, folder, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def reference(accelerator, unpatched_library, path, flash_attn, tmp_path_factory) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits of the unpatched library for each prompt, on the device and on the CPU."""
    scratch = tmp_path_factory.mktemp("reference")
    return [
        tuple(
            unpatched.logits(path, prompt, unpatched_library, scratch, flash_attn, device=where)
            for where in (accelerator.ggml_name, "CPU")
        )
        for prompt in PROMPTS
    ]


@pytest.fixture(scope="module")
def noise(reference) -> float:
    """How far the device is from the CPU without us, as a share of the largest logit."""
    return max(distance(on_device, on_cpu) for on_device, on_cpu in reference)


@pytest.fixture(scope="module")
def on_cpu(accelerator, path, flash_attn, tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    return cases.on_cpu(path, flash_attn, tmp_path_factory.mktemp("cpu") / "values.npz")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference as a share of the largest value."""
    return float(np.abs(a - b).max() / np.abs(b).max())


# // bits: nothing that is read or put back changes one


def test_with_nothing_attached_the_bits_are_those_of_the_unpatched_library(model, reference, noise):
    assert noise > 0, "the unpatched library did not compute on the device"
    for prompt, (on_device, _) in zip(PROMPTS, reference, strict=True):
        assert np.array_equal(model.run(prompt).logits, on_device)


def test_reading_changes_no_bit(model, run):
    assert np.array_equal(model.run(TOKENS).logits, run.logits)
    for site in READ:
        assert np.array_equal(model.run(TOKENS, capture=site)[site], run[site]), site


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v"])
def test_a_run_s_own_values_patched_in_change_no_bit(model, run, site):
    own = model.run(TOKENS, capture=site)
    for positions in (None, [1, -1]):
        patched = model.run(TOKENS, edits=interp.patch(site, 2, own, positions=positions))
        assert np.array_equal(patched.logits, run.logits), positions


def test_an_ablation_clears_its_heads_and_no_other(model, run):
    ablated = model.run(TOKENS, capture="z", edits=interp.ablate([(1, 0), (1, 3)]))
    assert not ablated["z", 1][:, [0, 3]].any()
    assert np.array_equal(ablated["z", 1][:, [1, 2]], run["z", 1][:, [1, 2]])
    assert np.array_equal(ablated["z", 0], run["z", 0])
    assert distance(ablated.logits, run.logits) > 0.01


def test_parts_of_a_run_have_the_bits_of_the_whole(model, run):
    whole = model.run(TOKENS, capture="resid_pre")
    for layer in range(1, model.n_layer):
        resumed = model.resume(whole["resid_pre", layer], layer, TOKENS, capture=READ)
        assert np.array_equal(resumed.logits, run.logits), layer
        assert all(np.array_equal(resumed[site], run[site][layer:]) for site in READ), layer
    for layer in range(model.n_layer):
        stopped = model.run(TOKENS, capture=READ, stop_after=layer)
        assert all(np.array_equal(stopped[site], run[site][: layer + 1]) for site in READ), layer
    assert np.array_equal(model.unembed(run["resid_post", -1]), run.logits)


def test_attention_is_read_beside_flash_attention(run):
    for layer, scores in enumerate(run["attn_scores"]):
        assert np.abs(scores.sum(-1) - 1).max() <= 1e-5, layer
        assert not np.triu(scores, 1).any(), layer


# // values: those of the CPU, within the backend's noise


@pytest.mark.parametrize("name", cases.CASES)
def test_values_are_those_of_the_cpu_within_the_noise_of_the_backend(model, run, on_cpu, noise, name):
    found = cases.values(model, name)
    for site, value in found.items():
        assert distance(value, on_cpu[name][site]) <= noise, site
    if name != "nothing":
        assert distance(found["logits"], run.logits) > 3 * noise, "the edit had no effect"


def test_batched_and_serial_sweeps_agree_within_the_noise(model, noise):
    metric = interp.logit_diff(100, 200)
    sweeps = [
        interp.patch_sweep(model, TOKENS, [TOKENS[0], 99, *TOKENS[2:]], site, metric, method=method, layers=[0, 2])
        for site in ("resid_pre", "z") for method in ("batched", "serial")
    ]
    largest = np.abs(model.run(TOKENS).logits).max()
    for batched, serial in (sweeps[:2], sweeps[2:]):
        assert np.abs(serial.effects).max() > 10 * noise * largest
        # a value is the difference of two logits
        assert np.abs(batched.values - serial.values).max() <= 2 * noise * largest


def test_statistics_are_those_of_the_rows_that_are_read(model, run):
    found = interp.stats(model, [TOKENS], sites=("resid_post", "mlp_out"), progress=False)
    for site in ("resid_post", "mlp_out"):
        for layer in range(model.n_layer):
            assert np.allclose(found.mean(site, layer), run[site, layer].mean(0), atol=1e-5), (site, layer)


def test_generation_reads_and_steers_at_every_token(model):
    edit = cases.CASES["steering"](model)
    plain = model.generate(TOKENS, max_tokens=4, edits=edit)
    read = model.generate(TOKENS, max_tokens=4, edits=edit, capture=READ)
    assert plain.tokens == read.tokens
    assert plain.tokens[0] == int(model.run(TOKENS, edits=edit).logits[-1].argmax())
    assert read.run["resid_post"].shape[:2] == (model.n_layer, len(TOKENS) + 3)


# // what it costs: nothing is computed, moved or run elsewhere that was not asked for


def test_with_nothing_attached_the_graph_is_llama_cpp_s_own(model):
    assert model.graph(TOKENS).added == []


def test_reading_the_residual_stream_adds_no_computation(model):
    plain, read = model.graph(TOKENS), model.graph(TOKENS, capture="resid_post")
    assert [node.op for node in read if not node.is_leaf] == [node.op for node in plain if not node.is_leaf]


def test_steering_adds_one_operation_and_it_is_on_the_device(accelerator, model):
    added = model.graph(TOKENS, edits=interp.steer("l_out", 1, cases._direction())).added
    assert [(node.op, node.backend) for node in added if not node.is_leaf] == [("ADD", accelerator.ggml_name)]


# // where nodes run


def test_the_graph_shows_where_each_node_runs(accelerator, model):
    edits = [interp.edit("l_out-1", cases._everything), interp.edit_host("l_out-2", lambda a: a)]
    graph = model.graph(TOKENS, capture=READ, edits=edits)
    added = {(node.op, node.backend) for node in graph.added if not node.is_leaf}
    assert {backend for op, backend in added if op == "MAP_CUSTOM1"} == {"CPU"}, "a function of Python"
    assert {backend for op, backend in added if op != "MAP_CUSTOM1"} == {accelerator.ggml_name}, "all else is on the device"
    computed = [node for node in graph if not node.is_leaf and node.added_by is None]
    assert {node.op for node in computed if node.backend == "CPU"} <= {"GET_ROWS"}, "of the model only its embedding"


@pytest.mark.parametrize(("arch", "site"), [("mixtral", "mlp_out"), ("gpt-oss", "z")])
def test_experts_and_sinks_are_read_and_changed_as_well(accelerator, arch, site):
    with cases.load(cases.small(arch), True, accelerator.name) as model:
        plain = model.run(TOKENS, capture=(site, "attn_scores"))
        assert np.array_equal(model.run(TOKENS).logits, plain.logits)
        own = model.run(TOKENS, edits=interp.patch(site, 1, plain))
        assert np.array_equal(own.logits, plain.logits)
        changed = model.run(TOKENS, edits=interp.scale(interp.at(site, layers=1), 0.5))
        assert distance(changed.logits, plain.logits) > 0.001
