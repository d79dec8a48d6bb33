"""The report's page in a real browser: it opens, filters, sorts, and makes the votes' own noise."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diffcert_ray.datasets.pixel_grid import STEPS
from diffcert_ray.method.noise import NoiseSource
from diffcert_ray.report.files import report_page
from diffcert_ray.report.gallery import Pictures, make_gallery
from diffcert_ray.report.page import confusions, embedded_json
from diffcert_ray.report.published import published_rows
from diffcert_ray.report.series import series_of_log
from diffcert_ray.report.thumbnails import make_sprites
from tests.test_report import certificates, series

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")

WATCH = """<script>
window.problems = [];
window.onerror = (message) => { window.problems.push(String(message)); };
window.onunhandledrejection = (event) => { window.problems.push(String(event.reason)); };
console.error = console.warn = (...said) => { window.problems.push(said.join(" ")); };
</script>"""
TELL = """<script>
const cards = () => [...document.querySelectorAll(".card")].map((card) => +card.dataset.id);
function set(id, value) {
  const box = document.getElementById(id);
  if (box.type === "checkbox") box.checked = value; else box.value = value;
  box.dispatchEvent(new Event("input", { bubbles: true }));
}
function tell(found) {
  const said = document.createElement("pre");
  said.id = "told";
  said.textContent = JSON.stringify({ ...found, problems: window.problems });
  document.body.append(said);
}
SCRIPT
</script>"""


def ask(page: bytes, script: str, folder: Path, *options: str) -> dict:
    """Open the page, run a script in it that calls tell(), and return what it told."""
    text = page.decode().replace("<head>", f"<head>{WATCH}", 1)
    text = text.replace("</body>", TELL.replace("SCRIPT", script) + "</body>")
    (folder / "page.html").write_text(text)
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-dev-shm-usage",
         f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom",
         (folder / "page.html").as_uri()],
        capture_output=True, text=True, timeout=90, check=False,
        env=dict(os.environ, HOME=str(folder)),
    )  # fmt: skip
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told, done.stderr[-2000:]
    found = json.loads(told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found.pop("problems") == []
    return found


def picture(image_id: int, shape=(3, 4, 6)) -> np.ndarray:
    return np.random.default_rng(image_id).random(shape).astype(np.float32)


ROWS = certificates(
    [0.5, 0.0, 0.25, 0.75, 0.4], correct=[True, False, False, True, True],
    label=[1, 2, 1, 3, 1], predicted=[1, -1, 2, 3, 1], p_low=[0.9, 0.4, 0.7, 0.95, 0.8],
    nfe=[50, 40, 30, 20, 10],
)  # fmt: skip
PICTURES = Pictures(picture, frozenset(range(5)), "d", ("zero", "o<ne>", "two", "three"))


def small_page(**about) -> bytes:
    both = pd.concat([ROWS, ROWS.assign(sigma=0.5, radius=2 * ROWS["radius"])])
    log = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n7\t1\t1\t0.6\t1\t0:00:02\n"
    found = [series(both, "run </script>", dataset="d", seed=5, **about),
             series_of_log("noise_0.5.tsv", log)]  # fmt: skip
    return report_page(found, published_rows(["cifar10"]), PICTURES)


def test_the_page_needs_nothing_else_and_its_content_cannot_end_a_script():
    page = small_page(config="<b>", command="diffcert certify 'a b.toml'").decode()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", page)
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<script") == page.count("</script>")
    assert "<b>" not in page
    assert "o<ne>" not in page
    assert embedded_json({"a": "</script>"}) == '{"a":"\\u003c/script>"}'


@in_browser
def test_a_reader_filters_sorts_and_pages_without_errors(tmp_path):
    found = ask(
        small_page(),
        """
        const seen = { opened: cards(), blocks: document.getElementById("block").length };
        set("class", "1"); seen.ones = cards();
        set("result", "right"); seen.rightOnes = cards();
        set("radius", "0.45"); seen.largeOnes = cards();
        set("class", ""); set("result", ""); set("radius", "0");
        set("sort", "radius"); seen.byRadius = cards();
        set("descending", true); seen.byRadiusDown = cards();
        set("sort", "nfe"); seen.byNfeDown = cards();
        set("result", "abstained"); seen.abstained = cards();
        seen.text = document.querySelector(".card").textContent;
        set("result", ""); set("block", "1"); set("radius", "0.8"); seen.otherSigma = cards();
        set("block", "2"); seen.log = cards(); set("radius", "0"); seen.logAll = cards();
        const box = document.querySelector(".legend input"); box.click();
        seen.hidden = document.querySelector('g[data-line="0"]').style.display;
        tell(seen);
        """,
        tmp_path,
    )
    assert found["opened"] == [0, 1, 2, 3, 4]
    assert found["ones"] == [0, 2, 4]
    assert found["rightOnes"] == [0, 4]
    assert found["largeOnes"] == [0]
    assert found["byRadius"] == [1, 2, 4, 0, 3]
    assert found["byRadiusDown"] == [3, 0, 4, 2, 1]
    assert found["byNfeDown"] == [0, 1, 2, 3, 4]
    assert found["abstained"] == [1]
    assert "no class certified" in found["text"]
    assert "two" in found["text"]
    assert found["otherSigma"] == [0, 3, 4]
    assert (found["blocks"], found["log"], found["logAll"]) == (3, [], [7])
    assert found["hidden"] == "none"


@in_browser
def test_the_noisy_copy_is_the_votes_own(tmp_path):
    """The page's noise against the noise of the run; its picture against image plus noise."""
    found = ask(
        small_page(),
        """
        set("vote", "17");
        setTimeout(() => {
          const pixels = (canvas) =>
            [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
          const [clean, noisy] = document.querySelectorAll("#cards .card:nth-child(4) canvas");
          const data = JSON.parse(document.getElementById("data").textContent);
          tell({
            noise: [...window.diffcert.steps(data.blocks[0].key, 3, 17, 72, 0.25)].slice(0, 72),
            far: [...window.diffcert.steps(data.blocks[1].key, 4294967295, 4294967295, 9, 0.5)],
            clean: pixels(clean), noisy: pixels(noisy),
          });
        }, 500);
        """,
        tmp_path,
        "--virtual-time-budget=3000",  # pictures are decoded after the page has opened
    )
    ids, stream, vote = np.array([3]), np.array([1]), np.array([17])
    noise = NoiseSource(5, 0.25, 72).steps(ids, stream, vote).numpy()[0]
    assert found["noise"] == noise.tolist()
    last = np.array([2**32 - 1])
    far = NoiseSource(5, 0.5, 9).steps(last, stream, last).numpy()[0]
    assert found["far"][:9] == far.tolist()
    shown = [np.reshape(found[name], (4, 6, 4))[..., :3] for name in ("clean", "noisy")]
    image = picture(3).transpose(1, 2, 0)
    assert np.abs(shown[0] - 255 * image).max() <= 1
    noisy = np.clip(image + noise.reshape(3, 4, 6).transpose(1, 2, 0) / STEPS, 0, 1)
    assert np.abs(shown[1] - 255 * noisy).max() <= 2


@in_browser
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
def test_the_page_is_light_and_dark(tmp_path, scheme, dark):
    found = ask(
        small_page(),
        """
        const style = getComputedStyle(document.body);
        tell({ paper: style.backgroundColor, ink: style.color });
        """,
        tmp_path,
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    paper, ink = (sum(map(int, re.findall(r"\d+", found[k])[:3])) for k in ("paper", "ink"))
    assert (paper < 150, ink > 600) == (dark, dark)


@in_browser
@pytest.mark.parametrize("count", [100, 10_000])
def test_a_page_of_many_images_is_small_and_usable(tmp_path, count):
    """Under 15 MB, open in 3 s: measured 0.4 s, 10,000 images, with seven jobs a core beside."""
    rng = np.random.default_rng(0)
    rows = certificates(
        rng.random(count), nfe=rng.integers(1000, 9000, count), p_low=rng.random(count)
    )
    pictures = Pictures(partial(picture, shape=(1, 4, 4)), frozenset(range(count)), "d")
    page = report_page([series(rows, dataset="d", seed=0)], (), pictures)
    assert len(page) < 15 * 2**20
    script = """
        const opened = performance.now();
        set("sort", "radius"); set("descending", true);
        tell({ opened, sorted: performance.now() - opened, first: cards()[0], shown: cards().length,
               count: document.getElementById("count").textContent });
        """
    # No virtual time here: the milliseconds are real ones.
    found = ask(page, script, tmp_path)
    assert found["count"] == f"{count:,} of {count:,} images"
    assert rows["radius"][found["first"]] > rows["radius"].max() - 1e-4
    assert found["shown"] <= 100  # the page draws what is looked at
    assert found["opened"] < 3000  # ms
    assert found["sorted"] < 1000


def test_pictures_are_exact_where_they_fit_and_smaller_where_not():
    sprites = make_sprites(range(300), picture)
    assert len(sprites.data) == 2
    kind, _, data = sprites.data[1].partition(",")
    assert kind == "data:image/png;base64"
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    y, x = divmod(290 - 256, 16)
    tile = sheet[4 * y : 4 * y + 4, 6 * x : 6 * x + 6] / 255
    assert np.abs(tile - picture(290).transpose(1, 2, 0)).max() <= 0.5 / 255 + 1e-6
    large = partial(picture, shape=(3, 32, 32))
    budget = 60_000
    small = make_sprites(range(200), large, budget)
    assert sum(len(d) for d in small.data) <= budget * 4 / 3 + 100
    assert "WebP" in small.encoding


def test_large_pictures_become_block_means():
    sprites = make_sprites([0], lambda i: np.full((1, 128, 256), 0.5, np.float32))
    assert (sprites.height, sprites.width, sprites.factor) == (32, 64, 4)


def test_a_dataset_that_is_not_at_hand_leaves_the_rows_without_pictures():
    gallery = make_gallery([series(ROWS, dataset="d")], Pictures(missing="No pictures: gone."))
    assert gallery.note == "No pictures: gone."
    assert gallery.data["blocks"][0]["id"] == [0, 1, 2, 3, 4]
    assert "pictures" not in gallery.data
    other = make_gallery([series(ROWS, dataset="other")], PICTURES)
    assert "pictures" not in other.data


def test_the_galleys_radii_are_never_above_the_true_ones():
    below = 0.3  # the float lies below 0.3, but times 10,000 it is 3000
    rows = ROWS.assign(radius=[0.12345678, 0, 0.25, below, 0.99999999])
    block = make_gallery([series(rows)], Pictures()).data["blocks"][0]
    assert block["radius"] == [0.1234, 0.0, 0.25, 0.2999, 0.9999]


def test_confusions_count_certificates_by_label_and_class():
    (found,) = confusions(series(ROWS), ("a", "b", "c", "d"))
    assert found.counts == ((0, 0, 0, 0), (0, 2, 1, 0), (0, 0, 0, 0), (0, 0, 0, 1))
    assert found.most == 1
    many = ROWS.assign(label=[1, 2, 1, 300, 1])
    assert confusions(series(many), ()) == []
    assert confusions(series(ROWS[ROWS["correct"]]), ()) == []
