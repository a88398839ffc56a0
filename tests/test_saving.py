"""Saved models: whole or not there, and anything else refused in words."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from thalweg import RestrictedBoltzmannMachine
from thalweg._sealed import read_sealed, sealed
from thalweg.training.saving import load_model, rebuilding, refuse_infinite, save_model, tensors_of

TENSORS = {"weight": torch.arange(600.0).reshape(20, 30), "bias": torch.full((2,), -1.0)}
CONFIG = {"hidden": [8, 8], "objective": "likelihood", "names": ["größe"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", "Regressor", CONFIG, TENSORS)
    return tmp_path / "model"


def edit_config(folder: Path, **changes) -> None:
    """Another config, with a checksum that fits."""
    path = folder / "config.json"
    path.write_text(sealed({**read_sealed(path), **changes}))


def test_what_is_saved_is_what_is_loaded(folder):
    config, tensors = load_model(folder, "Regressor")
    assert config == CONFIG
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_view_and_a_tensor_with_a_graph_are_saved_as_their_values(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_(True)
    save_model(tmp_path, "Regressor", {}, {"transposed": weight.T})
    _, tensors = load_model(tmp_path, "Regressor")
    assert torch.equal(tensors["transposed"], weight.detach().T)


def no_fsync(monkeypatch, folder):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def full_device(monkeypatch, folder):
    (folder / "model.safetensors.part").symlink_to("/dev/full")


@pytest.mark.parametrize("fill", [no_fsync, full_device])
def test_a_full_disk_leaves_the_model_before_it_whole(folder, monkeypatch, fill):
    fill(monkeypatch, folder)
    with pytest.raises(OSError, match="free some space"):
        save_model(folder, "Regressor", {"other": 1}, {"weight": torch.zeros(100_000)})
    monkeypatch.undo()
    assert load_model(folder, "Regressor")[0] == CONFIG
    assert not list(folder.glob("*.part"))


def test_a_save_cut_between_its_two_files_is_refused_not_mixed(folder, monkeypatch):
    replace = os.replace

    def cut(source, target):
        if str(target).endswith("config.json"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        save_model(folder, "Regressor", {"other": 1}, {"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="does not belong to the config beside it"):
        load_model(folder, "Regressor")


def test_a_config_that_json_cannot_hold_is_refused_before_anything_is_written(folder):
    for config in ({"scale": float("nan")}, {"scale": object()}):
        with pytest.raises((ValueError, TypeError)):
            save_model(folder, "Regressor", config, {"weight": torch.zeros(3)})
        assert load_model(folder, "Regressor")[0] == CONFIG


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def foreign_tensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 something else")


@pytest.mark.parametrize("damage", [truncate, flip_bit, foreign_tensors])
def test_damaged_tensors_are_refused_in_words(folder, damage):
    damage(folder)
    with pytest.raises(ValueError, match="damaged"):
        load_model(folder, "Regressor")


@pytest.mark.parametrize("data", [b"", b"not safetensors", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "])
def test_tensors_that_match_their_sum_but_are_not_safetensors_are_refused_in_words(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    edit_config(folder, sha256=hashlib.sha256(data).hexdigest())
    if data.endswith(b"{}      "):  # an empty safetensors file is sound
        assert load_model(folder, "Regressor")[1] == {}
        return
    with pytest.raises(ValueError, match="damaged"):
        load_model(folder, "Regressor")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"scale": NaN}', "not JSON"),
        ("[1, 2]", "no JSON object"),
        ('{"model_type": "bert"}', "not written by thalweg"),
        ("null", "no JSON object"),
    ],
)
def test_a_config_that_is_not_ours_is_refused_in_words(folder, text, words):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_model(folder, "Regressor")


def test_a_config_that_is_not_text_is_refused_in_words(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not JSON"):
        load_model(folder, "Regressor")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "newer thalweg .* upgrade"),
        ({"version": None}, "version"),
        ({"kind": "Classifier"}, "holds a Classifier, not a Regressor"),
        ({"config": None}, "damaged"),
        ({"sha256": None}, "damaged"),
    ],
)
def test_another_version_or_kind_is_refused_in_words(folder, changes, words):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=words):
        load_model(folder, "Regressor")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["config"].update(hidden=[8, 9]),
        lambda d: d["config"].update(more=None),
        lambda d: d.update(checksum="0" * 64),
        lambda d: d.update(checksum=None),
        lambda d: d.update(kind="Other"),
    ],
)
def test_a_config_that_was_changed_is_refused_in_words(folder, change):
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="was changed or damaged since it was written"):
        load_model(folder, "Regressor")


def test_every_changed_digit_of_a_config_is_noticed(tmp_path):
    save_model(tmp_path, "Regressor", {"scale": [1.25, -3e-07], "n": 8192}, {})
    path = tmp_path / "config.json"
    text = path.read_text(encoding="utf-8")
    places = [i for i, c in enumerate(text) if c.isdigit()]
    assert len(places) > 80
    for i in places:
        path.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        with pytest.raises(ValueError, match=r"changed or damaged|newer thalweg|not JSON"):
            load_model(tmp_path, "Regressor")


def test_a_config_written_in_another_way_is_the_same_config(folder):
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(document.items())), indent=4, ensure_ascii=False), encoding="utf-8")
    assert load_model(folder, "Regressor")[0] == CONFIG


def test_a_model_saved_before_configs_had_checksums_is_loaded(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(read_sealed(path)))
    assert load_model(folder, "Regressor")[0] == CONFIG


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_in_words(tmp_path, number):
    model = RestrictedBoltzmannMachine(3, max_epochs=1, random_state=0).fit(np.eye(4).repeat(5, 0))
    with torch.no_grad():
        next(model.energy_.parameters()).view(-1)[1] = number
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"is damaged: .* (has NaN|is infinite)"):
        RestrictedBoltzmannMachine.load(tmp_path / "model")


def test_a_buffer_may_hold_the_log_of_a_share_of_zero(tmp_path):
    log_share = torch.tensor([0.0, -torch.inf])
    save_model(tmp_path, "Regressor", {}, {"log_share": log_share})
    assert torch.equal(load_model(tmp_path, "Regressor")[1]["log_share"], log_share)
    module = torch.nn.Linear(2, 2)
    module.register_buffer("log_share", log_share)
    refuse_infinite(tmp_path, [module])


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused_in_words(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match="holds no model"):
        load_model(folder, "Regressor")


def test_a_module_takes_the_tensors_of_its_name():
    tensors = {
        "energy.0.weight": TENSORS["weight"],
        "energy_bias": TENSORS["bias"],
        "energy.energy.a": TENSORS["bias"],
    }
    assert tensors_of("energy", tensors).keys() == {"0.weight", "energy.a"}


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda: {}["params"],
        lambda: [][0],
        lambda: int("wide"),
        lambda: dict(1),
        lambda: None.items(),
        lambda: next(iter(())),
        lambda: torch.nn.Linear(2, 2).load_state_dict({}),
    ],
)
def test_a_config_that_does_not_fit_its_tensors_is_refused_in_words(folder, rebuild):
    with pytest.raises(ValueError, match="its config and its tensors do not fit"), rebuilding(folder):
        rebuild()


def test_a_pickle_in_place_of_the_tensors_is_never_run(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    data = pickle.dumps(Bomb())
    (folder / "model.safetensors").write_bytes(data)
    edit_config(folder, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(ValueError, match="damaged"):
        load_model(folder, "Regressor")
    assert not (tmp_path / "exploded").exists()
