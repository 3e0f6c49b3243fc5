"""The command line's `devices`, and where its other commands run a model. `rpc-server`: test_rpc.py."""

# ruff: noqa: F811  fixtures that are imported

from __future__ import annotations

from cli_calls import call, json_of, loaded, output_of  # noqa: F401


def test_the_command_lists_what_device_takes():
    text = output_of("devices")
    assert text.splitlines()[1].startswith("cpu ") and "rpc://HOST:PORT" in text
    (cpu,) = [device for device in json_of("devices")["devices"] if device["kind"] == "cpu"]
    assert cpu["name"] == "cpu" and cpu["memory_total"] > 0


def test_the_device_is_named_before_or_after_the_command(loaded):
    output_of("--device", "cuda:0", "-ngl", "7", "-p", "x")
    output_of("--device", "cpu", "sites")
    output_of("--device", "cpu", "sites", "--device", "cuda:1", "--n-gpu-layers", "3")
    output_of("sites")
    place = [{key: options[key] for key in ("device", "n_gpu_layers") if key in options} for _, options in loaded]
    assert place == [{"device": "cuda:0", "n_gpu_layers": 7}, {"device": "cpu"}, {"device": "cuda:1", "n_gpu_layers": 3}, {}]


def test_a_number_of_layers_that_is_none_is_a_mistake_in_the_arguments():
    result = call("sites", "-ngl", "-1")
    assert result.exit_code == 2 and "at least 0" in result.stderr
