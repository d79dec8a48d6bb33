"""Images of many kinds: turned, deep, transparent, of several pages, resized and cropped."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets import check_images, load_dataset
from diffcert_ray.datasets.decoding import decode_image, decode_pixels
from diffcert_ray.datasets.pixels import UndecodableError
from diffcert_ray.datasets.resizing import Resizing
from diffcert_ray.errors import ConfigError, DatasetError, PixelsError
from tests.brought.inputs import encoded, grey, image_folder, of_folder, of_parquet, parquet

RANDOM = np.random.default_rng(17)
COLOURS = RANDOM.integers(0, 256, (6, 9, 3), np.uint8)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_16(levels: np.ndarray, kind: int, *, rows: int | None = None, interlaced=0) -> bytes:
    """A PNG of 16 bits written by hand, every row by the row filter given, or by all in turn."""
    height, width, channels = levels.shape
    step = channels * 2
    lines = np.ascontiguousarray(levels, ">u2").view(np.uint8).reshape(height, -1).astype(int)
    out = b""
    for y, line in enumerate(lines):
        by = y % 5 if rows is None else rows
        above = lines[y - 1] if y else np.zeros_like(line)
        left, corner = (np.concatenate([np.zeros(step, int), v[:-step]]) for v in (line, above))
        estimate = left + above - corner
        near = np.stack([left, above, corner])
        paeth = np.take_along_axis(near, np.abs(estimate - near).argmin(0)[None], 0)[0]
        guess = (0, left, above, (left + above) // 2, paeth)[by]
        out += bytes([by]) + ((line - guess) % 256).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(out)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_its_exif_orientation_says(orientation, kind):
    image = Image.fromarray(COLOURS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue()))))
    assert (expected.shape != COLOURS.shape) == (orientation > 4)
    assert np.array_equal(decode_image(file.getvalue(), 3), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_of_16_bits_is_turned_as_well(orientation):
    levels = RANDOM.integers(0, 2**16, (6, 9, 3)).astype(np.uint16)
    plain = png_16(levels, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = plain[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[33:]
    upright = np.rot90(levels, {3: 2, 6: -1}[orientation])
    expected = (upright / np.float32(65535)).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(decode_pixels(tagged, 3), expected)


def test_damaged_exif_data_say_nothing():
    data = encoded(COLOURS, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(decode_image(data, 3), COLOURS.transpose(2, 0, 1))


# --- depth


def test_16_bits_of_grey_are_read_in_full_depth(tmp_path):
    levels = RANDOM.integers(0, 2**16, (5, 4)).astype(np.uint16)
    for data in (encoded(levels), encoded(levels, "TIFF"), encoded(levels, "PPM")):
        found = decode_pixels(data, 1)
        assert np.array_equal(found, (levels / np.float32(65535))[None].astype(np.float32))
        assert np.array_equal(decode_pixels(data, 3), np.repeat(found, 3, axis=0))
    parquet(tmp_path / "all.parquet", [0], images=[encoded(levels)])
    data = of_parquet(tmp_path, image_shape=[1, 5, 4])
    assert np.array_equal(data.image(0), found)
    assert check_images(data, data.ids).off_grid[0] < 1e-4  # what rounding costs is known


@pytest.mark.parametrize("rows", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bits_of_colour_are_read_in_full_depth(rows, kind, channels):
    levels = RANDOM.integers(0, 2**16, (7, 5, channels)).astype(np.uint16)
    if channels in (2, 4):
        levels[..., -1] = 65535
    data = png_16(levels, kind, rows=rows)
    theirs = np.asarray(Image.open(io.BytesIO(data)))  # cut to 8 bits
    colours = levels[..., : 3 if channels > 2 else 1]
    assert np.array_equal(theirs.reshape(7, 5, -1)[..., : colours.shape[2]], colours >> 8)
    wanted = 3 if channels > 2 else 1
    expected = (colours / np.float32(65535)).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(decode_pixels(data, wanted), expected)


def test_16_bits_of_a_ppm_and_12_bits_are_read_by_their_largest_level():
    levels = RANDOM.integers(0, 4096, (3, 4, 3)).astype(np.uint16)
    data = b"P6\n# by a camera\n4 3\n4095\n" + levels.astype(">u2").tobytes()
    expected = (levels / np.float32(4095)).astype(np.float32).transpose(2, 0, 1)
    assert np.array_equal(decode_pixels(data, 3), expected)
    text = "P3\n4 3\n# by hand\n4095\n" + "\n".join(map(str, levels.ravel())) + "\n"
    assert np.array_equal(decode_pixels(text.encode(), 3), expected)
    for cut in (data[:-1], text.encode()[:-6]):
        with pytest.raises(UndecodableError, match="its end is missing"):
            decode_pixels(cut, 3)
    with pytest.raises(UndecodableError, match="larger than its header says"):
        decode_pixels(b"P2 1 1 4095 4096\n", 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d[:-12], "its end is missing"),
        (lambda d: d[:-20], "a damaged chunk"),
        (lambda d: d[:60] + b"\xff" + d[61:], "a damaged chunk"),
        (lambda d: d.replace(b"IEND", b"tRNS"), "a damaged chunk"),
    ],
)
def test_a_damaged_deep_image_is_undecodable(change, match):
    levels = RANDOM.integers(0, 2**16, (7, 5, 3)).astype(np.uint16)
    with pytest.raises(UndecodableError, match=match):
        decode_pixels(change(png_16(levels, 2)), 3)
    with pytest.raises(UndecodableError, match="interlaced"):
        decode_pixels(png_16(levels, 2, interlaced=1), 3)


# --- transparency


def transparent(mode: str) -> tuple[bytes, np.ndarray]:
    """An image with an alpha of all sizes, and [H, W, C + 1] of it."""
    values = RANDOM.integers(0, 256, (4, 5, {"RGBA": 4, "LA": 2}[mode]), np.uint8)
    values[0, 0, -1], values[0, 1, -1] = 0, 255
    return encoded(values), values


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(
    ("background", "behind"), [("white", 1.0), ("black", 0.0), ([0.5], 0.5)], ids=str
)
def test_transparent_pixels_show_the_background_that_was_asked_for(mode, background, behind):
    data, values = transparent(mode)
    channels = 3 if mode == "RGBA" else 1
    with pytest.raises(UndecodableError, match=r"set dataset\.background"):
        decode_image(data, channels)
    found = decode_image(data, channels, background)
    alpha = values[..., -1:] / 255
    expected = values[..., :-1] * alpha + 255 * behind * (1 - alpha)
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 0.51
    assert found[:, 0, 1].tolist() == values[0, 1, :-1].tolist()


def test_an_alpha_channel_that_hides_nothing_needs_no_background():
    opaque = np.concatenate([COLOURS, np.full((6, 9, 1), 255, np.uint8)], axis=2)
    assert np.array_equal(decode_image(encoded(opaque), 3), COLOURS.transpose(2, 0, 1))
    deep = np.full((3, 3, 4), 65535, np.uint16)
    deep[0, 0] = (0, 0, 0, 32768)
    with pytest.raises(UndecodableError, match="transparent pixels"):
        decode_pixels(png_16(deep, 6), 3)
    assert abs(decode_pixels(png_16(deep, 6), 3, "white")[0, 0, 0] - 0.5) < 1e-4


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_of_a_palette_or_of_plain_images_is_seen(mode):
    image = Image.fromarray(np.array([[0, 200], [0, 90]], np.uint8), "L").convert(mode)
    colour = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=colour)
    with pytest.raises(UndecodableError, match="transparent pixels"):
        decode_image(file.getvalue(), 3)
    found = decode_image(file.getvalue(), 3, "white")
    assert found[:, 0, 0].tolist() == [255] * 3
    assert found[:, 0, 1].tolist() == [200] * 3


def test_the_background_is_part_of_the_fingerprint(tmp_path):
    (tmp_path / "ant").mkdir()
    data, _ = transparent("RGBA")
    (tmp_path / "ant" / "0.png").write_bytes(data)
    black, white = (of_folder(tmp_path, background=b) for b in ("black", "white"))
    assert black.image_sha(0) != white.image_sha(0)
    assert len({black.fingerprint, white.fingerprint, of_folder(tmp_path).fingerprint}) == 3
    assert of_folder(tmp_path, background=(1.0,)).fingerprint == (
        of_folder(tmp_path, background=[1.0]).fingerprint
    )
    with pytest.raises(DatasetError, match="background is 'green'"):
        of_folder(tmp_path, background="green")
    with pytest.raises(DatasetError, match="background means nothing to dataset 'digits'"):
        load_dataset({"name": "digits", "background": "white"})
    with pytest.raises(ConfigError, match=r"dataset\.background"):
        load_config({"dataset": {"background": "green"}})


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
def test_an_image_of_several_pages_is_refused_and_not_its_first(kind):
    file = io.BytesIO()
    pages = [Image.fromarray(grey(k)) for k in (10, 20, 30)]
    pages[0].save(file, kind, save_all=True, append_images=pages[1:])
    with pytest.raises(UndecodableError, match="3 frames or pages"):
        decode_image(file.getvalue(), 3)


def test_print_colours_are_refused():
    file = io.BytesIO()
    Image.fromarray(COLOURS).convert("CMYK").save(file, "JPEG")
    with pytest.raises(UndecodableError, match="mode CMYK"):
        decode_image(file.getvalue(), 3)


def test_colours_of_16_bits_in_tiff_are_refused_and_not_cut():
    data = tiff_16(RANDOM.integers(0, 2**16, (3, 4, 3)).astype("<u2"))
    with pytest.raises(UndecodableError, match="16 bits a channel in a TIFF file"):
        decode_image(data, 3)


def tiff_16(levels: np.ndarray) -> bytes:
    """An uncompressed TIFF of 16-bit colours, written by hand: Pillow writes none."""
    height, width, _ = levels.shape
    pixels = levels.tobytes()
    at = 8 + 2 + 9 * 12 + 4
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, at), (259, 3, 1, 1),
               (262, 3, 1, 2), (273, 4, 1, at + 6), (277, 3, 1, 3), (278, 3, 1, height),
               (279, 4, 1, len(pixels))]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    start = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return start + directory + b"\0" * 4 + struct.pack("<HHH", 16, 16, 16) + pixels


# --- resized and cropped

BY = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
    "lanczos": v2.InterpolationMode.LANCZOS,
    "area": v2.InterpolationMode.BOX,
}


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (9, 14)])
def test_sizes_and_pixels_are_those_of_torchvision_on_pillow_images(by, height, width):
    image = RANDOM.integers(0, 256, (height, width, 3), np.uint8)
    theirs = v2.Compose([v2.Resize(16, BY[by]), v2.CenterCrop(13), v2.PILToTensor()])
    expected = theirs(Image.fromarray(image)).numpy()
    found = Resizing(16, (13, 13), by)(image.transpose(2, 0, 1).astype(np.float32) / 255)
    assert np.array_equal(np.rint(found * 255).astype(np.uint8), expected)
    assert found.dtype == np.float32


def test_images_of_any_size_become_those_that_the_network_takes(tmp_path):
    (tmp_path / "ant").mkdir()
    for k, shape in enumerate([(20, 30, 3), (50, 12, 3), (8, 8, 3)]):
        image = RANDOM.integers(0, 256, shape, np.uint8)
        (tmp_path / "ant" / f"{k}.png").write_bytes(encoded(image))
    data = of_folder(tmp_path, resize=10, crop=[8, 10])
    assert data.image_shape == (3, 8, 10)
    assert check_images(data, data.ids).corrupt == {}
    assert [data.image(i).shape for i in range(3)] == [(3, 8, 10)] * 3
    smaller = of_folder(tmp_path, crop=9)
    assert "it is 8 x 8, smaller than dataset.crop" in check_images(smaller, range(3)).corrupt[2]


def test_what_is_done_to_images_is_recorded_in_the_fingerprint(tmp_path):
    image_folder(tmp_path, "ant", "bee")
    asked = [
        {},
        {"resize": 3},
        {"resize": [3, 3]},
        {"resize": 3, "interpolation": "area"},
        {"crop": 3},
        {"resize": 3, "crop": 2},
    ]
    data = [of_folder(tmp_path, **keys) for keys in asked]
    assert len({d.fingerprint for d in data}) == len(asked)
    same = of_folder(tmp_path, resize=3, interpolation="bicubic")
    assert same.fingerprint == data[1].fingerprint
    table = {"name": "folder", "path": str(tmp_path), "split": "all", "resize": 3}
    config = load_config({"dataset": table})
    assert load_dataset(config.dataset).fingerprint == data[1].fingerprint


def test_every_dataset_can_be_resized_also_in_memory_and_in_full_depth():
    plain = load_dataset({"name": "digits", "first": 3})
    data = load_dataset({"name": "digits", "first": 3, "resize": 32, "interpolation": "bilinear"})
    assert data.image_shape == (1, 32, 32)
    x = torch.tensor(plain.image(int(plain.ids[1])))[None]
    expected = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert np.abs(data.image(int(data.ids[1])) - expected[0].numpy()).max() < 1e-5
    assert len(check_images(data, data.ids).shas) == 3  # the files' fingerprint knows no pixels


def test_parquet_of_encoded_images_of_many_sizes_is_resized(tmp_path):
    images = [encoded(grey(50, side)[..., 0]) for side in (4, 9)]
    parquet(tmp_path / "all.parquet", [0, 1], images=images)
    data = of_parquet(tmp_path, image_shape=[1, 6, 6], resize=6)
    assert [data.image(k).shape for k in (0, 1)] == [(1, 6, 6)] * 2
    assert np.allclose(data.image(1), 50 / 255)


def test_a_wrong_scale_is_not_hidden_by_resizing(tmp_path):
    rows = [[[[0.0, 200.0], [30.0, 255.0]]]]
    parquet(tmp_path / "all.parquet", [0], images=rows)
    data = of_parquet(tmp_path, resize=4)
    with pytest.raises(PixelsError, match="from 0 to 255"):
        check_images(data, data.ids)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"resize": 0}, r"dataset\.resize is 0"),
        ({"resize": 10**9}, "larger than any image"),
        ({"crop": [4]}, r"dataset\.crop is \[4\]"),
        ({"interpolation": "area"}, r"without dataset\.resize"),
        ({"resize": 4, "interpolation": "nearest"}, "'nearest' is not one of bilinear"),
        ({"resize": True}, r"dataset\.resize is True"),
    ],
)
def test_sizes_that_are_none_are_refused(keys, match):
    with pytest.raises(DatasetError, match=match):
        load_dataset({"name": "digits"} | keys)
