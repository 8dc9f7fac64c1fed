"""The model card of an export: README.md beside the weights, in the form that the hub reads.

YAML front matter (licence, base model, figures), then what it is, how to load it, results with
intervals, data with licences, settings. It says what the run's folder says, and leaves out what
that does not know.
"""

import dataclasses
import json
import os
import re
import sys

from config import Config, UserError, make, read_object
from formats.results import read_entries

# A setting that only such a model is made with -> what it is.
KINDS = {
    "rl_steps": "A model after reinforcement learning from unit tests (RLVR)",
    "estep": "A model after mid-training with thoughts (RA3)",
    "mstep_steps": "A model after next-token mid-training (NTP), the baseline",
}
BASE_KIND = "The base model, before any mid-training"
LICENCE_FILES = ("LICENSE", "LICENSE.txt")
# key of results.json, title, form
CARD_FIGURES = (
    ("pass@1", "pass@1", "{:.3f}"),
    ("pass@5", "pass@5", "{:.3f}"),
    ("greedy", "greedy pass rate", "{:.3f}"),
    ("elbo", "held-out bound, nats a snippet", "{:.2f}"),
    ("elbo_no_think", "the same, never thinking", "{:.2f}"),
    ("think_share", "lines with a thought", "{:.1%}"),
    ("gain", "gain of a thought, nats", "{:+.2f}"),
)
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the preset smollm2 starts from
LOADING = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
prompt = PROMPT
tokens = tokenizer(prompt, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(tokens, max_new_tokens=100)[0]))
```

FOLDER is this folder, or the name that it has on the hub. A prompt ends where a line ends, without
the newline."""
PROMPTS = {
    True: 'def bend(xs):\n    """\n    drop: e two f neg g dec h jump\n    return xs\n    """',
    False: 'def mean(xs):\n    """Arithmetic mean."""',
}  # by whether the model was trained here


@dataclasses.dataclass
class About:
    """What is known of an exported model."""

    name: str  # of the checkpoint
    kind: str  # what it is, in words
    parameters: int
    settings: dict  # that it was made with
    source: str  # folder or file of the base model; "" for one that was trained here
    results: dict  # of its run's results.json
    sources: list  # of its corpus
    flops: float
    licence_file: str  # beside the weights, or ""
    rounded: str  # what the checkpoint's weights were converted to, or ""


def write_card(checkpoint, extra, parameters, source, folder, rounded=""):
    """Write README.md into a folder that holds the other files of an export. Raises UserError.

    extra        what the checkpoint holds beside its weights
    parameters   how many weights there are
    source       as of `export`
    rounded      the weights' dtype where it is not the checkpoint's
    """
    run = os.path.dirname(checkpoint)
    name = os.path.basename(checkpoint).removesuffix(".pt")
    licences = [file for file in LICENCE_FILES if os.path.exists(os.path.join(folder, file))]
    noted = read_object(os.path.join(run, f"settings-{name}.json"))
    noted = noted or read_object(os.path.join(run, "settings.json"))
    decided = extra.get("settings", {})
    about = About(
        name=name,
        kind=next((text for key, text in KINDS.items() if key in decided), BASE_KIND),
        parameters=parameters,
        settings={**noted, **decided},
        source=source or "",
        results=results_of(run, name, extra),
        sources=read_object(os.path.join(run, "sources.json")).get("sources", []),
        flops=extra.get("flops", 0.0),
        licence_file=licences[0] if licences else "",
        rounded=rounded,
    )
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
        f.write(card_text(about))


def results_of(run, name, extra):
    """The run's results; {} with a note where those of this name are of other weights.

    A model that was trained again, and not evaluated since, took another number of FLOPs.
    """
    path = os.path.join(run, "results.json")
    results = read_entries(path)
    measured = results.get(name, {}).get("flops")
    if measured is None or measured == extra.get("flops", measured):
        return results
    print(
        f"{path}: {name} was trained again since; the card has no results. "
        "train.py --stage eval measures it",
        file=sys.stderr,
    )
    return {}


# ---------------------------------------------------------------- the text


def card_text(about):
    """The whole card."""
    blocks = [
        front_matter(about),
        f"# {title(about)}",
        introduction(about),
        "## How to load it",
        LOADING.replace("PROMPT", json.dumps(PROMPTS[is_builtin(about)])),
        *results_part(about),
        "## Data",
        data_part(about),
        "## Settings",
        settings_part(about),
    ]
    return "\n\n".join(blocks) + "\n"


def hub_name(about):
    """owner/model of the base model, where the settings name it so; else ""."""
    model = about.settings.get("model", "")
    if re.fullmatch(r"[\w-]+/[\w.-]+", model) and not os.path.exists(model):
        return model
    return SMOLLM2 if about.settings.get("preset") == "smollm2" and not model else ""


def is_builtin(about):
    """Was the base model trained here, on the built-in domain?"""
    return not about.source


def front_matter(about):
    """YAML between two rules; every value is written as JSON, which YAML reads."""
    fields = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    fields["tags"] = ["code", "python", "ra3"]
    if is_builtin(about):
        fields["license"] = "mit"
    elif hub_name(about) == SMOLLM2:
        fields["license"] = "apache-2.0"
    elif about.licence_file:
        fields |= {"license": "other", "license_name": "base-model"}
        fields["license_link"] = about.licence_file
    if hub_name(about):
        fields["base_model"] = hub_name(about)
    if scores := model_index(about):
        fields["model-index"] = scores
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def model_index(about):
    """Pass rates in the hub's form; [] without any."""
    result = about.results.get(about.name, {})
    metrics = [
        {"type": key, "value": round(result[key], 4), "name": title}
        for key, title, _ in CARD_FIGURES[:3]
        if isinstance(result.get(key), float)
    ]
    if not metrics:
        return []
    dataset = {"type": "ra3-domain", "name": "RA3's built-in domain, held-out tasks"}
    results = [
        {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics},
    ]
    return [{"name": about.name, "results": results}]


def title(about):
    base = hub_name(about).split("/")[-1] or os.path.basename(about.source.rstrip("/"))
    return f"{about.name}, from {base or 'a small model of the built-in domain'}"


def introduction(about):
    """What it is, how large, what it took."""
    text = (
        f"{about.kind}: a code model of {about.parameters / 1e6:,.1f} M parameters. "
        "RA3 (arXiv 2509.25810) learns before which lines a comment makes expert code likelier. "
        "Such a model may write a comment of its own before a line: a thought."
    )
    if about.flops and about.kind == BASE_KIND:
        text += f" Its training took {about.flops / 1e12:,.1f} TFLOP."
    elif about.flops:
        text += f" This took {about.flops / 1e12:,.1f} TFLOP, besides the base model's."
    if is_builtin(about):
        text += " It knows the built-in domain's small functions over lists of digits, no more."
    return text


def results_part(about):
    """A table of this model beside base and NTP of its run; nothing without figures."""
    names = [name for name in dict.fromkeys(["base", "ntp", about.name]) if name in about.results]
    if about.name not in names:
        return []
    lines = [["", *names], ["---"] * (len(names) + 1)]
    for key, title, form in CARD_FIGURES:
        cells = [card_cell(about.results[name], key, form) for name in names]
        if any(cell != "-" for cell in cells):
            lines.append([title, *cells])
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    seed = about.results[about.name].get("measured", {}).get("seed", "unknown")
    words = f"One run, of seed {seed}."
    if "intervals" in about.results[about.name]:
        words += (
            " Brackets: 95% intervals, of pass rates over held-out tasks, of the bounds over "
            "held-out snippets. What another seed would give is not in them."
        )
    if about.rounded:
        words += f" Measured before the weights were converted to {about.rounded}."
    return ["## Results", "\n".join(rows), words]


def card_cell(result, key, form):
    """Example: 0.5 with the interval [.4, .6] -> "0.500 [0.400, 0.600]" """
    if result.get(key) is None or key == "gain" and not result.get("think_share"):
        return "-"
    bounds = result.get("intervals", {}).get(key)
    text = form.format(result[key])
    return text + (f" [{', '.join(form.format(x) for x in bounds)}]" if bounds else "")


def data_part(about):
    """What it was trained on, and its licences."""
    if about.settings.get("data", "domain") == "domain":
        return "RA3's built-in domain: programs that the project's own code writes (MIT)."
    if not about.sources:
        return f"`{about.settings['data']}`; its sources' licences were not noted."
    rows = ["| source | version | licence | functions used |", "|---|---|---|---|"]
    for entry in about.sources:
        name = os.path.basename(str(entry.get("data", "")).rstrip("/"))
        cells = [entry.get("version", "-"), entry.get("licence", "not noted")]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} | {entry['counts']['kept']:,} |")
    if any(not entry.get("permissive") for entry in about.sources):
        rows += ["", "Not all of these licences are known to be permissive."]
    return "\n".join(rows)


def settings_part(about):
    """The settings that decide results and are not the preset's; of paths their last part."""
    preset = about.settings.get("preset", "tiny")
    try:
        usual = vars(make(preset))
    except UserError:
        usual = {}
    rows = []
    for field in dataclasses.fields(Config):
        value = about.settings.get(field.name, usual.get(field.name))
        if field.metadata["of"] and field.name != "data_dir" and usual.get(field.name) != value:
            shown = os.path.basename(value) if isinstance(value, str) and "/" in value else value
            rows.append(f"| {field.name} | `{shown}` |")
    if not rows:
        return f"Those of the preset `{preset}`."
    rows = ["| setting | value |", "|---|---|", *rows]
    return f"Those of the preset `{preset}`, but:\n\n" + "\n".join(rows)
