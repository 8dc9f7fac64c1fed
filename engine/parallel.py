"""Several processes that train one model, a GPU each: work is sharded, gradients are summed.

    torchrun --standalone --nproc_per_node=8 train.py --stage em                 (DDP)
    torchrun --standalone --nproc_per_node=8 train.py --stage em --shard true    (FSDP2)

With the first the model is replicated on every GPU, with the second each GPU has a shard of it.

Every rank knows the whole batch, because a batch is a function of (seed, stage, iteration, step),
and works on its shard: every world()-th row, snippet or problem (`shard`). Results go back to all
ranks, in the order of one process (`unshard`). So every rank computes the same baselines,
advantages and normalisers from the whole batch. The loss of a rank is its part of the sum that one
process would compute. The sum of the gradients is then the gradient, and one process and several
differ by rounding only.

1. Ranks may have different numbers of micro-batches, or none: `synced_batches` gives each as many
   as the one with the most, the missing ones with a loss of 0. DDP sums gradients in the last
   backward pass only; FSDP2 in each, because it stores no full gradient.
2. The head's weight is used outside of the model's forward pass. DDP allows that as long as every
   parameter gets a gradient. Under FSDP2 the head belongs to the outermost group, which stays
   gathered between forward and backward pass.
3. Sampling and frozen models (pi in the E-step, the start of RLVR) are replicated. FSDP2 shards the
   trained model: weights, gradients and the optimizer's state.
4. Checkpoints are those of one process: a run goes on with any number of ranks. The run's folder
   changes between two barriers only (`rank0_only`), so that all ranks find the same files in it.
   It must be one folder for all.

Without torchrun there is one rank, and nothing here does anything.
"""

import contextlib
import datetime
import functools
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from config import UserError, cores
from model import Transformer


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ---------------------------------------------------------------- processes


@contextlib.contextmanager
def ranks():
    """Wrap main() in this; nothing may run after it. Joins torchrun's process group.

    Only rank 0 prints. If ranks fail, only the first one prints its error; torchrun ends the rest.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    store, this_rank, count = next(dist.rendezvous("env://"))
    if this_rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=this_rank,
        world_size=count,
        timeout=datetime.timedelta(hours=2),  # a rank may wait so long for another's programs
    )
    try:
        yield
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # torch's threads have been seen to abort a process that ends as usual
    except SystemExit:
        raise
    except BaseException:
        if store.add("failed", 1) > 1:  # another rank prints its error, and torchrun ends all
            time.sleep(3)
            os._exit(1)
        sys.stderr = sys.__stderr__
        raise


def settle(cfg):
    """Put this rank's GPU and its share of the cores into the settings. Raises UserError."""
    if world() == 1:
        return
    local = int(os.environ["LOCAL_WORLD_SIZE"])  # ranks of this machine
    if cfg.device in ("auto", "cuda") and torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if gpus < local:
            raise UserError(
                f"--device {cfg.device}: {local} ranks, and {gpus} GPUs here; "
                "start as many ranks as there are GPUs, or give --device cpu"
            )
        cfg.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(cfg.device)
    elif cfg.device not in ("auto", "cuda", "cpu"):
        raise UserError(
            f"--device {cfg.device}: every rank takes a GPU of its own; expected auto, cuda or cpu"
        )
    cfg.threads = cfg.threads or workers()


def workers():
    """Programs that this rank grades at once: its share of the cores."""
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1
    return max(1, cores() // local)


def rank0_only(write):
    """Decorator: rank 0 calls it, the others wait, before and after. Its result is None."""

    @functools.wraps(write)
    def on_rank0(*args, **keywords):
        all_gather(None)
        if rank() == 0:
            write(*args, **keywords)
        all_gather(None)

    return on_rank0


# ---------------------------------------------------------------- shards of the work


def shard(xs):
    """This rank's shard of a list or of the rows of a tensor.

    Example, rank 1 of 3: [a, b, c, d, e] -> [b, e]
    """
    return xs[rank() :: world()]


def shard_block(xs):
    """The same, of neighbours.   Example, rank 1 of 3: [a, b, c, d, e] -> [c, d]"""
    begin = len(xs) * rank() // world()
    end = len(xs) * (rank() + 1) // world()
    return xs[begin:end]


def all_gather(x):
    """The values that the ranks pass, by rank: a list. Anything that can be pickled."""
    if world() == 1:
        return [x]
    values = [None] * world()
    dist.all_gather_object(values, x)
    return values


def unshard(xs):
    """The lists of all ranks as one, in the order before `shard`.

    Example, 2 ranks: [a, c], [b] -> [a, b, c]
    """
    shards = all_gather(xs)
    merged = [None] * sum(map(len, shards))
    for r, values in enumerate(shards):
        merged[r :: len(shards)] = values
    return merged


# ---------------------------------------------------------------- the model


class Replicated(DistributedDataParallel):
    """DistributedDataParallel that has what its model has: cfg, head_weight, ..."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def wrap(model, shard=False):
    """Wrap a model for DDP, or shard it for FSDP2, before its optimizer is made.

    Use the result in place of the model.
    """
    if world() == 1:
        return model
    if not shard:
        model = Replicated(model, gradient_as_bucket_view=True)
        # the rotary tables never change; as an argument its name depends on torch's version
        model.broadcast_buffers = False
        return model
    from torch.distributed.device_mesh import init_device_mesh  # loading it takes a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    return model


def is_sharded(x):
    """Is it a DTensor, of which every rank has a shard?"""
    return hasattr(x, "full_tensor")


def unwrap(model):
    """A plain Transformer with the weights of a wrapped one; all ranks must call it."""
    if not any(is_sharded(p) for p in model.parameters()):
        return model.module if isinstance(model, Replicated) else model
    with torch.device("meta"):  # nothing is allocated or drawn
        plain = Transformer(model.cfg)
    weights = {name: w.full_tensor() for name, w in model.state_dict().items()}
    plain.load_state_dict(weights, assign=True)
    plain.cos = model.cos
    plain.sin = model.sin
    return plain


def state(x):
    """The state_dict of a model or an optimizer as one process has it; all ranks must call it.

    Of sharded tensors only rank 0 gets the values.
    """

    def full(value):
        if isinstance(value, dict):
            return {key: full(v) for key, v in value.items()}
        if is_sharded(value):
            value = value.full_tensor()
            return None if rank() else value.cpu()
        return value

    return full((x.module if isinstance(x, Replicated) else x).state_dict())


def restore_optimizer(opt, saved):
    """Load into an optimizer what `state` returned, with any number of ranks."""
    params = [p for group in opt.param_groups for p in group["params"]]

    def sharded(value, p):
        if not (is_sharded(p) and value.shape == p.shape):
            return value
        from torch.distributed.tensor import distribute_tensor

        value = value.to(p.device)
        return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)

    states = {
        i: {key: sharded(value, params[i]) for key, value in values.items()}
        for i, values in saved["state"].items()
    }
    opt.load_state_dict({**saved, "state": states})


# ---------------------------------------------------------------- gradients


def synced_batches(model, batches):
    """Go through this rank's micro-batches. After the last, gradients are summed over ranks.

    Each needs one forward pass of the wrapped model and one `backward` of its loss; or, without
    gradients, one forward pass.
    """
    count = max(all_gather(len(batches)))
    for k in range(count):
        waits = isinstance(model, Replicated) and k + 1 < count
        with model.no_sync() if waits else contextlib.nullcontext():
            if k < len(batches):
                yield batches[k]
            else:
                zero_backward(model)


def zero_backward(model):
    """Forward and backward pass of a loss of 0 that every parameter takes part in."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    hidden = model(ids)  # (1, 1, D)
    loss = 0 * (hidden @ model.head_weight[:1].T).sum()
    if loss.requires_grad:
        backward(loss)


def backward(loss):
    """Gradients of this rank's part of a loss.

    DDP and FSDP2 take the mean over ranks, and the loss of the batch is the sum.
    """
    (loss * world()).backward()


def clip(model, max_norm):
    """Clip the gradient of all ranks to a norm -> the norm before, a tensor."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if is_sharded(norm) else norm
