"""The model card of an export: as the hub's own library reads it, and its text by hand."""

import json
import re

import pytest
import torch

from config import UserError, deciding, make
from formats import card, huggingface, tokenizers
from formats.checkpoints import save_model
from model import ModelConfig, Transformer


def settings_of(result, **changes):
    """The settings that a checkpoint of this kind holds."""
    cfg = make(**changes)
    return {name: getattr(cfg, name) for name in deciding(result)}


@pytest.fixture
def exported(tok, tmp_path):
    """A function: save ra3.pt with what is beside it in a run's folder, export it -> the card."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")

    def export(results=None, dtype=None, **changes):
        shape = ModelConfig(tok.vocab_size, 1, 2, 2, 16, 16, 64)
        model = Transformer(shape).init_weights(0)
        tokenizers.save_tokenizer(tok, str(tmp_path / "tokenizer.txt"))
        settings = settings_of("em", **changes)
        path = str(tmp_path / "ra3.pt")
        save_model(model, path, settings=settings, flops=2.5e12, tokenizer=tokenizers.digest(tok))
        if results is not None:
            (tmp_path / "results.json").write_text(json.dumps(results))
        huggingface.export(path, str(tmp_path / "folder"), dtype)
        return huggingface_hub.ModelCard.load(tmp_path / "folder" / "README.md")

    return export


RESULTS = {
    "base": {"pass@1": 0.25, "think_share": 0.0, "gain": 0.0, "elbo": -3.0},
    "ra3": {
        "pass@1": 0.5,
        "think_share": 0.25,
        "gain": 1.5,
        "elbo": -1.25,
        "intervals": {"pass@1": [0.4, 0.6], "elbo": [-2.0, -0.5]},
        "measured": {"seed": 7},
    },
    "other": {"pass@1": 1.0},
}


def test_the_hub_reads_it(exported):
    loaded = exported(RESULTS, c=0.25)
    assert loaded.data.license == "mit" and loaded.data.library_name == "transformers"
    assert loaded.data.base_model is None and loaded.data.tags == ["code", "python", "ra3"]
    scores = {score.metric_type: score.metric_value for score in loaded.data.eval_results}
    assert scores == {"pass@1": 0.5} and loaded.data.model_name == "ra3"
    assert "| pass@1 | 0.250 | 0.500 [0.400, 0.600] |" in loaded.text
    assert "| held-out bound, nats a snippet | -3.00 | -1.25 [-2.00, -0.50] |" in loaded.text
    assert "| gain of a thought, nats | - | +1.50 |" in loaded.text
    assert "seed 7" in loaded.text and "95% intervals" in loaded.text
    assert "| c | `0.25` |" in loaded.text and "after mid-training with thoughts" in loaded.text
    assert "2.5 TFLOP, besides" in loaded.text and "built-in domain" in loaded.text


def test_whoever_may_read_a_new_file_may_read_the_weights(exported, tmp_path):
    exported()
    usual = tmp_path / "usual"
    usual.touch()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "folder").iterdir()}
    assert set(modes.values()) == {usual.stat().st_mode} and "model.safetensors" in modes


def test_converted_weights_are_told_beside_the_results(exported):
    assert "converted to bfloat16" in exported(RESULTS, torch.bfloat16).text


def test_results_of_other_weights_are_left_out(exported, capfd):
    """The checkpoint of `exported` took 2.5 TFLOP."""
    loaded = exported({**RESULTS, "ra3": {**RESULTS["ra3"], "flops": 2.0e12}})
    assert "## Results" not in loaded.text and loaded.data.eval_results is None
    assert "ra3 was trained again since; the card has no results" in capfd.readouterr().err


def test_results_of_these_weights(exported, capfd):
    loaded = exported({**RESULTS, "ra3": {**RESULTS["ra3"], "flops": 2.5e12}})
    assert "## Results" in loaded.text and capfd.readouterr().err == ""


def test_without_results(exported):
    loaded = exported()
    assert "converted" not in loaded.text
    assert "## Results" not in loaded.text and loaded.data.eval_results is None
    assert "Those of the preset `tiny`." in loaded.text


def test_the_way_to_load_it_works(exported, tmp_path):
    pytest.importorskip("transformers")
    (code,) = re.findall("```python\n(.*?)```", exported().text, re.S)
    names = {}
    shown = []
    torch.manual_seed(0)
    exec(code.replace("FOLDER", str(tmp_path / "folder")), names | {"print": shown.append})
    assert len(shown) == 1 and "drop: e two f neg" in shown[0] and len(shown[0]) > 120


def test_damaged_results_are_one_line(exported, tmp_path):
    (tmp_path / "results.json").write_text("[")
    with pytest.raises(UserError, match="results.json: cannot be read as a JSON object"):
        exported()
    (tmp_path / "results.json").write_text('{"ra3": [1]}')
    with pytest.raises(UserError, match=r"results.json: ra3 is \[1\]; expected an object"):
        exported()
    assert not (tmp_path / "folder").exists()


# ---------------------------------------------------------------- by hand


def front(text):
    """The front matter as a dict."""
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(text.split("---\n")[1])


def about(**changes):
    values = dict(
        name="ra3",
        kind=card.KINDS["estep"],
        parameters=1_500_000_000,
        settings={**settings_of("em", preset="qwen2.5-1.5b"), "data": "stdlib,my/code"},
        source="models/qwen",
        results={},
        sources=[],
        flops=0.0,
        licence_file="",
        rounded="",
    )
    return card.About(**{**values, **changes})


SOURCES = [
    {"data": "stdlib", "version": "3.11.7", "licence": "PSF-2.0", "permissive": True},
    {"data": "home/me/my/code", "licence": "not given", "permissive": False},
]


def test_base_model_and_licences():
    counted = [{**source, "counts": {"kept": 1234}} for source in SOURCES]
    text = card.card_text(about(sources=counted, licence_file="LICENSE"))
    fields = front(text)
    assert fields["base_model"] == "Qwen/Qwen2.5-1.5B" and fields["license"] == "other"
    assert fields["license_link"] == "LICENSE" and "model-index" not in fields
    assert "# ra3, from Qwen2.5-1.5B" in text and "1,500.0 M parameters" in text
    assert "| stdlib | 3.11.7 | PSF-2.0 | 1,234 |" in text
    assert "| code | - | not given | 1,234 |" in text and "home" not in text
    assert "Not all of these licences" in text


def test_a_base_model_from_a_folder_is_not_named_as_the_hubs(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    settings = settings_of("em", preset="qwen2.5-1.5b", model=str(folder))
    text = card.card_text(about(settings=settings, source=str(folder)))
    assert "base_model" not in front(text) and "license" not in front(text)
    assert "# ra3, from weights" in text and str(tmp_path) not in text
    smollm2 = about(settings=settings_of("em", preset="smollm2"), source="weights.gguf")
    assert front(card.card_text(smollm2))["base_model"] == card.SMOLLM2


def test_what_a_model_is_follows_from_its_settings(tok, tmp_path):
    for result, words in {
        "base": "base model",
        "ntp": "next-token",
        "em": "thoughts",
        "rlvr": "RLVR",
    }.items():
        extra = {"settings": settings_of(result)}
        card.write_card(str(tmp_path / "x.pt"), extra, 10, "", str(tmp_path))
        assert words in (tmp_path / "README.md").read_text().split("RA3 (arXiv")[0]
