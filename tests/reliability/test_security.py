"""What comes from outside runs nothing, writes nowhere else, and no secret is written down."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import ipc
from safetensors.torch import load_file

from tests.tools import letter_tokenizer, tiny_policy
from tests.workshop import Workshop, write_base
from unified import UserError, load_recipe
from unified.check import check_recipe
from unified.models import artifact_at, base_artifact, config_at, save_model
from unified.named_models import path_problem
from unified.registry import Catalogue, call_named, catalogue, using
from unified.settings import Settings, choose, nested_settings
from unified.stage import ModelSettings
from unified.weights import refuse_pickled


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_policy().module, letter_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def pickled(model: Path, name: str, target: Path) -> Path:
    """The model with its weights as a pickle that would touch the target."""
    torch.save({**load_file(model / "model.safetensors"), "bomb": Bomb(target)}, model / name)
    (model / "model.safetensors").unlink()
    return model


# --- models ---


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pkl"])
def test_weights_that_are_pickled_are_refused_by_the_check_and_never_read(
    model: Path, name: str, tmp_path: Path
) -> None:
    pickled(model, name, tmp_path / "touched")
    problem = path_problem("model", tmp_path, (), [])
    assert problem is not None
    assert name in problem.message
    assert "save_pretrained" in problem.hints[0]
    with pytest.raises(UserError, match="are not safetensors"):
        artifact_at(model).load("policy")
    assert not (tmp_path / "touched").exists()


def test_the_advice_on_pickled_weights_works(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(model, use_safetensors=False).save_pretrained(tmp_path / "new")
    loaded = artifact_at(tmp_path / "new").load("policy").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_pickled_weights_beside_safetensors_are_not_looked_at(model: Path, tmp_path: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    pickled(model, "pytorch_model.bin", tmp_path / "touched")
    (model / "model.safetensors").write_bytes(weights)
    artifact_at(model).load("policy")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("part", ["evil.bin", "../elsewhere.safetensors", "/tmp/x.safetensors"])
def test_an_index_of_weights_may_name_nothing_but_safetensors_beside_it(model: Path, part: str) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(UserError, match="no safetensors file beside it"):
        refuse_pickled(model)


def test_a_configuration_cannot_name_pickled_weights(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "x.bin"}))
    with pytest.raises(UserError, match=r"names weights that are not safetensors: x\.bin"):
        artifact_at(model).load("policy")


def test_a_pickled_adapter_is_refused(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    torch.save({"bomb": Bomb(tmp_path / "touched")}, adapter / "adapter_model.bin")
    problem = path_problem("adapter", tmp_path, (), [])
    assert problem is not None
    assert "adapter_model.bin" in problem.message
    with pytest.raises(UserError, match="are not safetensors"):
        artifact_at(adapter).load("policy")
    assert not (tmp_path / "touched").exists()


@pytest.fixture
def with_code(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose configuration is Python of its own, which touches a file."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = f"open({str(tmp_path / 'touched')!r}, 'w')\nfrom transformers import LlamaConfig\n"
    (model / "own.py").write_text(code + "class Own(LlamaConfig):\n    model_type = 'own_kind'\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own_kind", "auto_map": {"AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_python_beside_a_model_does_not_run_and_nobody_is_asked(with_code: Path, tmp_path: Path) -> None:
    for look in (lambda: config_at(with_code), lambda: artifact_at(with_code).load("policy")):
        with pytest.raises(UserError, match=r"trust_remote_code: true"):
            look()
    assert not (tmp_path / "touched").exists()


def test_python_beside_a_model_runs_where_the_recipe_says_so(with_code: Path, tmp_path: Path) -> None:
    before = list(sys.path)
    try:
        settings = ModelSettings(path=str(with_code), trust_remote_code=True)
        assert config_at(with_code, trusted=base_artifact(settings, tmp_path, 0).trusted).model_type == "own_kind"
    finally:
        sys.path[:] = before
    assert (tmp_path / "touched").exists()


# --- data ---


@pytest.mark.parametrize("name", ["rows.pkl", "rows.pt", "rows.pickle", "rows.npy", "rows.bin", "rows.py"])
def test_a_data_file_that_could_hold_a_program_is_not_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "touched")))
    data, _ = choose("dataset", {"name": "files", "path": name})
    assert data is not None
    with pytest.raises(UserError, match="no rows can be read from a file that ends in"):
        call_named(data.part.open, settings=data.settings, split="train", seed=0, folder=tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_type_in_an_arrow_file_that_asks_to_be_unpickled_is_not(streaming: bool, tmp_path: Path) -> None:
    about = {"ARROW:extension:name": "arrow.py_extension_type"}
    about["ARROW:extension:metadata"] = pickle.dumps(Bomb(tmp_path / "touched"), protocol=0).decode("latin-1")
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=about)])
    with pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, ipc.new_file(sink, schema) as writer:
        writer.write_table(pyarrow.table([["a", "b"]], schema=schema))
    data, _ = choose("dataset", {"name": "files", "path": "rows.arrow", "held_out": 0, "streaming": streaming})
    assert data is not None
    rows = call_named(data.part.open, settings=data.settings, split="train", seed=0, folder=tmp_path)
    assert len(rows) == 2
    assert not (tmp_path / "touched").exists()


def test_a_dataset_with_a_script_does_not_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o" / "rows").mkdir(parents=True)
    (tmp_path / "o" / "rows" / "rows.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    data, _ = choose("dataset", {"name": "hub", "id": "o/rows"})
    assert data is not None
    with pytest.raises(UserError, match=r"cannot be had from the hub: .*script"):
        call_named(data.part.open, settings=data.settings, split="train", seed=0, folder=tmp_path)
    assert not (tmp_path / "touched").exists()


# --- where a run writes ---


RECIPE = "name: demo\nmodel: ./iron\nstages: {one: {mark: a}}\n"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".", "..", "~", "a\\b", ".hidden", "", "a b", "x\x7f"])
@pytest.mark.parametrize("what", ["stage", "run", "profile", "block"])
def test_a_name_that_becomes_a_folder_cannot_lead_anywhere(name: str, what: str, tmp_path: Path) -> None:
    said = json.dumps(name)
    texts = {
        "stage": f"name: a\nmodel: ./iron\nstages: {{{said}: {{mark: a}}}}",
        "run": f"name: {said}\nmodel: ./iron\nstages: {{one: {{mark: a}}}}",
        "profile": f"name: a\nmodel: ./iron\nstages: {{one: {{mark: a}}}}\nprofiles: {{{said}: {{seed: 1}}}}",
        "block": f"name: a\nmodel: ./iron\nstages: {{{said}: {{repeat: 1, stages: {{one: {{mark: a}}}}}}}}",
    }
    (tmp_path / "r.yaml").write_text(texts[what])
    write_base(tmp_path / "iron")
    with using(Workshop().catalogue()), pytest.raises(UserError, match="cannot be the name of a"):
        check_recipe(load_recipe(tmp_path / "r.yaml"))


@pytest.mark.parametrize("link", ["one", "run.json.lock", "one/model", "deep/er/x"])
def test_a_link_in_the_run_folder_that_leads_out_stops_the_run_before_anything_is_written(
    run: Any, link: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("kept")
    place = tmp_path / "out" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside)
    with pytest.raises(UserError, match="is a link that leads out of the run folder"):
        run(RECIPE)
    assert [p.name for p in outside.iterdir()] == ["mine"]
    assert run.workshop.ran == []


def test_a_run_folder_may_itself_be_a_link(run: Any, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big disk")
    assert run(RECIPE).ran == ["one"]
    assert (tmp_path / "big disk" / "one" / "manifest.json").is_file()


def test_no_setting_of_a_built_in_part_is_a_place_to_write_to() -> None:
    suspects, seen = set(), 0
    for kind in catalogue().kinds():
        for part in catalogue().names(kind):
            for name, field in fields_of(catalogue().get(kind, part).settings):
                seen += 1
                named = {"output", "folder", "dir", "save", "export", "write"} & set(name.split("_"))
                if named and any(word in str(field.annotation) for word in ("str", "Path", "Any")):
                    suspects.add(f"{kind} {part}: {name}")
    assert seen > 300
    assert suspects == set()


def fields_of(cls: type[Settings]) -> Iterator[tuple[str, Any]]:
    """Every field of settings, with those of nested ones."""
    for name, field in cls.model_fields.items():
        yield name, field
        inner = nested_settings(cls, name)[0]
        if inner is not None:
            yield from fields_of(inner)


# --- plugins ---


def test_a_folder_of_python_beside_a_recipe_offers_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    (tmp_path / "unified_plugins").mkdir()
    shutil.copy(tmp_path / "plugin.py", tmp_path / "unified_plugins" / "__init__.py")
    (tmp_path / "r.yaml").write_text("name: a\nplugins: [plugin.py]\nstages: {one: {data: random_walks}}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no setting 'plugins'"):
        check_recipe(load_recipe(tmp_path / "r.yaml"))
    Catalogue()
    assert not (tmp_path / "touched").exists()


def test_a_check_runs_no_python_that_the_recipe_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\ndef right(answer): return 1.0\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 4)
    letter_tokenizer().save_pretrained(tmp_path / "base")
    tiny_policy().module.config.save_pretrained(tmp_path / "base")
    (tmp_path / "r.yaml").write_text(
        "name: a\nmodel: ./base\nstages:\n  one:\n    algorithm: grpo\n    data: rows.jsonl\n    max_length: 40\n"
        "    source: {group_size: 2, max_tokens: 4}\n    reward: {name: python, function: mine.py:right}\n"
    )
    check_recipe(load_recipe(tmp_path / "r.yaml"))
    assert not (tmp_path / "touched").exists()
