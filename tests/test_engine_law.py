"""Nothing in engine/ may change a result: what others use of it has a plain twin.

`TWINS` names the test that holds the two equal. A function without an entry fails here.
"""

import ast
import pathlib

import numpy as np
import pytest
import torch

from engine import packing
from engine.layers import scoring_head, stacked_head, stacked_layers, stacked_linear
from engine.reader import device_batches, length_batches
from engine.rollouts import EVENT, Rollouts, Row, merge, split
from logprobs import token_logprobs
from model import ModelConfig, Transformer

ROOT = pathlib.Path(__file__).parent.parent
EXACT = "test_parallel.py::test_gradients_of_uneven_shares"  # two ranks are one
TWO_RANKS = "test_parallel.py::test_em_with_two_ranks"

TWINS = {  # function of engine/ -> the test that holds it equal to its plain twin
    "decoder.Decoder": "test_sample.py::test_greedy_is_the_naive_loop",
    "decoder.decoder_for": "test_decoder.py::test_a_decoder_that_stays",
    "documents.Code": "test_mstep.py::test_a_corpus_is_read_as_it_is_needed",
    "documents.Written": "test_mstep.py::test_documents_on_disk",
    "documents.Batches": "test_interrupted.py::test_an_interrupted_infusion_goes_on",
    "documents.write_documents": "test_mstep.py::test_documents_on_disk",
    "documents.step_documents": "test_mstep.py::test_an_epoch_is_every_document_once",
    "gradients.ntp_gradient": "test_backend.py::test_em",
    "gradients.policy_gradient": "test_estep.py::test_gradient_by_definition",
    "gradients.score_completions": "test_rlvr.py::test_update_is_the_equation",
    "kernels.Rows": "test_sample.py::test_shapes_change_nothing",
    "kernels.step_attention": "test_sample.py::test_shapes_change_nothing",
    "layers.scoring_head": "test_engine_law.py::test_heads",
    "layers.stacked_layers": "test_engine_law.py::test_stacked_weights",
    "layers.stacked_model": "test_engine_law.py::test_stacked_weights",
    "layers.tensors_of": "test_decoder.py::test_a_decoder_that_stays",
    "machine.compile_blocks": "test_mstep.py::test_compiled_steps",
    "machine.download": "test_decoder.py::test_arrays_go_up_and_come_down",
    "machine.upload": "test_decoder.py::test_arrays_go_up_and_come_down",
    "optim.RoundedAdamW": "test_optim.py::test_a_step_is_that_of_adamw",
    "packing.hidden_before": "test_estep.py::test_sampled_is_scored",
    "packing.micro_batches": "test_mstep.py::test_any_size_of_micro_batch_gives_the_same_step",
    "packing.pack": "test_mstep.py::test_loss_of_packed_rows",
    "packing.pack_shared": "test_model.py::test_shared_beginnings_are_one_row_at_a_time",
    "packing.shared_parts": "test_engine_law.py::test_shared_parts",
    "parallel.all_gather": EXACT,
    "parallel.backward": EXACT,
    "parallel.clip": EXACT,
    "parallel.restore_optimizer": EXACT,
    "parallel.shard": EXACT,
    "parallel.shard_block": TWO_RANKS,
    "parallel.state": EXACT,
    "parallel.synced_batches": EXACT,
    "parallel.unshard": EXACT,
    "parallel.unwrap": EXACT,
    "parallel.wrap": EXACT,
    "reader.Reader": "test_estep.py::test_rollouts_are_sequential_sampling",
    "reader.device_batches": "test_engine_law.py::test_length_batches",
    "reader.length_batches": "test_engine_law.py::test_length_batches",
    "rollouts.draw_uniforms": "test_estep.py::test_rollouts_do_not_depend_on_the_batch",
    "rollouts.read_trunk": "test_estep.py::test_never_thinking",
    "rollouts.rollout": "test_estep.py::test_rollouts_by_definition",
    "rollouts.rollouts": TWO_RANKS,
    "sample.generate": "test_sample.py::test_recorded_logprobs",
    "training.adamw": "test_optim.py::test_training_goes_as_in_float32",
    "training.inference_copy": "test_rlvr.py::test_first_ratio_is_one",
    "training.prepare_training": "test_train.py::test_resume_is_exact",
}

NO_RESULT = {  # what computes nothing of a result: devices, clocks, records, text for people
    *("machine." + name for name in ("cpu_seconds", "device_of", "device_seconds", "graphs")),
    "machine.physical_memory",
    *("machine." + name for name in ("machine_rates", "set_up", "settle_memory")),
    *("machine." + name for name in ("compile_postfix", "compile_seconds")),
    *("machine." + name for name in ("rows_at_once", "steps_bar", "timed", "tokens_at_once")),
    *("parallel." + name for name in ("rank", "rank0_only", "ranks", "settle", "workers", "world")),
    *("plan." + name for name in ("card_named", "planned_device", "print_plan", "shape")),
    "machine.Rates",
    "plan.training_memory",
    "backend.Backend",
    "gradients.CompletionScores",
    "gradients.GradientStats",
    "rollouts.Rollouts",
    "rollouts.Row",
    "rollouts.rows_of_rollouts",
    "rollouts.begin_of",
    "sample.Completion",
    "training.learning_rate",
}


def definitions():
    """{module: public top-level names} of engine/."""
    names = {}
    for path in (ROOT / "engine").glob("*.py"):
        nodes = ast.parse(path.read_text()).body
        kinds = ast.FunctionDef, ast.ClassDef
        names[path.stem] = {n.name for n in nodes if isinstance(n, kinds) and n.name[0] != "_"}
    return names


def defined_names():
    """{"module.name"} of `definitions`."""
    return {f"{module}.{name}" for module, names in definitions().items() for name in names}


def used_names(tree):
    """{"module.name"} of engine/ that a file uses: imported, or as an attribute of a module."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("engine."):
            module = node.module.removeprefix("engine.")
            names |= {f"{module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{node.value.id}.{node.attr}")
    return names


def public_functions():
    """{"module.name"}: definitions of engine/ that another file uses, tests apart."""
    used = set()
    for path in ROOT.rglob("*.py"):
        folders = path.relative_to(ROOT).parts[:-1]
        if "tests" in folders or any(folder.startswith(".") for folder in folders):
            continue
        used |= used_names(ast.parse(path.read_text()))
    return defined_names() & used


def test_every_public_function_has_a_twin():
    public = public_functions()
    assert len(public) > 40
    assert public - TWINS.keys() - NO_RESULT == set(), "name the test that holds it, in TWINS"
    assert (TWINS.keys() | NO_RESULT) - defined_names() == set(), "it is not there any more"


@pytest.mark.parametrize("test", sorted(set(TWINS.values())))
def test_the_named_tests_are_there(test):
    file, name = test.split("::")
    nodes = ast.parse((ROOT / "tests" / file).read_text()).body
    assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_a_new_function_would_be_seen():
    tree = ast.parse("from engine.sample import generate\nparallel.clip(model, 1)")
    assert used_names(tree) == {"sample.generate", "parallel.clip"}


# ---------------------------------------------------------------- twins without a test elsewhere


@pytest.mark.parametrize("width", [32, 1024])  # the larger one is packed on a CPU
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_weights(width, bias):
    """Stacked products are those of the modules, for q, k, v and for gate, up."""
    cfg = ModelConfig(9, 1, 4, 2, width, 2 * width, 16, qkv_bias=bias)
    model = Transformer(cfg).init_weights(0)
    part = model.blocks[0]
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if bias:
            torch.nn.init.normal_(part.q.bias)
        (layer,) = stacked_layers(model)
        torch.testing.assert_close(
            layer.qkv(x), torch.cat((part.q(x), part.k(x), part.v(x)), -1), rtol=1e-5, atol=1e-5
        )
        for y, module in zip(layer.gate_up(x), (part.gate, part.up), strict=True):
            torch.testing.assert_close(y, module(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stacked_linear([part.o], torch.float32)(x), part.o(x))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads(tied, dtype):
    """Logits and log-probabilities of the fast paths are those of a head in float32."""
    cfg = ModelConfig(90, 1, 4, 2, 32, 48, 16, tied=tied)
    model = Transformer(cfg).init_weights(0).to(dtype)
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(70, 32, generator=gen).to(dtype)
    ids = torch.randint(90, (70,), generator=gen)
    with torch.no_grad():
        logits = hidden.float() @ model.head_weight.float().T  # (N, V)
        torch.testing.assert_close(stacked_head(model)(hidden), logits)
        logp = token_logprobs(hidden.float(), scoring_head(model), ids)[0]  # (N,)
        want = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(logp, want)


def test_length_batches():
    """Every row once, in batches of like length and bounded size."""
    rng = np.random.default_rng(0)
    for largest in (5, 60, 700):
        sizes = rng.integers(1, largest, 200)
        batches = list(length_batches(sizes, 512))
        assert sorted(np.concatenate(batches).tolist()) == list(range(200))
        for batch in batches:
            longest = sizes[batch].max()
            assert len(batch) == 1 or len(batch) * longest <= 512
            assert sizes[batch].min() >= min(longest - 16, 3 * longest // 4)
    sizes = np.array([10, 300, 290])
    for name, batches in (("cpu", [[1, 2], [0]]), ("cuda", [[1, 2, 0]])):
        assert [b.tolist() for b in device_batches(sizes, torch.device(name))] == batches


def test_shared_parts():
    """Every row once; a part packs to at most so many tokens, or is a single row."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 2, rng.integers(1, 30)).tolist() for _ in range(60)]
    parts = packing.shared_parts(rows, 40)
    assert sorted(i for part in parts for i in part) == list(range(60))
    for part in parts:
        tokens = packing.pack_shared([rows[i] for i in part])[0].numel()
        assert tokens <= 40 or len(part) == 1
    assert len(parts) < 30


def test_merge_is_the_inverse_of_split():
    rows = [Row(None, n // 2, (), [], [0], np.zeros(1), {}, np.zeros(1)) for n in range(6)]
    events = np.zeros(9, EVENT)
    events["row"] = [0, 0, 1, 2, 3, 3, 4, 5, 5]
    rolls = Rollouts(rows, 2, ["a", "b", "c"], events, np.arange(9.0), 7)
    parts = split(rolls)
    assert [p.events["row"].tolist() for p in parts] == [[0, 0, 1], [0, 1, 1], [0, 1, 1]]
    for row in rows:
        row.group = 0  # as in a batch of one snippet
    merged = merge(parts)
    assert (merged.events == events).all() and merged.logq.tolist() == rolls.logq.tolist()
    assert [row.group for row in merged.rows] == [0, 0, 1, 1, 2, 2]
    assert merged.base_logp == rolls.base_logp and merged.forward_tokens == 7
