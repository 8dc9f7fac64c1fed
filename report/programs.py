"""Programs side by side: prompts, verdicts, the failing test, and the place of the fault."""

from benchmarks import suites
from config import Config, UserError, stages_of
from domain import domain_tasks
from report.faults import Examiner
from report.markup import disclosure, element, escape, paragraph, section
from report.results import title_of

PROGRAMS = 4  # problems that are shown, the first ones
FAILURES = 2  # and further ones that the last model fails
OPEN_PROBLEMS = 1  # of them unfolded

LEGEND = (
    "The likeliest program of each model for the same problem. Thoughts are marked. Of a program "
    "that failed: the test, what it gave instead, and the line to blame (✗): of an exception the "
    "one that was running, of a wrong answer on the built-in domain the first one unlike the "
    "expert's."
)


def programs_section(folder):
    """Programs of every suite that there are rows of; "" without any."""
    content = []
    for suite in dict.fromkeys(suite for _, suite in (*folder.programs, *folder.samples)):
        rows = programs_of(folder, suite)
        problems = problems_of(folder, suite, rows)
        with Examiner() as examiner:
            shown = [
                problem(name, problems.get(name), rows, examiner, number < OPEN_PROBLEMS)
                for number, name in enumerate(shown_problems(rows))
            ]
        content += [element("h3", escape(suite)), *shown]
    note = paragraph(LEGEND, "note")
    return section("programs", "Programs side by side", note, *content) if content else ""


def programs_of(folder, suite):
    """{model: {problem: its first program}}: greedy programs, or sampled ones where none are."""
    of_models = {}
    for rows in (folder.samples, folder.programs):
        for (model, name), programs in rows.items():
            if name == suite:
                of_models[model] = {row["task_id"]: row for row in reversed(programs)}
    names = [name for name in folder.models if name in of_models]
    return {name: of_models[name] for name in [*names, *sorted(set(of_models) - set(names))]}


def shown_problems(rows):
    """Names of the problems to show: the first ones, and some that the last model fails."""
    last = list(rows.values())[-1]
    names = list(reversed(last))
    failed = [name for name in names[PROGRAMS:] if last[name]["verdict"] != "passed"]
    return names[:PROGRAMS] + failed[:FAILURES]


def problems_of(folder, suite, rows):
    """{name: Task} of the problems that the programs are for; {} where they cannot be read."""
    if suite == "domain":
        measured = next(iter(folder.results.values()), {}).get("measured", folder.settings)
        try:
            asked = [measured[key] for key in ("seed", "eval_tasks", "eval_split")]
            tasks = domain_tasks(*asked, stages_of(str(measured.get("stages", Config.stages))))
        except (KeyError, UserError):
            return {}
    else:
        try:
            tasks = suites.load(suite, folder.settings.get("data_dir", ""))
        except UserError:
            return {}
    named = {task.name: task for task in tasks}
    return named if all(of_model.keys() <= named.keys() for of_model in rows.values()) else {}


def problem(name, task, rows, examiner, unfolded):
    """One problem and the programs of all models that tried it. task: None if it is not known."""
    programs = {model: of_model[name] for model, of_model in rows.items() if name in of_model}
    panels = [program_panel(model, row, task, examiner) for model, row in programs.items()]
    verdicts = [f"{title_of(model)} {verdict_in_words(row)}" for model, row in programs.items()]
    prompt = element("pre", escape(task.prompt), cls="prompt") if task else ""
    side = element("div", *panels, cls="side")
    return disclosure(f"{name}: {', '.join(verdicts)}", prompt, side, open=unfolded or None)


def verdict_in_words(row):
    """Example: {"verdict": "wrong_answer"} -> "wrong answer" """
    return str(row["verdict"]).replace("_", " ")


def program_panel(model, row, task, examiner):
    """One program, with what is wrong with it."""
    fault = examiner.fault(task, row) if task else None
    passed = row["verdict"] == "passed"
    verdict = element(
        "span", ("✓ " if passed else "✗ ") + escape(verdict_in_words(row)), cls="verdict"
    )
    heading = element("h4", escape(title_of(model)) + " ", verdict)
    program = element("pre", marked(row["completion"], fault.line if fault else None))
    cls = "passed" if passed else "failed"
    notes = [element("li", note) for note in fault_notes(fault)] if fault else []
    return element("article", heading, program, element("ul", *notes) if notes else "", cls=cls)


def marked(text, fault=None):
    """A program as HTML, its thoughts marked. fault: index of the line to blame.

    Example: "x = 1\\n# two" -> "x = 1\\n<mark># two</mark>"
    """
    lines = text.split("\n")
    shown = []
    for i, line in enumerate(lines):
        written = escape(line)
        if line.lstrip().startswith("#"):
            written = element("mark", written)
        if i == fault:
            written = element("span", written, " ✗", cls="fault")
        shown.append(written)
    return "\n".join(shown).strip("\n")


def fault_notes(fault):
    """What is wrong, as lines of HTML."""
    if fault.test:
        yield f"fails {element('code', escape(fault.test))}"
    if fault.value:
        yield f"gave {element('code', escape(fault.value))}"
    if fault.error and not fault.error.startswith("AssertionError"):
        yield escape(fault.error)
    if fault.expert:
        yield f"at ✗ the expert writes {element('code', escape(fault.expert))}"
