"""The scaling model against arithmetic by hand, and the files of its page, which at least must parse."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling_model", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_model"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling_model"]


def test_a_ring_sends_each_part_round_twice(scaling):
    """Four processes, 100 bytes: 6 messages of 25 bytes at 10 bytes a second and half a second each."""
    network = scaling.Network(bandwidth=10.0, latency=0.5)
    assert network.all_reduce(4, 100) == pytest.approx(6 * (2.5 + 0.5))
    assert network.all_reduce(1, 100) == 0.0


def test_a_step_takes_as_long_as_its_slowest_part(scaling):
    costs = scaling.Costs(2.0, 3.0, 6.0, 1.0, 0.1, gradient_bytes=100, image_side=640)
    network = scaling.Network(bandwidth=1e12, latency=0.0)
    setting = scaling.Setting(images=4, faster=10.0, cores=1, steps=10, validation=20)
    step = scaling.predict(costs, network, setting, 2)
    assert (step.compute, step.input) == pytest.approx((4.0, 8.0))
    # 10 images each, a forward of 0.2 s and 2 s of decoding; 2 s of counting; over 10 steps.
    assert step.evaluation == pytest.approx((10 * 2.2 + 2.0) / 10)
    assert step.seconds == pytest.approx(8.0 + 2.4)
    assert step.slowest == "input"


def test_the_bytes_of_a_stored_answer(scaling):
    assert scaling.cache_bytes(60, 80, 6, 1600, 256) == (123_840, 819_200)


def test_the_page_shows_the_table_that_the_script_prints(scaling, capsys):
    flags = "--faster 500 --images 16 --cores 8 --bandwidth 12.5e9 --latency 1e-5"
    assert f"benchmarks/scaling.py {flags}" in PAGE
    scaling.main(flags.split())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(scaling.PROCESSES)
    shown = dict(re.findall(r"^\| ([\d,]+) \| ([\d.]+) s", PAGE, re.MULTILINE))
    assert set(shown) == {f"{count:,}" for count in scaling.PROCESSES if count != 2}
    for row in rows:
        name = f"{int(row[0]):,}"
        assert name not in shown or float(row[1]) == pytest.approx(float(shown[name]), abs=6e-4)
    costs = json.loads((ROOT / "benchmarks/results/scaling.json").read_text())["costs"]
    assert f"| {costs['teacher']:.2f} s |" in PAGE


def test_the_files_for_clusters_parse(tmp_path):
    (script,) = re.findall(r"```sbatch\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "job.sh").write_text(script)
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"]).returncode == 0
    (manifest,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    worker = yaml.safe_load(manifest)["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    volumes = {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
