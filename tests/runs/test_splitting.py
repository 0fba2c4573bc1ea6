"""`qskd split` as a user runs it, and how images are divided."""

import shutil

import numpy as np
import pytest
from PIL import Image

from builders_data import edit, write_coco
from qskd.cli import main
from qskd.data.image_facts import alike
from qskd.data.sources import open_source
from qskd.data.splitting import divide, look_alikes
from qskd.errors import ConfigError


@pytest.fixture
def data(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "data")


def test_a_division_is_the_same_each_time_and_whole(data, tmp_path, capsys):
    for name in ("one", "two"):
        command = ["split", str(data), "--output_dir", str(tmp_path / name), "--val", "0.25", "--test", "0.2"]
        assert main(command) == 0
    assert "written to" in capsys.readouterr().out
    first, second = (open_source(tmp_path / name) for name in ("one", "two"))
    assert first.splits == ("train", "val", "test")
    seen: list[str] = []
    for split in first.splits:
        one, two = first.load(split), second.load(split)
        assert one.fingerprint() == two.fingerprint()
        seen += one.images.file_names
    source = open_source(data).load("train")
    assert sorted(seen) == sorted(source.images.file_names)
    assert main(["check", str(tmp_path / "one")]) == 0


def test_another_seed_divides_otherwise_and_bad_shares_are_refused(data, tmp_path, capsys):
    def chosen(seed):
        names = [f"{number}.jpg" for number in range(40)]
        return divide(names, [[number % 3] for number in range(40)], {"train": 0.75, "val": 0.25}, seed=seed)

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert chosen(0).count("val") == 10
    for val, test, message in (
        ("1.5", "0", "--val is 1.5 and --test 0: shares of the images"),
        ("nan", "0", "--val is nan"),
        ("0", "0.2", "--val above 0"),
        ("0.7", "0.5", "--val 0.7 and --test 0.5 make 1.2 of the images, which leaves none for train"),
        ("0.9", "0.1", "make 1 of the images"),
    ):
        command = ["split", str(data), "--output_dir", str(tmp_path / "x"), "--val", val, "--test", test]
        assert main(command) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"train -0\.2, val 1\.2; expected at least two"):
        divide(["a", "b"], [[0], [0]], {"train": 1 - 1.2, "val": 1.2})
    with pytest.raises(ConfigError, match="cannot make 2 splits"):
        divide(["a"], [[0]], {"train": 0.5, "val": 0.5})


def test_every_class_is_in_every_split_and_the_order_of_images_does_not_matter():
    labels = [[0] * 3] * 60 + [[1]] * 12 + [[2, 0]] * 4 + [[]] * 24
    names = [f"{number:03d}.jpg" for number in range(100)]
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    found = divide(names, labels, shares, seed=4)
    for split, share in shares.items():
        mine = [row for row, one in zip(labels, found, strict=True) if one == split]
        assert abs(len(mine) - 100 * share) <= 3
        for label, images in ((0, 64), (1, 12), (2, 4)):
            assert abs(sum(label in row for row in mine) - share * images) <= 2
            assert any(label in row for row in mine)
    order = np.random.default_rng(0).permutation(100)
    again = divide([names[at] for at in order], [labels[at] for at in order], shares, seed=4)
    assert {names[at]: split for at, split in zip(order, again, strict=True)} == dict(zip(names, found, strict=True))


def test_data_with_errors_is_not_divided(data, tmp_path, capsys):
    images = sorted((data / "images" / "train").iterdir())
    whole = images[0].read_bytes()
    images[0].write_bytes(whole[: len(whole) * 2 // 3])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images[1]).resize((48, 64)).save(images[1], exif=exif)
    size = {"width": 48, "height": 64}  # before turning
    edit(data, "train", lambda content: content["images"][1].update(size))
    command = ["split", str(data), "--output_dir", str(tmp_path / "divided")]
    assert main(command) == 2
    told = capsys.readouterr().err
    for text in ("image damaged (1)", "turned by its EXIF tag, but not by its annotations (1)"):
        assert text in told
    assert all(image.name in told for image in images[:2])
    assert f"qskd check {data} --fix CLEAN" in told
    assert not (tmp_path / "divided").exists()
    assert main([*command, "--split", "val"]) == 0  # whose images are whole
    main(["check", str(data), "--fix", str(tmp_path / "clean")])
    assert main(["split", str(tmp_path / "clean"), "--output_dir", str(tmp_path / "again")]) == 0
    divided = open_source(tmp_path / "again")
    assert sum(len(divided.load(split)) for split in ("train", "val")) == len(images) - 2


def crowded(images: int) -> list[list[int]]:
    """Labels of images, most of which hold one object and a few very many; rare classes lie in the full ones."""
    random = np.random.default_rng(5)
    counts = np.where(np.arange(images) % 6 == 0, random.integers(20, 60, images), random.integers(0, 3, images))
    return [random.choice(5, count, p=[0.5, 0.3, 0.12, 0.06, 0.02]).tolist() for count in counts]


@pytest.mark.parametrize(
    ("images", "shares", "wanted"),
    [
        (448, {"train": 0.7, "val": 0.2, "test": 0.1}, (314, 90, 45)),
        (205, {"train": 0.5, "val": 0.5}, (102.5, 102.5)),
        (24, {"train": 0.75, "val": 0.25}, (18, 6)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_split_has_its_share_of_the_images_and_of_the_crowded_ones(images, shares, wanted, seed):
    labels = crowded(images)
    found = divide([f"{number}.jpg" for number in range(images)], labels, shares, seed=seed)
    objects = np.array([np.bincount(row, minlength=5) for row in labels])
    for (split, share), count in zip(shares.items(), wanted, strict=True):
        mine = objects[[one == split for one in found]]
        assert abs(len(mine) - count) <= 1
        if images > 200:  # in a few images one object more is much
            assert mine.sum() / len(mine) == pytest.approx(objects.sum() / images, rel=0.05)
            np.testing.assert_allclose(mine.sum(axis=0) / objects.sum(axis=0), share, rtol=0.1)
            assert mine[:, 4].any()


def test_a_class_in_one_image_is_learnt():
    for seed in range(8):
        found = divide(
            [f"{number}.jpg" for number in range(24)], [[0, 1]] + [[0]] * 23, {"train": 0.4, "val": 0.6}, seed=seed
        )
        assert found[0] == "train"
        assert found.count("val") == 14


def test_shares_of_images_are_kept_with_groups_of_many_sizes():
    groups = [number for number in range(60) for _ in range(1 + number % 5)]  # 180 images
    labels = [[group % 3] for group in groups]
    found = divide([f"{at:03d}.jpg" for at in range(180)], labels, {"train": 0.8, "val": 0.2}, groups=groups)
    assert found.count("val") == 36
    assert all(len({found[at] for at in range(180) if groups[at] == group}) == 1 for group in range(60))


def test_look_alikes_stay_together():
    hashes = [bytes(16), bytes([1]) + bytes(15), bytes([255] * 16), bytes([3]) + bytes(15), b""]
    groups = look_alikes(hashes, 1)
    assert groups[0] == groups[1] == groups[3]
    assert len({groups[0], groups[2], groups[4]}) == 3
    assert alike([b""], [b""], 128) == []
    assert alike([bytes(16)], [bytes([255] * 16)], 127) == []
    found = divide(
        [str(number) for number in range(20)],
        [[0]] * 20,
        {"train": 0.5, "val": 0.5},
        groups=[0] * 9 + list(range(1, 12)),
    )
    assert len(set(found[:9])) == 1


def test_a_source_split_that_is_not_there_is_named(tmp_path, capsys):
    write_coco(tmp_path / "data")
    assert main(["split", str(tmp_path / "data"), "--output_dir", str(tmp_path / "x"), "--split", "tset"]) == 2
    assert "no split 'tset'" in capsys.readouterr().err
