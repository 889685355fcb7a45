"""Photographs and maps laid over them: the letterbox undone to the pixel, and a golden picture."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simam_inject.errors import FileError
from simam_inject.pictures import draw_maps, photograph

GOLDEN = Path(__file__).parent / "golden.png"


def picture_file(path, width, height):
    """Black, with a white rectangle from (x, y) = (width / 4, height / 2) to (width / 2, 3 height / 4)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 : 3 * height // 4, width // 4 : width // 2] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (64, 64), (64, 33)])
def test_a_letterbox_at_full_size_is_undone_to_the_pixel(tmp_path, width, height):
    shot = photograph(picture_file(tmp_path / "a.png", width, height), (3, 64, 64), letterbox=True)
    assert shot.box[2:] == (height, width)
    assert torch.equal(shot.undo(shot.input[0, 0]), shot.pixels[0])
    top, left, inner_height, inner_width = shot.box
    border = torch.ones(64, 64, dtype=torch.bool)
    border[top : top + inner_height, left : left + inner_width] = False
    assert (shot.input[0, :, border] == 114 / 255).all()


def test_the_letterbox_is_that_of_ultralytics(tmp_path):
    augment = pytest.importorskip("ultralytics.data.augment")
    for width, height in ((64, 48), (50, 64), (200, 133), (97, 300)):
        file = picture_file(tmp_path / "a.png", width, height)
        shot = photograph(file, (3, 64, 64), letterbox=True)
        theirs = augment.LetterBox((64, 64), auto=False)(image=np.array(Image.open(file)))
        mask = (theirs == 114).all(2)
        rows, columns = np.where(~mask.all(1))[0], np.where(~mask.all(0))[0]
        top, left, inner_height, inner_width = shot.box
        assert (rows[0], columns[0]) == (top, left)
        assert (len(rows), len(columns)) == (inner_height, inner_width)


@pytest.mark.parametrize("letterbox", [True, False])
def test_a_coarse_map_lies_where_its_cells_are_in_the_photograph(tmp_path, letterbox):
    shot = photograph(picture_file(tmp_path / "a.png", 256, 128), (3, 64, 64), letterbox=letterbox)
    cells = torch.nn.functional.avg_pool2d(shot.input[:, :1], 4)[0, 0]  # what a network of stride 4 may have
    laid = shot.undo(cells)
    assert laid.shape == (128, 256)
    assert laid[80, 96] > 0.9  # the middle of the rectangle
    assert laid[40, 96] < 0.1
    assert laid[80, 32] < 0.1
    edges = (laid[80] > 0.5).nonzero().flatten()
    assert abs(edges[0].item() - 64) <= 2
    assert abs(edges[-1].item() - 127) <= 2


def test_normalization_and_grey_images(tmp_path):
    file = picture_file(tmp_path / "a.png", 32, 32)
    shot = photograph(file, (3, 16, 16), normalization=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    assert shot.input.min() == -2
    assert shot.input.max() == 2
    assert photograph(file, (1, 16, 16)).input.shape == (1, 1, 16, 16)


def test_a_photograph_on_its_side_is_turned(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert photograph(tmp_path / "a.jpg", (3, 16, 16)).pixels.shape == (3, 40, 20)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pixels_of_more_than_8_bits_are_not_cut_to_white(mode, tmp_path):
    Image.new(mode, (4, 4), 3000).save(tmp_path / "a.tiff")
    with pytest.raises(FileError, match="more than 8 bits"):
        photograph(tmp_path / "a.tiff", (1, 8, 8))


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_line_of_pixels_has_a_letterbox(size, tmp_path):
    shot = photograph(picture_file(tmp_path / "a.png", *size), (3, 64, 64), letterbox=True)
    assert min(shot.box[2:]) == 1
    assert shot.undo(torch.rand(8, 8)).shape == size[::-1]


def test_damaged_files_are_refused_in_one_way(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 4 4x 255 " + bytes(48))
    (tmp_path / "b.bmp").write_bytes(
        b"BM" + bytes(12) + (40).to_bytes(4, "little") + b"\xff\xff\x0f\x00" * 2 + bytes(30)
    )
    for name in ("a.ppm", "b.bmp"):  # a ValueError and a DecompressionBombError of Pillow
        with pytest.raises(FileError, match=f"{name} cannot be read as an image"):
            photograph(tmp_path / name, (3, 8, 8))


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("words")
    with pytest.raises(FileError, match=r"a\.png cannot be read as an image"):
        photograph(tmp_path / "a.png", (3, 16, 16))


def drawn(folder):
    pytest.importorskip("matplotlib")
    shot = photograph(picture_file(folder / "square.png", 64, 48), (3, 64, 64), letterbox=True)
    y, x = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij")
    draw_maps([(shot, {"layer1": 0.62 + 0.2 * x, "layer2": 0.7 + 0.1 * y})], "gate", folder / "drawn.png")
    return np.asarray(Image.open(folder / "drawn.png").convert("RGB"), dtype=float)


def test_the_golden_picture(tmp_path):
    """Compared coarsely: fonts and their hinting differ between versions of matplotlib."""
    found, golden = drawn(tmp_path), np.asarray(Image.open(GOLDEN).convert("RGB"), dtype=float)
    assert abs(found.shape[0] - golden.shape[0]) <= 10
    assert abs(found.shape[1] - golden.shape[1]) <= 10
    ours, theirs = coarse(found), coarse(golden)
    assert np.abs(ours - theirs).mean() < 4
    assert np.abs(ours - theirs[:, ::-1]).mean() > 15  # mirrored it is another


def coarse(pixels):
    return np.asarray(Image.fromarray(pixels.astype(np.uint8)).resize((60, 24), Image.Resampling.BOX), float)


def test_a_picture_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    shot = photograph(picture_file(tmp_path / "a.png", 16, 16), (3, 16, 16))
    with pytest.raises(FileError, match="cannot be written"):
        draw_maps([(shot, {"a": torch.rand(2, 2)})], "gate", tmp_path / "none" / "maps.png")


if __name__ == "__main__":  # python -m tests.maps.test_pictures draws the golden picture again
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        drawn(Path(place))
        shutil.copy(Path(place) / "drawn.png", GOLDEN)


def test_dollars_in_names_are_no_formulas(tmp_path):
    shot = photograph(picture_file(tmp_path / "q$a$ b$frac.png", 64, 64), (3, 64, 64))
    shot = replace(shot, name=r"q$\frac$.png")
    draw_maps([(shot, {r"c$\frac$": torch.rand(4, 4)})], "gate", tmp_path / "maps.png")
    assert (tmp_path / "maps.png").is_file()
