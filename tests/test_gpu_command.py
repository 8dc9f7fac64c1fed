"""python -m speed gpu: its stages at their smallest, what is told of faults, and what travels."""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest
import torch

import logprobs
import pretended_cuda
from config import UserError
from engine import machine
from speed import __main__ as speed_command
from speed import ceilings, gpu, midtrain, pack, parity

torch.set_num_threads(1)


def rows(out, name):
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def run_stage(folder, letter, device="cpu", seconds=60.0, packed=None):
    """A stage in this process -> (whether it ended well, its folder of results)."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    work = folder / "work"
    ends = time.monotonic() + seconds
    job = gpu.StageJob(out, work, packed, device, True, "false", ends)
    return gpu.run_stage(gpu.STAGES[letter], job), out


# ---------------------------------------------------------------- stages


def test_ceilings(tmp_path):
    ended, out = run_stage(tmp_path, "a")
    assert ended and [row["what"] for row in rows(out, "ceilings")][0] == "machine"
    product = next(row for row in rows(out, "ceilings") if row["what"].startswith("product"))
    assert product["bfloat16"] > 0 and product["float32"] > 0


def test_domain(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LONGER", 1e9)  # no time for longer programs
    monkeypatch.setattr(gpu, "TINY_DOMAIN", [*gpu.TINY_DOMAIN, "--report", "false"])
    ended, out = run_stage(tmp_path, "d")
    lines = rows(out, "domain")
    assert ended and [row["model"] for row in lines] == ["base", "ntp", "ra3"]
    assert all(row["seconds"] > 0 and row["elbo"] < 0 for row in lines)


def test_midtrain(tmp_path):
    """Every model is trained and measured; equal tokens and more compute are what they say."""
    ended, out = run_stage(tmp_path, "e")
    lines = rows(out, "midtrain")
    assert ended and not [row for row in lines if "error" in row]
    trained = {row["model"]: row for row in lines if row["what"] == "training"}
    assert not list((tmp_path / "work").rglob("*.pt"))
    assert set(trained) == {"base", "ntp"} | {
        prefix + name for name in ("ra3", "best-of-n", "hindsight") for prefix in ("", "ntp-as-")
    }
    tokens = [trained[name]["mstep_tokens"] for name in ("ntp", "ra3", "best-of-n")]
    assert max(tokens) <= 1.1 * min(tokens)
    assert trained["ntp-as-ra3"]["tflop"] > 1.2 * trained["ntp"]["tflop"]
    for what in ("held out", "domain"):
        assert {row["model"] for row in lines if row["what"] == what} == set(trained)


@pytest.mark.slow
def test_rates(tmp_path):
    ended, out = run_stage(tmp_path, "c")
    assert ended and not (out / "rates.traceback").exists()
    groups = {row["group"] for row in json.loads((out / "rates.json").read_text())["rows"]}
    assert groups == {group.__name__ for group in gpu.card.ROWS} - {"grpo_on_card"}


def few_checks(monkeypatch, **more):
    """Only two of the checks, and others."""
    checks = {name: parity.CHECKS[name] for name in ("logits", "rollouts")}
    monkeypatch.setattr(parity, "CHECKS", {**checks, **more})


def test_parity_sees_a_wrong_number_and_goes_on(tmp_path, monkeypatch):
    """One check agrees, one number is off, one check fails, and the last one agrees again."""
    few_checks(monkeypatch)
    expected = parity.cpu_references()
    expected["logits"]["logits"][5] += 1.0
    packed = tmp_path / "packed"
    packed.mkdir()
    torch.save({**expected, "broken": {}}, packed / parity.FILE)

    def broken(world, device):
        raise RuntimeError("no kernel")

    few_checks(monkeypatch, broken=parity.Check(broken), other=parity.Check(broken))
    job = gpu.StageJob(tmp_path, tmp_path / "work", packed, "cpu", True, "false")
    assert gpu.run_stage(gpu.STAGES["b"], job)
    agrees = {
        (row["check"], row.get("quantity")): row.get("agrees") for row in rows(tmp_path, "parity")
    }
    assert agrees == {
        ("logits", "tokens"): True,
        ("logits", "logits"): False,
        **{("rollouts", quantity): True for quantity in expected["rollouts"]},
        ("broken", None): False,
        ("other", None): None,
    }
    assert "RuntimeError: no kernel" in (tmp_path / "parity.traceback").read_text()


def test_differences():
    ids = torch.tensor([1, 2, 3, 4])
    assert parity.difference(ids, torch.tensor([1, 2, 3, 5])) == 0.25
    assert parity.difference(ids, ids[:3]) == float("inf")
    assert parity.difference(torch.tensor([3.0]), torch.tensor([4.0])) == 0.25
    assert parity.difference(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
    nan = torch.tensor([1.0, float("nan")])
    assert parity.difference(nan, nan) == 0.0
    assert parity.difference(nan, torch.tensor([1.0, 2.0])) == float("inf")


def test_a_failed_stage_leaves_its_traceback(tmp_path, monkeypatch):
    def fails(job):
        raise ZeroDivisionError("so")

    monkeypatch.setitem(gpu.STAGES, "a", gpu.Stage("ceilings", 0.1, fails))
    ended, out = run_stage(tmp_path, "a")
    assert not ended and "ZeroDivisionError: so" in (out / "ceilings.traceback").read_text()


def test_a_step_that_fails_is_told_in_the_end(tmp_path, monkeypatch):
    """The others go on; then the stage has failed, and both tracebacks are there."""

    def run_all(self):
        self.step("ra3", "training", lambda: 1 / 0)
        self.step("ntp", "training", lambda: {"tflop": 1.0})

    monkeypatch.setattr(midtrain.Round, "run_all", run_all)
    ended, out = run_stage(tmp_path, "e")
    first, second = rows(out, "midtrain")
    assert not ended and "ZeroDivisionError" in first["error"] and second["tflop"] == 1.0
    assert second["device"] == "cpu" and second["tiny"]  # what it was measured on
    text = (out / "midtrain.traceback").read_text()
    assert "ZeroDivisionError" in text and "1 steps failed" in text


# ---------------------------------------------------------------- on a GPU that is not there


def on_pretended_gpu(folder, letter, monkeypatch, packed=None):
    """A stage on it -> (whether it ended well, its folder of results). Its events have no clock."""
    for module in (ceilings, machine):
        monkeypatch.setattr(module, "device_seconds", lambda f, *_: machine.timed(f)[0])
    with pretended_cuda.on():
        return run_stage(folder, letter, "cuda", packed=packed)


def test_parity_on_a_gpu(tmp_path, monkeypatch):
    """Rollouts and a GRPO step by graphs and without; the references are of the CPU."""
    few_checks(monkeypatch, **{"GRPO step": parity.CHECKS["GRPO step"]})
    monkeypatch.setattr(logprobs, "COMPILE", False)
    torch.save(parity.cpu_references(), tmp_path / parity.FILE)
    ended, out = on_pretended_gpu(tmp_path, "b", monkeypatch, packed=tmp_path)
    lines = rows(out, "parity")
    assert ended and {row["check"] for row in lines} == set(parity.CHECKS)
    assert [row for row in lines if not row["agrees"]] == []
    assert any(row["difference"] > 0 for row in lines)  # it is not the CPU's code


@pytest.mark.slow
def test_all_of_parity_on_a_gpu(tmp_path, monkeypatch):
    checks = {name: check for name, check in parity.CHECKS.items() if name != "SmolLM2"}
    monkeypatch.setattr(parity, "CHECKS", checks)
    monkeypatch.setattr(logprobs, "COMPILE", False)
    torch.save(parity.cpu_references(), tmp_path / parity.FILE)
    ended, out = on_pretended_gpu(tmp_path, "b", monkeypatch, packed=tmp_path)
    lines = rows(out, "parity")
    assert ended and len(lines) > 25 and [row for row in lines if not row["agrees"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("letter", "acde")
def test_other_stages_on_a_gpu(tmp_path, monkeypatch, letter):
    ended, out = on_pretended_gpu(tmp_path, letter, monkeypatch)
    assert ended and not list(out.glob("*.traceback"))


# ---------------------------------------------------------------- the runner


def test_time_that_is_left_goes_on():
    ends = gpu.shares("abcde", 540.0)
    assert ends["e"] == pytest.approx(540) and list(ends.values()) == sorted(ends.values())
    assert gpu.shares("ab", 100.0) == pytest.approx({"a": 25.0, "b": 100.0})


def test_the_next_stage_follows_a_late_and_a_failed_one(tmp_path, monkeypatch):
    """A late one has failed if it has no result."""
    late = "import time; print('begun', flush=True); time.sleep(60)"
    result = f"open('{tmp_path}/NAME.jsonl', 'w').write('{{}}'); "
    scripts = {
        "a": result.replace("NAME", "ceilings") + late,
        "b": "raise SystemExit(3)",
        "c": result.replace("NAME", "rates") + "print('well')",
        "d": late,
    }
    monkeypatch.setattr(gpu, "GRACE", 0.2)
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    monkeypatch.setattr(gpu, "shares", lambda letters, seconds: {"a": 1, "b": 20, "c": 40, "d": 3})
    monkeypatch.setattr(
        gpu, "command_of", lambda letter, *_: [sys.executable, "-c", scripts[letter]]
    )
    with pytest.raises(SystemExit, match="gpu: parity, domain failed: see the logs"):
        gpu.main(["--only", "a,b,c,d", "--device", "cpu", "--out", str(tmp_path)])
    statuses = [row["status"] for row in rows(tmp_path, "stages")]
    assert statuses == ["ended late", "failed (3)", "ok", "ended late"]
    assert (tmp_path / "ceilings.log").read_text() == "begun\n"
    assert (tmp_path / "rates.log").read_text() == "well\n"


@pytest.mark.parametrize("argv", [["--only", "a,x"], ["--skip", "a,b,c,d,e"], ["--packed", "none"]])
def test_mistakes_are_one_line(tmp_path, argv):
    with pytest.raises(SystemExit) as stop:
        gpu.main([*argv, "--out", str(tmp_path)])
    assert ": " in stop.value.code and "\n" not in stop.value.code


MISTAKES = {
    "--device auto: expected a GPU, found none": [],
    "--device cuda:1: expected a GPU, found none": ["--device", "cuda:1"],
    "--device nothing: not available here": ["--device", "nothing"],
    "--minutes ten: expected a number of at least 0.5": ["--minutes", "ten"],
    "--minutes 0: expected": ["--minutes", "0"],
    "--minutes nan: expected": ["--minutes", "nan"],
    "'z': no such stage": ["--process", "z"],
    "--out .*file: expected a folder to write to, but File exists": ["--tiny", "--out", "file"],
    "--out .*sub: expected a folder to write to, but Not a dir": ["--tiny", "--out", "file/sub"],
    "--pack .*file: expected a folder to write to": ["--pack", "file"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_starts_no_stage(tmp_path, monkeypatch, message):
    def never(*words):
        raise AssertionError("a stage began")

    monkeypatch.setattr(gpu, "wait_for", never)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=message) as stop:
        gpu.main(MISTAKES[message])
    assert "\n" not in stop.value.code and os.listdir(tmp_path) == ["file"]


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda", "cuda:1"):
        gpu.check_device(gpu.gpu_options(["--device", name]))
    with pytest.raises(UserError, match="cuda:2: expected a GPU, found cuda, cuda:0, cuda:1"):
        gpu.check_device(gpu.gpu_options(["--device", "cuda:2"]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_no_stage_outlives_the_command(tmp_path, monkeypatch, number):
    script = f"import os, time; os.mkdir('{tmp_path}/' + str(os.getpid())); time.sleep(60)"
    words = [sys.executable, "-c", script]
    monkeypatch.setattr(gpu, "command_of", lambda *_: words)

    def end():
        while not any(tmp_path.glob("[0-9]*")):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # which pytest may ignore, under nohup
    waiting = threading.Thread(target=end)
    waiting.start()
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--only", "a", "--device", "cpu", "--out", str(tmp_path)])
    waiting.join()
    assert signal.signal(number, before) == signal.SIG_DFL
    assert stop.value.code == 128 + number
    (pid,) = [int(path.name) for path in tmp_path.glob("[0-9]*")]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_the_command_as_a_rehearsal(tmp_path):
    """All stages, each in its process."""
    gpu.main(["--tiny", "--device", "cpu", "--minutes", "9", "--out", str(tmp_path)])
    assert [row["status"] for row in rows(tmp_path, "stages")] == ["ok"] * 5
    assert all(row["agrees"] for row in rows(tmp_path, "parity") if "agrees" in row)
    assert (tmp_path / "runs" / "domain-em" / "metrics.jsonl").exists()
    assert not list(pathlib.Path(tmp_path).rglob("*.pt"))


def test_a_table_of_results_that_are_not_there(tmp_path):
    """A name is a machine that was not measured; a file must be there, and hold results."""
    assert speed_command.markdown_results(["H200"]) == "| row | H200 |\n|---|---|"
    path = tmp_path / "rates.json"
    with pytest.raises(UserError, match="rates.json: expected a file of results"):
        speed_command.markdown_results([str(path)])
    for text in ("", "[]", "7", '{"rows": []}'):
        path.write_text(text)
        expected = "expected a file of results" if "rows" in text else "cannot be read as a JSON"
        with pytest.raises(UserError, match=f"rates.json: {expected}"):
            speed_command.markdown_results([str(path)])


# ---------------------------------------------------------------- what travels


def a_pack(folder):
    """A pack of three parts, made of a file of 250 bytes and a package."""
    content = folder / "content"
    (content / "packages" / "carried_along").mkdir(parents=True)
    (content / "packages" / "carried_along" / "__init__.py").write_text("NUMBER = 7\n")
    (content / "corpus.bin").write_bytes(bytes(range(250)))
    archive = folder / "pack.tar"
    with pack.tarfile.open(archive, "w") as tar:
        tar.add(content, ".")
    out = folder / "pack"
    out.mkdir()
    parts = pack.cut_in_parts(archive, out, archive.stat().st_size // 3 + 1)
    (out / pack.LIST).write_text(json.dumps({"parts": parts}))
    return out


def test_parts_are_joined(tmp_path, monkeypatch):
    out = a_pack(tmp_path)
    assert len(list(out.glob("part-*"))) == 3
    pack.unpack(out)
    assert (out / pack.JOINED / "corpus.bin").read_bytes() == bytes(range(250))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pack.use(out / pack.JOINED)
    import carried_along

    assert carried_along.NUMBER == 7
    (out / "part-00").unlink()
    pack.unpack(out)  # joined already: nothing is read


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_part_that_is_not_what_it_was(tmp_path, damage):
    out = a_pack(tmp_path)
    if damage == "missing":
        (out / "part-01").unlink()
    else:
        content = (out / "part-01").read_bytes()
        (out / "part-01").write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="part-01: "):
        pack.unpack(out)
    assert not (out / pack.JOINED).exists()


@pytest.mark.parametrize("text", ["", '{"parts": [{"na', "[]", '{"parts": [{"name": "part-00"}]}'])
def test_a_list_that_is_damaged(tmp_path, text):
    (tmp_path / pack.LIST).write_text(text)
    with pytest.raises(UserError, match="pack.json: expected the list that --pack writes"):
        pack.unpack(tmp_path)


def test_data_that_is_named_must_be_there(tmp_path, monkeypatch):
    """A slip is told here, and not on the lent machine by a stage that has no corpus."""

    def missing(**arguments):
        raise UserError(f"--data {arguments['spec']}: not here")

    monkeypatch.setattr(pack, "tokenizer_of", lambda cfg: None)
    monkeypatch.setattr(pack, "arguments_of", lambda cfg, tok: {"spec": cfg.data})
    monkeypatch.setattr(pack, "prepare_corpus", missing)
    pack.gather_corpus(tmp_path, pack.DATA, "")
    with pytest.raises(UserError, match="--data my/projct: not here"):
        pack.gather_corpus(tmp_path, "my/projct", "")


def test_the_references_travel(tmp_path, monkeypatch):
    few_checks(monkeypatch)
    pack.write_pack(tmp_path, "stdlib", tiny=True)
    pack.unpack(tmp_path)
    found = torch.load(tmp_path / pack.JOINED / parity.FILE, weights_only=True)
    assert set(found) == {"logits", "rollouts"}
