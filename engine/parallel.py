"""Several processes that train one model, a GPU each: the work is cut into shares, the gradients are summed, and rank 0 keeps the books.

    torchrun --standalone --nproc_per_node=8 train.py --stage em                      a whole model on every GPU (DistributedDataParallel)
    torchrun --standalone --nproc_per_node=8 train.py --stage em --shard true         a share of it on every GPU (FSDP2, fully_shard)

Every rank knows the whole batch, because a batch is a function of (seed, stage, iteration, step), and works on its share: every world()-th row,
snippet or problem (`shard`). What the ranks find goes back to all of them, in the order of one process (`unshard`), so that every rank computes the same
baselines, advantages and normalisers from the whole batch. The loss of a rank is its part of the sum that one process would compute; the sum of the
gradients is then the gradient, and one process and several differ by rounding only.

1. Ranks may have different numbers of micro-batches, or none: `synced_batches` gives each as many as the one with the most, the missing ones with a loss of 0.
   DDP sums gradients during the last turn's backward only; FSDP2 in each, because it keeps no whole gradient.
2. The head's weight is used outside of the model's forward. DDP does not mind as long as every parameter gets a gradient; under FSDP2 the head
   belongs to the outermost group, which stays whole between forward and backward.
3. What samples and scores is a whole model on every rank, and so is what is frozen (pi in the E-step, the start of RLVR). FSDP2 shares out what is
   trained: weights, gradients and the optimizer's state.
4. Checkpoints are whole, and those of one process: a run goes on with any number of ranks. The run's folder changes between two barriers only
   (`rank0_only`), so that all ranks find the same files in it; it must be one folder for all.

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
    return dist.get_world_size() if dist.is_initialized() else 1


# ---------------------------------------------------------------- the processes


@contextlib.contextmanager
def ranks():
    """Around the whole program, with nothing after it: join the ranks that torchrun started. Only rank 0 is heard; of ranks that fail, the first.
    torchrun ends the others."""
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    store, me, count = next(dist.rendezvous("env://"))
    if me:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=me,
        world_size=count,
        timeout=datetime.timedelta(hours=2),
    )  # one rank may wait so long for another's programs
    try:
        yield
        dist.barrier()
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(
            0
        )  # torch's threads have been seen to abort a process that ends in the ordinary way
    except SystemExit:
        raise
    except BaseException:
        if (
            store.add("failed", 1) > 1
        ):  # another one is saying why; torchrun ends all once one has ended
            time.sleep(3)
            os._exit(1)
        sys.stderr = sys.__stderr__
        raise


def settle(cfg):
    """Put this rank's GPU and its share of the cores into the settings. Raises UserError."""
    if world() == 1:
        return
    here = int(os.environ["LOCAL_WORLD_SIZE"])  # ranks of this machine
    if cfg.device in ("auto", "cuda") and torch.cuda.is_available():
        if torch.cuda.device_count() < here:
            raise UserError(
                f"--device {cfg.device}: {here} ranks, and {torch.cuda.device_count()} GPUs here; start as many ranks as there are GPUs, or "
                "give --device cpu"
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
    return max(1, cores() // (int(os.environ["LOCAL_WORLD_SIZE"]) if world() > 1 else 1))


def rank0_only(write):
    """Decorator: rank 0 calls it, the others wait, before and after. Its result is None."""

    @functools.wraps(write)
    def by_one(*args, **keywords):
        all_gather(None)
        if rank() == 0:
            write(*args, **keywords)
        all_gather(None)

    return by_one


# ---------------------------------------------------------------- shares of the work


def shard(xs):
    """This rank's share of a list or of a tensor's rows. Example, rank 1 of 3: [a, b, c, d, e] -> [b, e]"""
    return xs[rank() :: world()]


def shard_block(xs):
    """The same, of neighbours. Example, rank 1 of 3: [a, b, c, d, e] -> [c, d]"""
    bounds = [len(xs) * r // world() for r in (rank(), rank() + 1)]
    return xs[bounds[0] : bounds[1]]


def all_gather(x):
    """What each rank gives, by rank. Anything that can be pickled."""
    if world() == 1:
        return [x]
    found = [None] * world()
    dist.all_gather_object(found, x)
    return found


def unshard(xs):
    """The lists of all ranks as one, in the order that `shard` cut. Example, 2 ranks: [a, c], [b] -> [a, b, c]"""
    parts = all_gather(xs)
    whole = [None] * sum(map(len, parts))
    for r, part in enumerate(parts):
        whole[r :: len(parts)] = part
    return whole


# ---------------------------------------------------------------- the model


class Replicated(DistributedDataParallel):
    """DistributedDataParallel that has what its model has: cfg, head_weight, ..."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def wrap(model, shard=False):
    """The model as all ranks train it, before its optimizer is made; what comes back takes its place."""
    if world() == 1:
        return model
    if not shard:
        model = Replicated(model, gradient_as_bucket_view=True)
        model.broadcast_buffers = False  # the rotary tables never change; as an argument its name depends on torch's version
        return model
    from torch.distributed.device_mesh import (
        init_device_mesh,
    )  # here and below: loading them takes a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh)
    return model


def is_shared(x):
    """Is it a DTensor, of which every rank has a part?"""
    return hasattr(x, "full_tensor")


def unwrap(model):
    """A Transformer of this rank alone with the weights of one that was spread; all ranks must ask for it."""
    if any(is_shared(p) for p in model.parameters()):
        with torch.device("meta"):  # nothing is allocated or drawn
            one = Transformer(model.cfg)
        one.load_state_dict(
            {name: w.full_tensor() for name, w in model.state_dict().items()}, assign=True
        )
        one.cos, one.sin = model.cos, model.sin
        return one
    return model.module if isinstance(model, Replicated) else model


def state(x):
    """The state_dict of a model or an optimizer as one process would have it; all ranks must ask for it. Of what is shared out only rank 0 gets values."""

    def full(value):
        if isinstance(value, dict):
            return {key: full(v) for key, v in value.items()}
        if is_shared(value):
            value = value.full_tensor()
            return None if rank() else value.cpu()
        return value

    return full((x.module if isinstance(x, Replicated) else x).state_dict())


def restore(opt, saved):
    """Load into an optimizer what `state` gave, with any number of ranks."""
    params = [p for group in opt.param_groups for p in group["params"]]

    def cut(value, p):
        if is_shared(p) and value.shape == p.shape:
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(
                value.to(p.device), p.device_mesh, p.placements, src_data_rank=None
            )
        return value

    opt.load_state_dict(
        {
            **saved,
            "state": {
                i: {key: cut(v, params[i]) for key, v in of.items()}
                for i, of in saved["state"].items()
            },
        }
    )


# ---------------------------------------------------------------- gradients


def synced_batches(model, parts):
    """Go through this rank's micro-batches; after the last, the gradients are those of all ranks' losses together. Each needs one forward of the spread
    model and one `backward` of its loss, or, without gradients, one forward."""
    most = max(all_gather(len(parts)))
    for k in range(most):
        with (
            model.no_sync()
            if isinstance(model, Replicated) and k + 1 < most
            else contextlib.nullcontext()
        ):
            if k < len(parts):
                yield parts[k]
            else:  # a loss of 0 that every parameter takes part in
                hidden = model(
                    torch.zeros(1, 1, dtype=torch.int64, device=model.device)
                )  # (1, 1, D)
                loss = 0 * (hidden @ model.head_weight[:1].T).sum()
                if loss.requires_grad:
                    backward(loss)


def backward(loss):
    """Gradients of this rank's part of a loss. DDP and FSDP2 take the mean over ranks, and the whole loss is the sum."""
    (loss * world()).backward()


def clip(model, largest):
    """Clip the gradient of all ranks to a norm -> the norm before, a tensor."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
    return norm.full_tensor() if is_shared(norm) else norm
