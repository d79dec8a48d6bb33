"""Make dataset "glyphs": 1,000 Korean syllables as images of 16 x 16, from installed fonts.

    python jobs/make_glyphs.py FOLDER [--part train] [--per-class 100] [--fonts /usr/share/fonts]

Writes FOLDER/glyphs-train.npz, which `dataset.path` = FOLDER reads as split "train". The test part
(`--part test`) ships in the package. Which fonts make which part is in jobs/glyph_fonts.toml, with
their Debian packages: whole families are only in one part. Families that are not found are left
out, and named; --sheet FILE.png shows some images of some classes.

A training image is a face of a family drawn at random (by the families' shares) in a shape drawn at
random (size, place, turn, slant, width, thickness of strokes); a test image is the plain one.
Renderings may differ by single grey levels between versions of FreeType: what identifies a training
part is its fingerprint.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tomllib
from pathlib import Path

import numpy as np
from glyph_rendering import DRAWN, SIDE, common_syllables, draw, image_of, missing, varied
from numpy.typing import NDArray
from PIL import Image, ImageFont

from diffcert_ray.datasets.selection import by_hash

CLASSES = 1000
FACES = 16  # in a collection, at most
FONTS = Path(__file__).with_name("glyph_fonts.toml")


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of fonts that was found: its name, part and share, and its faces."""

    name: str
    part: str
    share: float
    faces: tuple[ImageFont.FreeTypeFont, ...]


def find_families(part: str, folders: list[Path], table: Path = FONTS) -> list[Family]:
    """The families of a part with those of their files that lie below the folders."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.[to]t[fc]")):
            found.setdefault(path.name, path)
    families = []
    for name, said in tomllib.loads(table.read_text("utf-8")).items():
        if said["part"] != part:
            continue
        absent = [file for file in said["files"] if file not in found]
        if absent:
            print(f"not found, left out: {', '.join(absent)} (package {said['package']})")
        faces = [
            face
            for file in said["files"]
            if file in found
            for face in faces_of(found[file], said["face"])
        ]
        if faces:
            families.append(Family(name, part, said.get("share", 1), tuple(faces)))
    if not families:
        raise SystemExit(
            f"no font of part {part!r} below {', '.join(map(str, folders))}: install "
            f"packages that {table.name} names, or give --fonts FOLDER"
        )
    return families


def faces_of(path: Path, name: str) -> list[ImageFont.FreeTypeFont]:
    """The face of a font file; of a collection those of that name, or the first."""
    faces = []
    for index in range(FACES if path.suffix == ".ttc" else 1):
        try:
            faces.append(
                ImageFont.truetype(path, DRAWN, index=index, layout_engine=ImageFont.Layout.BASIC)
            )
        except OSError:
            break
    return [face for face in faces if face.getname()[0] == name] or faces[:1]


def face_name(face: ImageFont.FreeTypeFont) -> str:
    """Such as "Noto Sans CJK KR Bold"."""
    return " ".join(map(str, face.getname()))


@dataclasses.dataclass(frozen=True)
class Images:
    """Images uint8 [N, 16, 16], their classes [N] and the number of their face [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int16]
    faces: NDArray[np.uint8]

    def shuffled(self, salt: str) -> Images:
        """In an order that is none, so that the first N are a fair part."""
        order = by_hash(salt, np.arange(len(self.labels), dtype=np.int64))
        return Images(self.images[order], self.labels[order], self.faces[order])


def plain_images(families: list[Family], syllables: tuple[str, ...]) -> Images:
    """One plain image of every syllable by every face."""
    faces = [face for family in families for face in family.faces]
    images = [image_of(draw(face, syllable)) for face in faces for syllable in syllables]
    labels = np.tile(np.arange(len(syllables), dtype=np.int16), len(faces))
    numbers = np.repeat(np.arange(len(faces), dtype=np.uint8), len(syllables))
    return Images(np.stack(images), labels, numbers)


def varied_images(
    families: list[Family], syllables: tuple[str, ...], per_class: int, seed: int
) -> Images:
    """So many images of every syllable, each by a face and in a shape drawn at random."""
    faces = [face for family in families for face in family.faces]
    chances = np.array([f.share / len(f.faces) for f in families for _ in f.faces])
    chances /= chances.sum()
    count = len(syllables) * per_class
    images = np.empty((count, SIDE, SIDE), np.uint8)
    numbers = np.empty(count, np.uint8)
    for label, syllable in enumerate(syllables):
        random = np.random.default_rng([seed, label])
        inks = {}
        for row in range(label * per_class, (label + 1) * per_class):
            number = numbers[row] = random.choice(len(faces), p=chances)
            if number not in inks:
                inks[number] = draw(faces[number], syllable)
            images[row] = image_of(inks[number], varied(random))
        if (label + 1) % 100 == 0:
            print(f"{label + 1} of {len(syllables)} syllables", flush=True)
    labels = np.repeat(np.arange(len(syllables), dtype=np.int16), per_class)
    return Images(images, labels, numbers)


def check_faces(families: list[Family], syllables: tuple[str, ...]) -> None:
    """Refuse a font without some of the syllables."""
    for face in (face for family in families for face in family.faces):
        if lacking := missing(face, syllables):
            raise SystemExit(
                f"{face_name(face)} has no {' '.join(lacking)}: remove it from the table"
            )


def sheet(made: Images, classes: int = 16, columns: int = 20) -> Image.Image:
    """Images of some classes, a row each, enlarged; ink is black."""
    rows = []
    for label in np.linspace(0, made.labels.max(), classes).astype(int):
        mine = made.images[made.labels == label][:columns]
        rows.append(np.hstack([np.pad(image, 1) for image in mine]))
    width = max(row.shape[1] for row in rows)
    page = 255 - np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])
    height, width = page.shape
    return Image.fromarray(page).resize((width * 3, height * 3), Image.Resampling.NEAREST)


def write(path: Path, made: Images, families: list[Family], syllables: tuple[str, ...]) -> None:
    """The file that the reader of dataset "glyphs" takes."""
    named = [(face_name(face), family.name) for family in families for face in family.faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        images=made.images,
        labels=made.labels,
        faces=made.faces,
        syllables=np.array(syllables),
        face_names=np.array([face for face, _ in named]),
        face_families=np.array([family for _, family in named]),
    )
    print(
        f"{path}: {len(made.labels)} images by {len(named)} faces of {len(families)} families, "
        f"{path.stat().st_size / 2**20:.1f} MiB"
    )


def main(arguments: list[str]) -> int:
    """Find the fonts, render, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the file is written")
    parser.add_argument("--part", choices=("train", "test"), default="train")
    parser.add_argument("--per-class", type=int, default=100, help="training images of a class")
    parser.add_argument("--seed", type=int, default=0, help="of the random shapes")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[Path("/usr/share/fonts")])
    parser.add_argument("--sheet", type=Path, help="also write a picture of some images")
    options = parser.parse_args(arguments)
    syllables = common_syllables(CLASSES)
    families = find_families(options.part, options.fonts)
    check_faces(families, syllables)
    if options.part == "test":
        made = plain_images(families, syllables)
    else:
        made = varied_images(families, syllables, options.per_class, options.seed)
    made = made.shuffled(f"glyphs {options.part}")
    write(options.folder / f"glyphs-{options.part}.npz", made, families, syllables)
    if options.sheet:
        sheet(made).save(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
