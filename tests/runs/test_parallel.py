"""Several processes: they train as one, and none waits for one that is gone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxdet import InputError
from jaxdet.runs import parallel
from tests.conftest import QUICK, ROOT, command


@pytest.mark.slow
def test_two_processes_train_as_one(trained, tiny, tmp_path):
    """As Slurm starts them: each loads half of every batch; together they write one run."""
    processes = []
    for i in range(2):
        environment = {
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
            "SLURM_STEP_NUM_NODES": "1", "XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": "2",
        }  # fmt: skip
        words = [sys.executable, "run.py", *tiny, f"--workdir={tmp_path}", "--distributed"]
        processes.append(
            subprocess.Popen(
                words, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, two = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        for workdir in (trained[0], tmp_path)
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    assert (tmp_path / "evaluation.json").exists() and (tmp_path / "submission.csv").exists()


def start_two(flags, workdir):
    """Two processes with a device each, and the files that their standard errors go to."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    processes, errors = [], []
    for i in range(2):
        words = [
            sys.executable, "run.py", *flags, f"--workdir={workdir}", "--num_processes=2",
            f"--process_id={i}", f"--coordinator=localhost:{port}",
        ]  # fmt: skip
        errors.append(workdir.parent / f"errors{i}")
        environment = os.environ | {"XLA_FLAGS": QUICK, "JAX_NUM_CPU_DEVICES": "1"}
        with errors[i].open("w") as file:
            processes.append(
                subprocess.Popen(
                    words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file
                )
            )
    return processes, errors


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_one_that_dies_or_is_stopped_ends_the_other(victim, number, tiny, tmp_path):
    long = ["--config.train.steps=100000", "--config.train.evaluate_every=100000"]
    processes, errors = start_two([*tiny, *long], tmp_path / "run")
    try:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
            assert time.monotonic() < deadline and processes[0].poll() is None
            time.sleep(0.1)
        processes[victim].send_signal(number)
        assert processes[1 - victim].wait(timeout=60) == 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = errors[1 - victim].read_text()
    line = rf"run.py: process {1 - victim}: another one .*: end all of them, and start all again "
    assert len(re.findall(line, said)) == 1, said
    assert "Traceback" not in said


SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
STEP = SALLOC | {"SLURM_STEP_NODELIST": "node7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture
def starts(monkeypatch):
    """How often JAX was asked to look for others; nobody comes, for a tenth of a second."""
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(name)
    asked = []

    def initialize(*args, **kwargs):
        asked.append(args)
        time.sleep(0.1)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return asked


def announce(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "given", "said"),
    [
        (STEP, (), "waiting for 3 others, 120 seconds at most\n"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4"}, (), "waiting for 3 others, 120 seconds at most\n"),
        ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "2"} | SALLOC, (),
         "waiting for 1 other, 120 seconds at most\n"),
        ({}, ("localhost:1", 3, 0), "waiting for 2 others, 120 seconds at most\n"),
        # They say it later: there may be many, or none.
        (STEP | {"SLURM_PROCID": "1"}, (), ""),
        ({}, ("localhost:1", 3, 2), ""),
        ({"KUBERNETES_SERVICE_HOST": "x"}, (), ""),
    ],
)  # fmt: skip
def test_who_waits_says_so_at_once(starts, monkeypatch, capsys, variables, given, said):
    announce(monkeypatch, variables)
    parallel.join_processes(*given)
    assert capsys.readouterr().err == said and len(starts) == 1


@pytest.mark.parametrize(
    "variables",
    [
        SALLOC,  # the shell of salloc or sbatch
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell that is a step of its own
    ],
)
def test_one_that_slurm_started_alone_waits_for_nobody(starts, monkeypatch, capsys, variables):
    announce(monkeypatch, variables)
    parallel.join_processes()
    note = "note: SLURM has room for 4 tasks, and started this one alone; srun starts all\n"
    assert capsys.readouterr().err == note and not starts
    with pytest.raises(InputError, match="--distributed: no cluster announces others here: start"):
        parallel.join_processes(required=True)


@pytest.mark.parametrize(
    "variables", [{}, STEP | {"SLURM_NTASKS": "1"}, STEP | {"OMPI_COMM_WORLD_SIZE": "1"}]
)
def test_one_that_is_alone_says_nothing(starts, monkeypatch, capsys, variables):
    announce(monkeypatch, variables)
    parallel.join_processes()
    assert capsys.readouterr().err == "" and not starts


@pytest.mark.parametrize(
    ("variables", "given", "way_out"),
    [
        (STEP, (), "start all of them by srun, or with SLURM_NTASKS=1 before it this one alone"),
        ({}, ("localhost:1", 4, 0), "start all of them with the same command"),
    ],
)
def test_who_waits_in_vain_ends_with_one_line(
    starts, monkeypatch, capsys, variables, given, way_out
):
    announce(monkeypatch, variables)
    monkeypatch.setattr(parallel, "WAITING_SECONDS", 0.02)
    codes = []
    monkeypatch.setattr(parallel.os, "_exit", codes.append)
    parallel.join_processes(*given)
    said = capsys.readouterr().err.splitlines()[1:]
    assert codes == [2] and len(said) == 1
    assert said[0].startswith("run.py: 3 others did not come in 0 seconds: ") and way_out in said[0]


def test_what_needs_no_others_does_not_join(starts, monkeypatch, tmp_path):
    announce(monkeypatch, STEP)
    (tmp_path / "config.json").write_text("{}")
    for mode, *flags in (
        ("score",), ("ensemble",), ("inspect",), ("export",), ("predict", f"--images={tmp_path}"),
    ):  # fmt: skip
        where = [] if mode in ("score", "ensemble") else [f"--workdir={tmp_path}"]
        assert command(f"--mode={mode}", *where, *flags).code == 2
    assert not starts
    command("--mode=predict", "--config=configs/phantom.py", f"--workdir={tmp_path}/none")
    assert len(starts) == 1


@pytest.fixture
def of_two(monkeypatch):
    """What was said at the end of this process, which takes itself for one of two."""
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "_end", said.append)
    return said


def test_the_watchdog_ends_what_waits_for_a_step(of_two):
    watchdog = parallel.Watchdog(seconds=0.2)
    for _ in range(3):
        watchdog.beat()
    assert of_two == []
    time.sleep(0.6)
    assert of_two == ["no step has ended for 0 seconds, so one of them hangs"]


def test_the_watchdog_lets_a_healthy_run_be(of_two):
    watchdog = parallel.Watchdog(seconds=0.1)
    for _ in range(4):  # steps of any length, the first included
        watchdog.beat()
        time.sleep(0.15)
    watchdog.rest()  # saving, or evaluating
    time.sleep(2)
    for _ in range(2):  # the others may be longer at that
        watchdog.beat()
        time.sleep(0.5)
    watchdog.beat()
    watchdog.rest()
    assert of_two == []


def test_the_watchdog_never_ends_a_process_that_is_alone(monkeypatch):
    said = []
    monkeypatch.setattr(parallel, "_end", said.append)
    watchdog = parallel.Watchdog(seconds=0.01)
    for _ in range(4):
        watchdog.beat()
    time.sleep(0.2)
    assert said == []


@pytest.mark.parametrize("on_cpu", [True, False])
def test_only_a_cpu_is_waited_for(on_cpu, monkeypatch):
    """A GPU copies a batch once it has computed the last step: waiting would let it stand idle."""
    waited = []
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu" if on_cpu else "gpu")
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or x)
    batch = {"images": np.arange(8)}
    sharded = parallel.shard_batch(batch, parallel.make_mesh())
    np.testing.assert_array_equal(sharded["images"], batch["images"])
    assert len(waited) == on_cpu
