"""Pictures of every common mode, depth and shape become the network's images; anything else is one line."""

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.own_images import read_images

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "pgm"])
def test_eight_bit_grey_is_exact(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    picture = Image.fromarray(GREY)
    (picture.convert("RGB") if suffix == "webp" else picture).save(tmp_path / f"a.{suffix}", **options)
    names, pixels = read_images([tmp_path / f"a.{suffix}"], (1, 8, 8))
    assert names == [str(tmp_path / f"a.{suffix}")]
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 1, 8, 8)
    np.testing.assert_array_equal(pixels[0, 0], GREY)


def test_sixteen_bit_is_scaled(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_images([tmp_path / "a.png"], (1, 8, 8))[1][0, 0], GREY)


def test_float_tiff_is_scaled(tmp_path):
    Image.fromarray((GREY / 255).astype(np.float32)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_images([tmp_path / "a.tif"], (1, 8, 8))[1][0, 0], GREY)


def test_one_bit_palette_and_cmyk(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_images([tmp_path / "a.png"], (1, 8, 8))[1][0, 0], (GREY > 100) * 255)
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 255
    Image.fromarray(colour).convert("P").save(tmp_path / "b.gif")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "c.tif")
    for name in ("b.gif", "c.tif"):
        pixels = read_images([tmp_path / name], (3, 8, 8))[1]
        assert pixels[0, 0].min() > 240 and pixels[0, 1:].max() < 15


def test_transparency_lies_on_white(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = read_images([tmp_path / "a.png"], (3, 8, 8))[1][0]
    assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == 255).all()


def test_any_size_becomes_a_centred_square(tmp_path):
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (read_images([tmp_path / "a.png"], (1, 8, 8))[1] == 200).all()


def test_orientation_tag_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_images([tmp_path / "a.png"], (1, 8, 8))[1][0, 0], GREY[::-1, ::-1])


def test_folders_are_read_in_order_and_other_files_left_out(tmp_path, capsys):
    for number in (2, 0, 1):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "list.txt").write_text("0.png")
    names, pixels = read_images([tmp_path], (1, 8, 8))
    assert pixels[:, 0, 0, 0].tolist() == [0, 1, 2] and len(names) == 3
    assert "1 of 4 files" in capsys.readouterr().out


def test_what_is_no_picture_is_one_line(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:600])
    (tmp_path / "empty").mkdir()
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "list.txt").write_text("a.png")
    for name, expected in (("text.png", "not a picture"), ("cut.png", "not a picture"), ("none.png", "is not there"),
                           ("empty", "holds no pictures"), ("papers", "holds no pictures")):  # fmt: skip
        with pytest.raises(UserError, match=expected) as caught:
            read_images([tmp_path / name], (1, 8, 8))
        assert "\n" not in str(caught.value)
