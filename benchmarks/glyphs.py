"""Capital letters in the fonts of Debian, as an image folder: a small data set that everybody can make.

    python -m benchmarks.glyphs glyphs/          # needs apt-get and dpkg; fetches about 60 MB

Font packages of `PACKAGES` are fetched and unpacked, not installed. One font of a package is drawn for training, up to
three for validation; every third package is for validation, so that no family is in both. 26 classes, 20 x 20 grey.

`resnet8` is the network of the study in docs/compare.md: `simam-inject compare benchmarks/glyphs.py:resnet8 ...`.
"""

from __future__ import annotations

import argparse
import string
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torchvision.models.resnet import BasicBlock

_NAMES = """
fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius fonts-adf-ikarius fonts-adf-irianis
fonts-adf-libris fonts-adf-mekanus fonts-adf-oldania fonts-adf-romande fonts-adf-solothurn fonts-adf-switzera
fonts-adf-tribun fonts-adf-universalis fonts-adf-verana fonts-agave fonts-allerta fonts-anonymous-pro fonts-arapey
fonts-atarismall fonts-b612 fonts-bebas-neue fonts-beteckna fonts-blankenburg fonts-breip fonts-cabin fonts-cabinsketch
fonts-cantarell fonts-century-catalogue fonts-clear-sans fonts-comfortaa fonts-comic-neue fonts-courier-prime
fonts-crosextra-caladea fonts-crosextra-carlito fonts-dancingscript fonts-dejavu-core fonts-dkg-handwriting fonts-dosis
fonts-dustin fonts-ecolier-court fonts-elstob fonts-engadget fonts-essays1743 fonts-eurofurence fonts-f500
fonts-fantasque-sans fonts-femkeklaver fonts-freefont-ttf fonts-georgewilliams fonts-gfs-artemisia fonts-gfs-didot
fonts-gfs-neohellenic fonts-go fonts-gotico-antiqua fonts-goudybookletter fonts-hack-ttf fonts-humor-sans
fonts-inconsolata fonts-isabella fonts-junction fonts-jura fonts-karla fonts-kaushanscript fonts-kristi fonts-lato
fonts-league-mono fonts-league-spartan fonts-leckerli-one fonts-liberation fonts-lindenhill fonts-linex
fonts-linuxlibertine fonts-lobster fonts-lobstertwo fonts-manrope fonts-millimetre fonts-monofur fonts-mononoki
fonts-national-park fonts-ocr-a fonts-ocr-b fonts-okolaks fonts-oldstandard fonts-open-sans fonts-opendin
fonts-opendyslexic fonts-play fonts-prociono fonts-quattrocento fonts-quicksand fonts-radisnoir fonts-roadgeek
fonts-roboto-slab fonts-rufscript fonts-sil-andika fonts-sil-charis fonts-sil-gentium-basic fonts-sora fonts-summersby
fonts-tiresias fonts-tomsontalks fonts-tuffy fonts-urw-base35 fonts-vollkorn fonts-yanone-kaffeesatz
"""
PACKAGES = _NAMES.split()
FONTS = {"train": 1, "val": 3}
SIDE = 20


def resnet8(num_classes: int = 26) -> nn.Sequential:
    return small_resnet(1, num_classes)


def small_resnet(depth: int, num_classes: int = 26, *, channels: int = 3, width: int = 8) -> nn.Sequential:
    """Three stages of `depth` basic blocks, the second and the third at half the size of the one before."""

    def block(inputs: int, made: int, stride: int) -> BasicBlock:
        skip = nn.Sequential(nn.Conv2d(inputs, made, 1, stride, bias=False), nn.BatchNorm2d(made))
        return BasicBlock(inputs, made, stride, skip if stride > 1 else None)

    def stage(inputs: int, made: int, stride: int) -> list[BasicBlock]:
        return [block(inputs, made, stride), *(block(made, made, 1) for _ in range(depth - 1))]

    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(*stage(width, width, 1), *stage(width, 2 * width, 2), *stage(2 * width, 4 * width, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes)),
    )


def fetch(packages: list[str], folder: Path) -> None:
    """Unpack each package into a folder of its own; one that is not to be had is named and left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        with tempfile.TemporaryDirectory() as download:
            done = subprocess.run(["apt-get", "download", package], cwd=download, capture_output=True, check=False)
            archive = next(Path(download).glob("*.deb"), None)
            if done.returncode or archive is None:
                print(f"{package}: not to be had here")
                continue
            subprocess.run(["dpkg", "-x", str(archive), str(folder / package)], check=True)


def draw(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """The letter as large as fits, in the middle."""
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (max(right - left, bottom - top) + 12,) * 2, 0)
    position = ((image.width - right - left) / 2, (image.height - bottom - top) / 2)
    ImageDraw.Draw(image).text(position, letter, fill=255, font=font)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_font(path: Path, name: str, folder: Path) -> bool:
    """Draw all letters of a font; False if it has no Latin capitals."""
    try:
        font = ImageFont.truetype(str(path), 48)
        images = {letter: draw(font, letter) for letter in string.ascii_uppercase}
    except (OSError, ValueError):
        return False
    if len({image.tobytes() for image in images.values()}) < 24:
        return False  # empty boxes, or small capitals that are all the same
    for letter, image in images.items():
        (folder / letter).mkdir(parents=True, exist_ok=True)
        image.save(folder / letter / f"{name}.png")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the letters of Debian's fonts as an image folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fonts", type=Path, help="keep the unpacked packages here, or take them from here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        fonts = options.fonts or Path(temporary)
        fetch([package for package in PACKAGES if not (fonts / package).is_dir()], fonts)
        counts = {"train": 0, "val": 0}
        for index, package in enumerate(PACKAGES):
            part = "val" if index % 3 == 2 else "train"
            files = sorted(file for file in (fonts / package).rglob("*") if file.suffix.lower() in (".ttf", ".otf"))
            drawn = 0
            for file in files:
                if drawn < FONTS[part] and draw_font(file, f"{package}-{drawn}", options.folder / part):
                    drawn += 1
            counts[part] += drawn
    print(", ".join(f"{part}: {count} fonts, {26 * count} images" for part, count in counts.items()))


if __name__ == "__main__":
    main()
