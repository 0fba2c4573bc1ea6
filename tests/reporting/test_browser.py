"""The page in a real browser: no errors, figures seen, no sideways scrolling on a phone, dark where that is asked."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from builders_detections import random_scene, without_ties
from builders_reports import closeup_of, entries, record
from qskd.evaluation.matching import Truth, match
from qskd.reporting.compare import compare_runs
from qskd.reporting.pictures import data_uri
from qskd.reporting.report import Panel, Pictures, PictureSet, write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium"),
]

PROBE = """<iframe id="f" style="width:WIDTHpx;height:900px;border:0" srcdoc="PAGE"></iframe><script>
addEventListener("load", async () => {
  const page = document.getElementById("f").contentDocument, root = page.documentElement
  const of = what => [...page.querySelectorAll(what)]
  await Promise.all([...page.images].map(image => image.decode().catch(() => 0)))
  const seen = one => { const box = one.getBoundingClientRect(); return box.width > 60 && box.height > 20 }
  of("details").forEach(one => { one.open = true })
  document.body.dataset.found = JSON.stringify({
    scroll: root.scrollWidth, width: root.clientWidth, images: page.images.length,
    broken: [...page.images].filter(image => !image.naturalWidth || !seen(image)).length,
    charts: of(".charts svg[viewBox*='353'], .charts figure > div > svg").length,
    hidden: of(".charts figure > div > svg, .stack").filter(one => !seen(one)).length,
    bars: of(".stack span").filter(one => one.getBoundingClientRect().width >= 1).length,
    ground: getComputedStyle(page.body).backgroundColor,
    focus: of("a, summary, .scroll, pre").every(one => { one.focus(); return page.activeElement === one }),
  })
})</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything in it."""
    from PIL import Image

    truth, found = random_scene(4, 6, 2, 12)
    for at, category in enumerate(truth["categories"]):
        category["name"] = f"a class with a name that is rather long, and_has_no_spaces_where_it_counts_{at}"
    by_id = dict(zip((image["id"] for image in truth["images"]), without_ties(found), strict=True))
    some = {id_: one._make(column[::2] for column in one) for id_, one in by_id.items()}
    runs = [
        *(record(f"a_baseline_with_a_long_name_{n}", seed=n, log=entries(a=1.0, b=2.0)) for n in (1, 2)),
        *(record(f"distilled{n}", seed=n, kind="distill", log=entries(a=1.0, b=2.0)) for n in (1, 2)),
    ]
    matches = {run.name: match(Truth.of(truth), by_id if run.kind == "distill" else some) for run in runs}
    closeup = closeup_of(runs, matches | {"teacher": matches["distilled1"]})
    uri = data_uri(Image.fromarray(np.full((30, 40, 3), 99, np.uint8)))
    rows = [("image.png", [Panel(title, "3 cats", uri) for title in ("ground truth", "teacher", "baseline", "qskd")])]
    pictures = Pictures(rows, [PictureSet("Where qskd gains most", "so", rows)], [("cat", "#112233")], ["note"])
    return write_report(tmp_path_factory.mktemp("page"), compare_runs(runs, closeup=closeup), runs, pictures).html


def browse(folder, address, *options):
    """What chromium made of a page, and what it said."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    own = [f"--user-data-dir={folder / 'chromium'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    done = subprocess.run(
        ["chromium", *fixed, *own, *options, "--dump-dom", address.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probed(folder, page, width, *options):
    """Facts about the page in a frame of so many pixels; its ban on scripts holds in the frame too."""
    text = page.read_text("utf-8")
    probe = PROBE.replace("WIDTH", str(width)).replace("PAGE", html.escape(text))
    (folder / "probe.html").write_text(f"<!doctype html><meta name=color-scheme content='light dark'><body>{probe}")
    dom, _ = browse(folder, folder / "probe.html", *options)
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))


def test_it_opens_without_a_word_on_the_console(page, tmp_path):
    dom, said = browse(tmp_path, page)
    assert said == []
    assert "Kinds of mistakes" in dom


@pytest.mark.parametrize("width", [390, 1200])
def test_all_figures_are_seen_and_the_page_never_scrolls_sideways(page, tmp_path, width):
    found = probed(tmp_path, page, width)
    assert found["width"] == width
    assert found["scroll"] <= width
    assert (found["images"], found["broken"], found["hidden"]) == (8, 0, 0)
    assert found["charts"] >= 2 + 4 + 3  # all classes, by class, training
    assert found["bars"] > 3
    assert found["focus"]
    assert found["ground"] == "rgb(255, 255, 255)"


def test_it_is_dark_where_that_is_asked(page, tmp_path):
    found = probed(tmp_path, page, 390, "--blink-settings=preferredColorScheme=0")
    assert found["ground"] == "rgb(20, 23, 26)"
