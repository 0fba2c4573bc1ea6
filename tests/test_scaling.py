"""The scaling model against arithmetic by hand, and the files of its page, which at least must parse."""

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

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


def test_a_part_of_a_stream_of_images_is_taken_as_it_is(tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = {}
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(3):
                path = tmp_path / f"{shard}{number}.png"
                Image.new("RGB", (8, 6), (shard, number, 0)).save(path)
                images[3 * shard + number] = path.read_bytes()
                tar.add(path, arcname=path.name)
    monkeypatch.syspath_prepend(ROOT / "examples")
    script = importlib.import_module("take_images")
    asked = ["--shards", str(tmp_path / "*.tar"), "--output_dir", str(tmp_path / "part")]
    script.main([*asked, "--begin", "2", "--end", "5"])
    taken = {int(path.stem): path.read_bytes() for path in (tmp_path / "part").iterdir()}
    assert taken == {number: images[number] for number in (2, 3, 4)}
    assert capsys.readouterr().out == f"3 images in {tmp_path / 'part'}\n"
    with pytest.raises(SystemExit, match="holds no image 6: it is over"):
        script.main([*asked, "--begin", "6", "--end", "9"])
