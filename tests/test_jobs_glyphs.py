"""The job that renders glyphs: its choice of syllables, its images, and a file that is read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from diffcert_ray.datasets import load_dataset

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture(autouse=True)
def _jobs(monkeypatch):
    monkeypatch.syspath_prepend(str(JOBS))


def cross() -> Image.Image:
    """Ink of 120 x 80: two strokes of 12."""
    ink = Image.new("L", (120, 80))
    pen = ImageDraw.Draw(ink)
    pen.rectangle((0, 34, 119, 45), fill=255)
    pen.rectangle((54, 0, 65, 79), fill=255)
    return ink


def middle(image: np.ndarray) -> np.ndarray:
    """Where the ink's weight is, (x, y) from the middle of the image."""
    weights = image / image.sum()
    places = np.arange(16) - 7.5
    return np.array([weights.sum(axis=0) @ places, weights.sum(axis=1) @ places])


def test_syllables_are_spread_evenly_over_the_standard():
    from glyph_rendering import common_syllables

    whole = common_syllables(2350)
    assert (len(set(whole)), whole[0], whole[1], whole[-1]) == (2350, "가", "각", "힝")
    assert list(whole) == sorted(whole)
    thousand = common_syllables(1000)
    assert thousand == tuple(whole[2350 * i // 1000] for i in range(1000))
    assert thousand == load_dataset("glyphs").class_names
    for count in (0, 2351):
        with pytest.raises(ValueError, match="take 1 to 2350"):
            common_syllables(count)


def test_plain_ink_is_centred_fills_the_image_and_reaches_full_black():
    from glyph_rendering import image_of

    image = image_of(cross())
    assert (image.dtype, image.shape, image.max(), image.min()) == (np.uint8, (16, 16), 255, 0)
    assert np.abs(middle(image)).max() < 0.05
    assert (image.max(axis=0) > 100).all()  # as wide as the image
    rows = np.flatnonzero(image.max(axis=1) > 100)
    assert rows[0] == 3  # 15.5 * 80 / 120 high
    assert rows[-1] == 12


def test_a_shape_moves_scales_and_thickens_as_it_says():
    from glyph_rendering import Shape, image_of

    plain = image_of(cross()).astype(float)
    smaller = Shape(size=10.0)
    there = middle(image_of(cross(), Shape(size=10.0, right=1.5, down=-2.0)))
    assert there == pytest.approx([1.5, -2.0], abs=0.05)
    small = image_of(cross(), smaller)
    assert (small.max(axis=0) > 100).sum() == 10
    high = image_of(cross(), Shape(wider=0.5))
    assert (high.max(axis=0) > 60).sum() < 13 < (high.max(axis=1) > 60).sum()
    thick = image_of(cross(), Shape(thicker=0.25)).sum() / plain.sum()
    thin = image_of(cross(), Shape(thicker=-0.2)).sum() / plain.sum()
    # Strokes are 1.55 pixels wide: 0.25 on both sides makes 2.05.
    assert thick == pytest.approx(2.05 / 1.55, rel=0.1)
    assert thin < 0.95
    for shape in (Shape(turn=20), Shape(slant=20)):
        upper = image_of(cross(), shape)[:6].astype(float)
        assert abs(upper[:, :8].sum() / upper[:, 8:].sum() - 1) > 0.3


def test_thin_strokes_do_not_vanish_and_holes_do_not_close():
    from glyph_rendering import Shape, image_of

    hair = Image.new("L", (120, 120))
    ImageDraw.Draw(hair).line((0, 60, 119, 60), fill=255, width=2)
    ImageDraw.Draw(hair).line((60, 0, 60, 119), fill=255, width=2)
    assert np.array_equal(image_of(hair, Shape(thicker=-0.2)), image_of(hair))
    block = Image.new("L", (120, 120), 255)
    ImageDraw.Draw(block).rectangle((50, 50, 69, 69), fill=0)
    assert np.array_equal(image_of(block, Shape(thicker=0.25)), image_of(block))


def test_random_shapes_are_mild_and_all_different():
    from glyph_rendering import varied

    shapes = [varied(np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(shapes)) == 200
    assert all(14 <= s.size <= 16 and abs(s.right) <= 0.5 and abs(s.turn) < 8 for s in shapes)


def test_a_font_without_hangul_is_found_out():
    import matplotlib
    from glyph_rendering import missing

    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    face = ImageFont.truetype(path, 40, layout_engine=ImageFont.Layout.BASIC)
    assert missing(face, "가A") == ["가"]


def test_no_font_at_all_is_said_with_the_remedy(tmp_path):
    from make_glyphs import main

    with pytest.raises(SystemExit, match=r"install packages that glyph_fonts\.toml names"):
        main([str(tmp_path / "out"), "--fonts", str(tmp_path)])
    assert not (tmp_path / "out").exists()


def latin_fonts(folder: Path) -> Path:
    """A table of two families that are on every machine with matplotlib, which has no Hangul."""
    table = folder / "fonts.toml"
    table.write_text(
        '[dejavu-sans]\npart = "train"\nshare = 9\npackage = "p"\nface = "DejaVu Sans"\n'
        'files = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "Absent.ttf"]\n'
        '[dejavu-serif]\npart = "train"\npackage = "p"\nface = "DejaVu Serif"\n'
        'files = ["DejaVuSerif.ttf"]\n'
        '[dejavu-mono]\npart = "test"\npackage = "p"\nface = "DejaVu Sans Mono"\n'
        'files = ["DejaVuSansMono.ttf"]\n'
    )
    return table


def test_images_are_by_the_faces_of_their_part_in_their_shares(tmp_path, capsys):
    import matplotlib
    from make_glyphs import find_families, plain_images, varied_images

    where, table = [Path(matplotlib.get_data_path())], latin_fonts(tmp_path)
    families = find_families("train", where, table)
    assert "Absent.ttf" in capsys.readouterr().out
    assert [(f.name, len(f.faces)) for f in families] == [("dejavu-sans", 2), ("dejavu-serif", 1)]
    made = varied_images(families, ("A", "B", "C"), 100, seed=5)
    assert made.labels.tolist() == [0] * 100 + [1] * 100 + [2] * 100
    # A tenth is expected of the serif (one of three faces): 30, with a standard deviation of 5.2.
    assert abs(int((made.faces == 2).sum()) - 30) < 22
    again = varied_images(families, ("A", "B", "C"), 100, seed=5)
    assert np.array_equal(made.images, again.images)
    assert not np.array_equal(made.images, varied_images(families, ("A", "B", "C"), 100, 6).images)
    (mono,) = find_families("test", where, table)
    assert plain_images([mono], ("A", "B")).images.shape == (2, 16, 16)


def installed() -> bool:
    return any(Path("/usr/share/fonts").rglob("NotoSerifCJK-Bold.ttc"))


@pytest.mark.skipif(not installed(), reason="no font of the table is installed: fonts-noto-cjk")
def test_the_job_writes_a_training_part_that_is_read(tmp_path):
    from make_glyphs import main

    assert main([str(tmp_path), "--per-class", "1", "--sheet", str(tmp_path / "sheet.png")]) == 0
    train = load_dataset({"name": "glyphs", "split": "train", "path": str(tmp_path)})
    assert sorted(train.labels) == list(range(1000))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (18 * 3, 16 * 18 * 3)  # 16 classes, an image each


def test_what_the_job_writes_is_what_the_reader_takes(tmp_path):
    import matplotlib
    from glyph_rendering import common_syllables
    from make_glyphs import find_families, sheet, varied_images, write

    table = latin_fonts(tmp_path)
    families = find_families("train", [Path(matplotlib.get_data_path())], table)
    made = varied_images(families, tuple("ABC"), 4, seed=0).shuffled("any")
    write(tmp_path / "glyphs-train.npz", made, families, common_syllables(1000))
    train = load_dataset({"name": "glyphs", "split": "train", "path": str(tmp_path)})
    assert sorted(train.labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert train.labels.tolist() == made.labels.tolist() != sorted(train.labels)
    assert np.array_equal(np.rint(train.image(3)[0] * 255), made.images[3])
    with np.load(tmp_path / "glyphs-train.npz", allow_pickle=False) as stored:
        assert stored["face_families"].tolist() == ["dejavu-sans", "dejavu-sans", "dejavu-serif"]
    assert sheet(made).size == (4 * 18 * 3, 16 * 18 * 3)
