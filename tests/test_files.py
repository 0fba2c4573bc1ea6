"""Files and folders written whole: past links, and by several at once."""

import os

import pytest

from qskd.errors import ConfigError
from qskd.files import make_folder, mend, place_for_file, put, remove, whole_file, whole_folder


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of the user, which nothing may touch."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"mine.txt": "mine"}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("name", ["a.json", ".a.json.tmp"])
def test_no_file_is_written_through_a_link(elsewhere, place, name):
    (place / name).symlink_to(elsewhere / "mine.txt")
    with whole_file(place / "a.json") as fresh:
        fresh.write_text("new")
    assert (place / "a.json").read_text() == "new"
    assert not (place / "a.json").is_symlink()


@pytest.mark.parametrize("name", ["best", ".best.tmp", ".best.old"])
def test_no_folder_is_written_through_a_link(elsewhere, place, name):
    (place / name).symlink_to(elsewhere)
    for content in ("one", "two", "three"):
        with whole_folder(place / "best") as fresh:
            fresh.mkdir(exist_ok=True)
            (fresh / "model").write_text(content)
        assert (place / "best" / "model").read_text() == content
    assert not (place / "best").is_symlink()


def test_a_link_to_nothing_is_replaced_by_a_folder(place):
    (place / "best").symlink_to(place / "nowhere")
    (place / "fresh").mkdir()
    put(place / "fresh", place / "best")
    assert [path.name for path in place.iterdir()] == ["best"]


def test_removing_a_link_leaves_what_it_leads_to(elsewhere, place):
    for name in ("checkpoint-2", ".best.old", ".best.tmp", "best"):
        (place / name).symlink_to(elsewhere)
    remove(place / "checkpoint-2")
    mend(place, ["best"])
    assert [path.name for path in place.iterdir()] == ["best"]


def test_two_that_write_one_file_at_once_do_not_mix(place):
    with whole_file(place / "a.txt") as one:
        one.write_text("1111")
        with whole_file(place / "a.txt") as two:
            two.write_text("2")
    assert (place / "a.txt").read_text() == "1111"
    assert [path.name for path in place.iterdir()] == ["a.txt"]


def test_what_a_kill_left_of_a_file_is_removed_under_its_pattern_alone(place):
    for name in (".a.json.0123456789abcdef.tmp", ".a.json.tmp", ".b.txt.0123456789abcdef.tmp"):
        (place / name).write_text("half")
    mend(place, ["*.json"])
    assert [path.name for path in place.iterdir()] == [".b.txt.0123456789abcdef.tmp"]


def test_a_place_for_results_is_made_before_there_are_any(tmp_path):
    place_for_file(tmp_path / "deep" / "a.json", "--json")
    assert (tmp_path / "deep").is_dir()
    make_folder(tmp_path / "deep", "--output_dir")


@pytest.mark.parametrize("name", ["file/folder", "file"])
def test_a_folder_that_cannot_be_made_is_said(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"--output_dir .*cannot be made .*Give another folder"):
        make_folder(tmp_path / name, "--output_dir")
    with pytest.raises(ConfigError, match=r"--json .*cannot be made"):
        place_for_file(tmp_path / name / "a.json", "--json")


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(ConfigError, match=r"--json .* is a folder. Give the name of a file"):
        place_for_file(tmp_path, "--json")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_is_read_only_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="nothing can be written there"):
        make_folder(tmp_path, "--output_dir")
