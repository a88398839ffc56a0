"""Images as they are read: every depth, alpha channel, palette, page and label of a file means what it says."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thalweg.data.images import as_images, read_images, read_split

BYTES = np.random.default_rng(0).integers(0, 256, (4, 8, 6)).astype(np.uint8)
BYTES[0, 0, :2] = 0, 255
DEEP = np.random.default_rng(1).integers(0, 65536, (4, 8, 6)).astype(np.uint16)
DEEP[0, 0, :3] = 0, 32768, 65535


def save(folder: Path, pictures: np.ndarray, suffix: str, **options: object) -> Path:
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.{suffix}", **options)
    return folder


def is_refused(folder: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_images(folder)


# -- depth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), [("<u2", "png"), ("<u2", "tif"), (">u2", "tif"), ("<i4", "tif")])
def test_pictures_of_16_bits_keep_their_grey_levels(tmp_path, kind, suffix):
    found = read_images(save(tmp_path, DEEP.astype(kind), suffix))
    assert found.pixels.shape == (4, 1, 8, 6)
    np.testing.assert_allclose(found.pixels[:, 0], DEEP / 65535, atol=1e-6)
    gap = np.diff(np.unique(DEEP)).min()
    assert found.resolution == pytest.approx(gap / 65535)


def test_the_resolution_of_16_bits_is_one_level_however_many_there_are(tmp_path):
    every = np.arange(65536).reshape(4, 128, 128).astype(np.uint16)
    assert read_images(save(tmp_path, every, "png")).resolution == pytest.approx(1 / 65535)
    assert as_images(every).resolution == pytest.approx(1 / 65535)


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    found = read_images(save(tmp_path, DEEP // 512, "png"))
    np.testing.assert_allclose(found.pixels[:, 0], (DEEP // 512) / 65535, atol=1e-7)


def test_pictures_of_8_and_16_bits_are_each_scaled_by_their_own_depth(tmp_path):
    save(tmp_path, BYTES, "png")
    Image.fromarray(257 * BYTES[0].astype(np.uint16)).save(tmp_path / "deep.png")
    found = read_images(tmp_path).pixels
    np.testing.assert_allclose(found[:4, 0], BYTES / 255, atol=1e-6)
    np.testing.assert_allclose(found[4], found[0], atol=1e-6)


def test_16_bits_of_colour_are_read_to_8(tmp_path):
    """Pillow has no mode for them; it keeps the higher half."""
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2"), 3).tobytes() for row in DEEP[0])
    (tmp_path / "0.png").write_bytes(png(6, 8, bits=16, colour=2, data=rows))
    found = read_images(tmp_path).pixels
    assert found.shape == (1, 3, 8, 6)
    np.testing.assert_allclose(found[0, 1], DEEP[0] / 65535, atol=1 / 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_zero_is_white_is_turned_round(tmp_path, bits):
    """By the standard of TIFF, photometric interpretation 0 stores white as 0."""
    picture = BYTES[0] if bits == 8 else 257 * BYTES[0].astype(np.uint16)
    stored = picture.max() - picture if bits == 16 else picture  # Pillow turns 8 bits round when it saves them
    Image.fromarray(stored).save(tmp_path / "0.tif", tiffinfo={262: 0})
    np.testing.assert_allclose(read_images(tmp_path).pixels[0, 0], BYTES[0] / 255, atol=1e-6)


def test_12_bits_are_white_at_4095(tmp_path):
    values = np.array([[0, 4095, 2048, 1], [4095, 0, 1024, 512]])
    packed = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in values.reshape(-1, 2).tolist())
    (tmp_path / "0.tif").write_bytes(tiff(4, 2, {258: 12, 277: 1, 262: 1}, packed))
    np.testing.assert_allclose(read_images(tmp_path).pixels[0, 0], values / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 70000], r"0\.tif has whole numbers from 0 to 70000: save it with 8 or 16 bits"),
        ([-3, 200], r"0\.tif has whole numbers from -3 to 200"),
        ([0, 200], r"0\.tif has 32 bits and values up to 200, which may be those of 8 or 16"),
    ],
)
def test_32_bits_of_which_white_is_not_known_are_refused(tmp_path, values, words):
    save(tmp_path, np.array([[values]], np.int32), "tif")
    is_refused(tmp_path, words)


def test_floating_point_pictures_are_read_from_0_to_1(tmp_path):
    values = np.random.default_rng(2).uniform(size=(2, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(read_images(save(tmp_path, values, "tif")).pixels[:, 0], values)
    save(tmp_path, 300 * values[:1], "tif")
    is_refused(tmp_path, r"0\.tif has floating-point values from .* scale them to \[0, 1\]")
    save(tmp_path, np.full((1, 5, 4), np.nan, np.float32), "tif")
    is_refused(tmp_path, r"0\.tif has floating-point values from nan")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_masks_of_0_and_1_are_black_and_white(tmp_path, kind):
    masks = (BYTES > 99).astype(kind)
    found = read_images(save(tmp_path, masks, "png"))
    np.testing.assert_array_equal(found.pixels[:, 0], masks)
    assert found.resolution == 1.0


def test_pictures_of_one_bit_are_black_and_white(tmp_path):
    for i, mask in enumerate(BYTES > 99):
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
    found = read_images(tmp_path)
    np.testing.assert_array_equal(found.pixels[:, 0], BYTES > 99)
    assert found.resolution == 1.0


# -- pages, transparency, palettes, orientation -------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_a_picture_of_several_pages_is_refused(tmp_path, suffix):
    pages = [Image.fromarray(picture) for picture in BYTES[:3]]
    pages[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=pages[1:])
    is_refused(tmp_path, rf"many\.{suffix} has 3 pages or frames: save each")


def test_the_preview_in_a_jpeg_of_a_phone_is_passed_over(tmp_path):
    flat = [Image.fromarray(np.full((16, 16), grey, np.uint8)) for grey in (200, 30)]
    flat[0].save(tmp_path / "0.jpg", format="MPO", save_all=True, append_images=flat[1:])
    flat[1].save(tmp_path / "1.jpg")
    found = read_images(tmp_path).pixels.mean((1, 2, 3))
    np.testing.assert_allclose(found, [200 / 255, 30 / 255], atol=0.01)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"), [("LA", "png", 1), ("RGBA", "png", 3), ("RGBA", "webp", 3), ("PA", "tif", 1)]
)
def test_an_alpha_channel_is_dropped_only_where_all_is_opaque(tmp_path, mode, suffix, channels):
    opaque = Image.fromarray(BYTES[0]).convert(mode)
    opaque.putalpha(255)
    options = {"lossless": True} if suffix == "webp" else {}
    opaque.save(tmp_path / f"0.{suffix}", **options)
    found = read_images(tmp_path).pixels
    assert found.shape == (1, channels, 8, 6)
    np.testing.assert_allclose(found[0, 0], BYTES[0] / 255, atol=1e-6)
    clear = np.full((8, 6), 255, np.uint8)
    clear[2, 3] = 254
    opaque.putalpha(Image.fromarray(clear))
    opaque.save(tmp_path / f"1.{suffix}", exact=True, **options)
    is_refused(tmp_path, rf"1\.{suffix} has transparent pixels: flatten it on a background first")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_colour_that_a_png_names_transparent_is_refused_only_where_it_occurs(tmp_path, mode):
    picture = Image.fromarray(DEEP[0] // 2) if mode == "I;16" else Image.fromarray(BYTES[0] // 2).convert(mode)
    there = picture.getpixel((0, 0))
    if mode != "1":
        absent = {"L": 200, "P": 200, "RGB": (1, 2, 3), "I;16": 50000}[mode]
        picture.save(tmp_path / "0.png", transparency=absent)
        assert read_images(tmp_path).pixels.shape[0] == 1
    picture.save(tmp_path / "0.png", transparency=there)
    is_refused(tmp_path, r"0\.png has transparent pixels")


def test_a_palette_whose_entries_have_opacities_is_read_if_all_are_opaque(tmp_path):
    picture = Image.fromarray(BYTES[0]).convert("P")
    picture.save(tmp_path / "0.png", transparency=bytes([255] * 256))
    np.testing.assert_allclose(read_images(tmp_path).pixels[0, 0], BYTES[0] / 255, atol=1e-6)
    picture.save(tmp_path / "0.png", transparency=bytes([255] * 255 + [7]))
    is_refused(tmp_path, r"0\.png has transparent pixels")


def test_grey_palettes_are_one_channel_unless_another_picture_has_colour(tmp_path):
    for i, picture in enumerate(BYTES):
        Image.fromarray(picture).convert("P").save(tmp_path / f"{i}.png")
    found = read_images(tmp_path).pixels
    np.testing.assert_allclose(found, BYTES[:, None] / 255, atol=1e-6)
    coloured = Image.fromarray(BYTES[0]).convert("P")
    coloured.putpalette([*range(255, -1, -1), *range(256), *range(256)])
    coloured.save(tmp_path / "4.png")
    found = read_images(tmp_path).pixels
    assert found.shape == (5, 3, 8, 6)
    np.testing.assert_allclose(found[:4], np.repeat(BYTES[:, None], 3, 1) / 255, atol=1e-6)


def test_grey_pictures_in_rgb_stay_in_colour_and_do_not_mix_with_grey_ones(tmp_path):
    for i, picture in enumerate(BYTES):
        Image.fromarray(picture).convert("RGB").save(tmp_path / f"{i}.png")
    assert read_images(tmp_path).pixels.shape == (4, 3, 8, 6)
    Image.fromarray(BYTES[0]).save(tmp_path / "grey.png")
    is_refused(tmp_path, r"differ in size or colour: .*png is 8 x 6 in colour, grey\.png is 8 x 6 in grey")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_picture_is_turned_upright(tmp_path, suffix, orientation, turns):
    block = np.kron(np.array([[250, 10], [10, 120]], np.uint8), np.ones((8, 16), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(block).save(tmp_path / f"0.{suffix}", exif=exif)
    np.testing.assert_allclose(read_images(tmp_path).pixels[0, 0], np.rot90(block, turns) / 255, atol=0.02)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_upright(tmp_path, kind, compression):
    picture = DEEP[0].astype(kind)
    Image.fromarray(picture).save(tmp_path / "0.tif", tiffinfo={274: 6}, compression=compression)
    expected = np.rot90(picture, -1) / np.iinfo(kind).max
    np.testing.assert_allclose(read_images(tmp_path).pixels[0, 0], expected, atol=1e-6)


# -- folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "cats/.thumbnails"])
def test_hidden_folders_and_files_are_passed_over(tmp_path, hidden):
    folder = tmp_path / ".cache" / "pictures"  # what lies above the folder does not hide it
    (folder / "cats").mkdir(parents=True)
    (folder / hidden).mkdir(parents=True, exist_ok=True)
    save(folder / "cats", BYTES, "png")
    save(folder / hidden, BYTES[:2, :5], "png")
    (folder / "cats" / "._0.png").write_bytes(b"no picture")
    found = read_images(folder)
    assert found.pixels.shape == (4, 1, 8, 6)
    assert found.labels is None


def test_a_folder_in_which_all_is_hidden_holds_no_pictures(tmp_path):
    (tmp_path / ".git").mkdir()
    save(tmp_path / ".git", BYTES, "png")
    is_refused(tmp_path, "holds no pictures")


def test_a_picture_beside_the_subfolders_of_labels_is_refused(tmp_path):
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        save(tmp_path / label, BYTES, "png")
    Image.fromarray(BYTES[0]).save(tmp_path / "stray.png")
    is_refused(tmp_path, r"some pictures lie in subfolders, which are labels, and stray\.png lies beside these")


def test_subfolders_named_by_numbers_are_numbered_by_them(tmp_path):
    for k in range(12):
        (tmp_path / str(k)).mkdir()
        Image.fromarray(np.full((4, 4), 10 * k, np.uint8)).save(tmp_path / str(k) / "0.png")
    found = read_images(tmp_path)
    assert found.labels is not None
    np.testing.assert_allclose(found.pixels[:, 0, 0, 0], 10 * found.labels / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_a_truncated_picture_is_refused_by_name(tmp_path, suffix):
    picture = np.random.default_rng(2).integers(0, 256, (64, 64)).astype(np.uint8)
    path = save(tmp_path, picture[None], suffix) / f"0.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    is_refused(tmp_path, rf"0\.{suffix} can't be read as a picture.*: mend or remove it")


def test_a_picture_too_large_for_pillow_is_refused_by_name(tmp_path, monkeypatch):
    save(tmp_path, BYTES, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    is_refused(tmp_path, r"0\.png can't be read as a picture \(.*exceeds limit")


# -- arrays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["u1", "i2", "i8", "u4", "f4", "f8"])
def test_bytes_of_every_type_are_bytes(kind):
    found = as_images(BYTES.astype(kind))
    np.testing.assert_allclose(found.pixels[:, 0], BYTES / 255, atol=1e-6)
    assert found.resolution == pytest.approx(1 / 255)


@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_arrays_of_16_bits_are_white_at_65535(kind):
    found = as_images(DEEP.astype(kind))
    np.testing.assert_allclose(found.pixels[:, 0], DEEP / 65535, atol=1e-6)


@pytest.mark.parametrize("kind", ["?", "u1", "u2", "i1", "i8", "f4", "f8"])
def test_arrays_of_0_and_1_are_black_and_white(kind):
    found = as_images((BYTES > 99).astype(kind))
    np.testing.assert_array_equal(found.pixels[:, 0], BYTES > 99)
    assert found.resolution == 1.0


def test_numbers_from_0_to_1_stay():
    values = np.random.default_rng(2).uniform(size=(4, 10, 10))
    found = as_images(values)
    np.testing.assert_allclose(found.pixels[:, 0], values, atol=1e-7)
    assert found.resolution == 0.0
    assert as_images(np.round(16 * values) / 16).resolution == pytest.approx(1 / 16)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (DEEP.astype(np.int64), "int64 from 0 to 65535"),
        (BYTES.astype(np.int16) - 1, "int16 from -1 to 254"),
        (BYTES + 0.5, r"float64 from 0\.5 to 255\.5"),
        (BYTES // 16, None),
        ((BYTES // 16).astype(np.int64), "int64 from 0 to 15: divide them by the value that is white"),
        ((BYTES // 16).astype(float), "float64 from 0 to 15"),
        (BYTES.astype(np.uint16), "uint16 from 0 to 255"),
        (np.where(BYTES > 99, np.nan, 0.5), "without NaN"),
        (np.where(BYTES > 99, 1e300, 0.5), "float64 from 0.5 to inf"),
        (BYTES.astype(complex), "complex128"),
        (BYTES.astype(str), "<U3"),
    ],
)
def test_values_of_which_white_is_not_known_are_refused_with_their_range(pixels, words):
    if words is None:
        np.testing.assert_allclose(as_images(pixels).pixels[:, 0], pixels / 255, atol=1e-6)  # uint8 says it
    else:
        with pytest.raises(ValueError, match=words):
            as_images(pixels)


def test_the_resolution_is_that_of_all_images():
    pixels = np.where(
        np.arange(300)[:, None, None] < 250, 255 * (np.random.default_rng(2).integers(0, 2, (300, 4, 4))), 51
    )
    pixels[-1, 0, 0] = 52
    assert as_images(pixels.astype(np.uint8)).resolution == pytest.approx(1 / 255)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["dog", "cat", "cat", "emu"], [1, 0, 0, 2]),
        (["10", "2", "2", "9"], [2, 0, 0, 1]),
        ([1.0, 0.0, 2.0, 1.0], [1, 0, 2, 1]),
        ([True, False, True, True], [1, 0, 1, 1]),
        ([[3], [1], [0], [2]], [3, 1, 0, 2]),
    ],
)
def test_labels_of_an_npz_become_whole_numbers(tmp_path, labels, expected):
    np.savez(tmp_path / "some.npz", X=BYTES, y=np.array(labels))
    found = read_images(tmp_path / "some.npz").labels
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, np.nan, 0], "without NaN"),
        ([0, 1, 1.5, 0], "whole number or one text"),
        ([0, 1], "4 images and 2 labels"),
        (3, "for each image"),
        (np.eye(4, dtype=int), r"for each image.* got int64 \[4, 4\]"),
        ([1j, 0, 0, 0], "whole number or one text"),
        (np.array(["a", 1, 2, 3], object), "can't be read as .npz"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, words):
    np.savez(tmp_path / "some.npz", X=BYTES, y=np.array(labels))
    is_refused(tmp_path / "some.npz", rf"some\.npz.*{words}")


def test_training_and_test_images_number_texts_alike(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, X_train=BYTES, y_train=["a", "b", "c", "a"], X_test=BYTES[:2], y_test=["c", "b"])
    train, test = read_split(path)
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 0], [2, 1])
    for labels, words in ((["c", "d"], "no training image has the label 'd'"), ([0, 1], "alike for training and")):
        np.savez(path, X_train=BYTES, y_train=["a", "b", "c", "a"], X_test=BYTES[:2], y_test=labels)
        with pytest.raises(ValueError, match=words):
            read_split(path)


def test_images_that_are_not_split_are_not_their_own_test_images(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, X_train=BYTES, X=BYTES)
    with pytest.raises(ValueError, match=r"some\.npz holds no array X_test"):
        read_split(path)


def test_a_damaged_npz_is_refused_by_name(tmp_path):
    path = tmp_path / "some.npz"
    np.savez_compressed(path, X=BYTES)
    with zipfile.ZipFile(path) as file:
        start = file.getinfo("X.npy").header_offset + 80
    raw = bytearray(path.read_bytes())
    raw[start : start + 40] = bytes(40)
    path.write_bytes(raw)
    is_refused(path, r"some\.npz can't be read as \.npz")


# -- files that Pillow does not write -------------------------------------------------------------------------


def png(width: int, height: int, *, bits: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, tags: dict[int, int], data: bytes) -> bytes:
    tags = {256: width, 257: height, 259: 1, 278: height, 279: len(data), **tags}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + data
