import json
import re
from dataclasses import replace

import pytest

from builders_detections import random_scene
from builders_reports import EVIL, TEACHER, Page, closeup_of, entries, record
from qskd.evaluation.matching import Truth, match
from qskd.reporting.compare import compare_runs
from qskd.reporting.groups import teachers_of
from qskd.reporting.report import Panel, Pictures, PictureSet, charts_of, markdown_text, write_report
from qskd.reporting.speed import Latency, SideBySide

PICTURES = Pictures(
    extremes=[PictureSet(EVIL, EVIL, [(EVIL, [Panel(EVIL, EVIL, "data:image/jpeg;base64,AAAA")])])],
    rows=[(EVIL, [Panel(EVIL, EVIL, "data:image/jpeg;base64,AAAA")])],
    legend=[(EVIL, "#112233")],
    notes=[EVIL],
    sheet="pictures.jpg",
)


def evil_runs():
    log = [*entries(loss_box=1.0, agfd=0.5), {"step": 2, "loss": 1.0, EVIL: 3.0}]
    teacher = TEACHER | {"metrics": {"AP": 0.5, "per_class": {EVIL: 0.1}}}
    metrics = {"AP": 0.2, "per_class": {EVIL: 0.1}, "num_images": 1}
    return [
        record(EVIL, log=log, metrics=metrics, environment={EVIL: EVIL}),
        record(f"{EVIL}2", kind="distill", method=EVIL, log=log, metrics=metrics, teacher=teacher, config={EVIL: EVIL}),
        record(f"{EVIL}3", taught="f" * 64, log=log, steps=3),
    ]


def evil_matches(runs):
    """Detections of every run and of the teacher, of classes with terrible names."""
    truth, found = random_scene(4, 4, 2, 8)
    for category in truth["categories"]:
        category["name"] += EVIL
    matches = match(Truth.of(truth), dict(zip((image["id"] for image in truth["images"]), found, strict=True)))
    return dict.fromkeys((*(run.name for run in runs), *teachers_of(runs)), matches)


def write(folder, runs, pictures=PICTURES):
    closeup = closeup_of(runs, evil_matches(runs))
    closeup = replace(closeup, notes=(EVIL,), models=tuple(replace(one, title=EVIL) for one in closeup.models))
    speed = SideBySide((Latency(EVIL, "teacher", 2.0, 3.0, (64, 64)),), 5, EVIL, 2)
    return write_report(folder, compare_runs(runs, closeup=closeup, speed=speed), runs, pictures)


def test_names_cannot_break_out_of_the_page(tmp_path):
    text = write(tmp_path, evil_runs()).html.read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL in "".join(page.texts)
    assert "<script" not in text


def test_the_page_asks_nothing_of_the_network(tmp_path):
    text = write(tmp_path, evil_runs()).html.read_text("utf-8")
    page = Page(text)
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert "://" not in text
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "default-src 'none'" in text
    assert re.findall(r"url\((?!#)|@import", text) == []


def test_the_closer_look_stands_in_the_page_and_in_markdown(tmp_path):
    files = write(tmp_path, evil_runs())
    text, lines = files.html.read_text("utf-8"), files.markdown.read_text("utf-8")
    for words in ("Kinds of mistakes", "AP by class", "score<br>from", "Bolya et al."):
        assert words in text
    assert "Kinds of mistakes" in lines
    assert re.search(r"\| all, AP50 \| \d+ \| [\d.]+ \([\d.]+ to [\d.]+\) \|", lines)
    assert re.search(r"<td>[\d.]+<small>[\d.]+ to [\d.]+</small></td>", text)
    page = Page(text)
    assert "".join(page.texts).count("IoU 0.75") >= 1 + 2  # all classes, and each
    assert text.count('<div class="stack" role="img"') == 3


def test_every_figure_says_what_it_shows_and_every_section_can_be_reached(tmp_path):
    text = write(tmp_path, evil_runs()).html.read_text("utf-8")
    page = Page(text)
    assert text.count("<figure>") == text.count("<figcaption>")
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == text.count("<img")
    assert all(re.search(r'aria-label="[^"]+"', tag) for tag in re.findall(r'<[^>]*role="img"[^>]*>', text))
    inside = [address[1:] for address in page.addresses if re.fullmatch("#[a-z]+", address)]
    assert {"results", "costs", "classes", "precision", "errors", "curves", "pictures", "settings"} <= set(inside)
    assert set(inside) <= set(page.ids)


def test_ids_are_unique_and_tables_scroll_by_themselves(tmp_path):
    text = write(tmp_path, evil_runs()).html.read_text("utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<table>") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table>', text)) > 2
    assert "prefers-color-scheme: dark" in text


def test_markdown_tables_keep_their_columns_whatever_the_names(tmp_path):
    lines = write(tmp_path, evil_runs()).markdown.read_text("utf-8").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) > 8
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in tables]
    heads = [at for at, line in enumerate(tables) if line.startswith("|---")]
    for at, width in enumerate(widths):
        head = max((h for h in heads if h <= at + 1), default=heads[0])
        assert width == widths[head]
    assert not [line for line in lines if "<script" in line]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("a_b", r"a\_b"), ("a|b\nc", r"a\|b c"), ("<b>&", "&lt;b&gt;&amp;"), ("`x`", r"\`x\`"), (3, "3")],
)
def test_markdown_text_is_plain(text, escaped):
    assert markdown_text(text) == escaped


def test_json_is_strict_and_holds_settings(tmp_path):
    runs = [record("a", config={"flip": 0.5}), record("b", kind="distill")]
    content = json.loads(write(tmp_path, runs, Pictures()).json.read_text("utf-8"), parse_constant=pytest.fail)
    assert content["runs"][0]["config"] == {"flip": 0.5}
    assert [row["name"] for row in content["rows"]] == ["teacher", "a", "b"]


def test_warnings_stand_in_the_page_and_in_markdown(tmp_path):
    files = write(tmp_path, [record("a"), record("b", image_size=[99])], Pictures())
    for path in (files.html, files.markdown):
        assert "The runs differ in image size: 64 (a); 99 (b)." in path.read_text("utf-8")


def test_one_run_without_anything_measured_makes_a_report(tmp_path):
    text = write(tmp_path, [record("only", metrics={}, cost={})], Pictures()).html.read_text("utf-8")
    assert "No AP was measured for only." in text
    assert "<img" not in text


def test_seeds_are_summed_up_with_their_deviation(tmp_path):
    runs = [record("a1", seed=1, AP=0.30), record("a2", seed=2, AP=0.40)]
    runs += [record(f"d{n}", kind="distill", seed=n, AP=ap) for n, ap in ((1, 0.35), (2, 0.41))]
    text = write(tmp_path, runs, Pictures()).markdown.read_text("utf-8")
    assert "| baseline | 2 | 35.0 ± 7.1 |" in text  # sd of 0.3 and 0.4: 0.0707
    assert "| qskd | baseline | 2 paired | +3.0 ± 2.0 |" in text
    assert r"qskd: +3.0 ± 2.0 AP over baseline (2 paired seeds), 20% of the gap" in text


@pytest.mark.parametrize(
    ("log", "titles"),
    [
        ([], []),
        ([{"step": 3, "eval_AP": 0.2}], ["AP (%) on the validation images"]),
        (entries(), ["AP (%) on the validation images", "Training loss, all parts together"]),
        (
            entries(a=1.0, b=2.0),
            ["AP (%) on the validation images", "Training loss, all parts together", "Loss parts of baseline (run r)"],
        ),
    ],
)
def test_charts_show_what_was_logged(log, titles):
    assert [drawn.title for drawn in charts_of([record("r", log=log)])] == titles


def test_a_report_that_cannot_be_finished_leaves_the_former_one(tmp_path, monkeypatch):
    def full(path):
        raise OSError("no room")

    write(tmp_path, evil_runs())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("qskd.files.to_disk", full)
    with pytest.raises(OSError, match="no room"):
        write(tmp_path, evil_runs(), Pictures())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
