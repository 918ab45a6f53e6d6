"""A pretend CUDA device: tensors that compute on the CPU and obey CUDA's rules about devices.

    with PretendGPU() as gpu:                       # torch.cuda.is_available() is True inside, an 80 GB card
        policy = common.load_policy("tiny", bits=16)  # 32, 16, 8 and 4 bits: bitsandbytes computes on the CPU
        with gpu.phase("sample"):
            common.sample(policy, ...)
    print(gpu.report())                             # mismatches, host synchronisations and kernels of each phase
    assert gpu.syncs["sample"].total() <= 3

Import everything that looks for CUDA while it is imported (transformers, peft, bitsandbytes) before entering.

Every storage carries a tag, on the card or not: views, detached copies and what autograd saves share storage, so they
share the tag, as they share a device on a real card. A TorchFunctionMode turns device="cuda" into a tag on the result
and makes .to() copy; a TorchDispatchMode sees each ATen operation, in backward too, raises RuntimeError where CUDA
would, and counts by phase and by source line
    syncs    operations that make the host wait for the device (.item(), .tolist(), .cpu(), nonzero, boolean indices)
    copies   copies of pageable host memory to the device, which wait for what the stream has to do
    kernels  operations that launch at least one kernel (views and metadata left out); a replayed graph is one
CUDA graphs are recorded and replayed as on a card: what runs inside torch.cuda.graph leaves no trace, an operation that
waits or copies is refused there, and a replay does the same operations on the same memory, whatever Python has done
since. What it cannot see: kernels that only CUDA has and how they round, memory, streams (there is one), C++ that asks
for a tensor's device, what happens inside an operation (bitsandbytes' own synchronisations), and threads other than the
one that entered (modes are thread-local; hence HF_DEACTIVATE_ASYNC_LOAD). A green run means that no tensor is on the
wrong device and nothing captured depends on the host, and no more.
"""
import contextlib
import functools
import os
import sys
from collections import Counter, defaultdict
from unittest import mock

import torch
from conftest import ROOT
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
BASE = torch._C.TensorBase
CUDA = torch.device("cuda", 0)
# look at values without an ATen operation
READS = {"tolist", "numpy", "__array__", "__repr__", "__format__", "__reduce_ex__"}
# the host needs a value, or the size of the result
WAIT = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
        aten._unique2, aten.unique_dim, aten.unique_consecutive}
FREE = {aten.detach, aten.detach_, aten.alias, aten.lift_fresh, aten.empty, aten.empty_like, aten.empty_strided,
        aten.new_empty, aten.new_empty_strided, aten.set_, aten.resize_, aten._unsafe_view, aten._reshape_alias,
        aten._local_scalar_dense}
MIXED = {aten.copy_, aten._to_copy, aten.set_}  # take tensors of several devices
INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


def tensors_in(tree):
    """The tensors in nested lists, tuples and dictionaries (with torch's own walk a load takes half as long again)."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [t for part in tree for t in tensors_in(part)]


def is_cuda(device):
    """Whether what was given as a device means the card; a bare number does."""
    return isinstance(device, int) or device is not None and str(device).startswith("cuda")


class PretendGPU(TorchDispatchMode):
    """Context manager, see above.  strict: raise at a mismatch, as CUDA does, or only count it in `mismatches`."""

    def __init__(self, total=80 * 2 ** 30, strict=True, own=ROOT):
        super().__init__()
        self.total, self.strict, self.own = total, strict, own
        self.tags, self.ambient, self.name, self.inside = {}, [], "other", False
        self.syncs, self.copies, self.kernels = (defaultdict(Counter) for _ in range(3))  # phase -> Counter
        self.mismatches, self.graph, self.strictly = Counter(), None, False  # graph: the one that is being captured

    # ------------------------------------------------------------------------------------------------ tags of storages
    def storage(self, tensor):
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage()

    def on(self, tensor):
        """Whether a tensor is on the card."""
        try:
            return self.storage(tensor)._cdata in self.tags
        except (NotImplementedError, RuntimeError):  # meta and sparse tensors have no storage
            return False

    def tag(self, tree):
        for tensor in tensors_in(tree):
            if BASE.device.__get__(tensor).type == "cpu":
                storage = self.storage(tensor)
                self.tags[storage._cdata] = StorageWeakRef(storage)  # the address is not used again while there is one
                if len(self.tags) % 4096 == 0:
                    self.tags = {c: ref for c, ref in self.tags.items() if not ref.expired()}
        return tree

    # ---------------------------------------------------------------------------------------------------------- counts
    @contextlib.contextmanager
    def phase(self, name):
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before

    def refuse(self, mode):
        """torch.cuda.set_sync_debug_mode: whether a host that waits is an error."""
        self.strictly = mode == "error"

    def count(self, counters, what):
        if self.strictly and not self.graph:
            raise RuntimeError(f"called a synchronizing CUDA operation: {self.where()} {what}")
        if self.graph:
            raise RuntimeError(f"operation not permitted when stream is capturing: {self.where()} {what}")
        counters[self.name][f"{self.where()} {what}"] += 1

    def where(self):
        """"line of the project <- innermost line outside torch", or one of them where they are the same."""
        frame, inner, mine = sys._getframe(1), None, None
        while frame and not mine:
            path = frame.f_code.co_filename
            if path != __file__ and "/torch/" not in path and not path.startswith("<"):
                inner = inner or "/".join(path.split("/")[-2:]) + f":{frame.f_lineno}"
                if path.startswith(self.own):
                    mine = f"{os.path.basename(path)}:{frame.f_lineno}"
            frame = frame.f_back
        return mine if mine and inner.endswith(mine) else f"{mine} <- {inner}"

    def report(self):
        lines = [f"{count} x {what}" for what, count in self.mismatches.items()] or ["no device mismatch"]
        for phase in self.kernels:
            lines.append(f"{phase}: {self.kernels[phase].total()} kernels, {self.syncs[phase].total()} syncs, "
                         f"{self.copies[phase].total()} host-to-device copies")
            for kind, counts in (("sync", self.syncs[phase]), ("copy", self.copies[phase])):
                lines += [f"    {kind} {count:6} {what}" for what, count in counts.most_common()]
        return "\n".join(lines)

    def mismatch(self, text):
        self.mismatches[f"{text} at {self.where()}"] += 1
        if self.strict:
            raise RuntimeError(f"Expected all tensors to be on the same device: {text}")

    # -------------------------------------------------------------------------------------------- every ATen operation
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = kwargs or {}, func.overloadpacket
        tensors = tensors_in((args, kwargs))
        there = [self.on(t) for t in tensors]
        gpu = any(there)
        if is_cuda(kwargs.get("device")):  # the function mode is off inside torch's own Python functions
            if packet is aten._to_copy and not gpu:
                self.count(self.copies, "to")
            gpu, kwargs = True, {**kwargs, "device": torch.device("cpu")}
        if gpu and packet not in MIXED:
            self.check(func, packet, args, tensors, there)
        if packet is aten.histc and gpu and not args[0].is_floating_point():
            # CUDA counts whole numbers, the CPU does not
            args = args[0].double(), *args[1:]
        if self.graph:
            self.graph.before(func, args, kwargs)
        self.inside = func.namespace != "aten"  # kernels in Python (bitsandbytes) really are on the CPU
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside = False
        if self.graph:
            self.graph.record(func, args, kwargs, out)
        if packet is aten.copy_:
            gpu = there[0]
            if gpu != there[1]:
                self.count(self.copies if gpu else self.syncs, "copy_")
        elif not tensors and self.ambient:
            gpu = gpu or self.ambient[-1]  # made inside a composite operation: on the device of its tensors
        if gpu and packet not in FREE and not func.is_view and not self.graph:
            self.kernels[self.name][str(packet).removeprefix("aten.")] += 1
        if gpu and packet not in (aten._local_scalar_dense, aten.copy_):
            self.tag(out)
        return out

    def check(self, func, packet, args, tensors, there):
        if packet in INDEX:
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.count(self.syncs, "boolean index")
            wrong = [args[0]]
            if self.on(args[0]):  # CPU indices into a tensor on the card are copied over; values are not
                for _ in (i for i in indices if not self.on(i)):
                    self.count(self.copies, "CPU index")
                wrong = [t for t in args[2:3] if t.dim() and not self.on(t)]
        else:  # a CPU scalar may take part in what is elementwise
            scalars = (torch.Tag.pointwise in func.tags or "foreach" in str(packet)
                       or packet in (aten.where, aten.masked_fill, aten.masked_fill_))
            wrong = [t for t, on in zip(tensors, there) if not on and (t.dim() or not scalars)]
        if wrong:
            shapes = (f"{'cuda' if on else 'cpu'}{list(t.shape)}" for t, on in zip(tensors, there))
            self.mismatch(f"{packet}({', '.join(shapes)})")
        if packet in WAIT or packet is aten.repeat_interleave and len(args) == 1:
            self.count(self.syncs, str(packet).removeprefix("aten."))

    @contextlib.contextmanager
    def capture(self, graph, stream=None):
        """torch.cuda.graph: it waits for the device, then what runs is recorded and has no effect."""
        self.count(self.syncs, "capture")
        self.graph = graph
        try:
            yield
        finally:
            self.graph = None
            graph.restore()

    # ---------------------------------------------------------------------------------------------------- in and out
    def __enter__(self):
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers loads weights in threads
        gpu, plain = self, BASE.device.__get__
        properties = mock.Mock(total_memory=self.total, major=9, minor=0, multi_processor_count=132)
        properties.name = "Pretend H100"
        values = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
                  "get_device_name": properties.name, "get_device_capability": (9, 0),
                  "get_device_properties": properties, "is_bf16_supported": True,
                  "mem_get_info": (self.total, self.total), "memory_reserved": 0, "memory_allocated": 0,
                  "max_memory_allocated": 10 ** 9, "max_memory_reserved": 10 ** 9, "_is_in_bad_fork": False,
                  "is_current_stream_capturing": False,
                  **dict.fromkeys(("reset_peak_memory_stats", "synchronize", "empty_cache", "set_device", "init",
                                   "_lazy_init", "manual_seed", "manual_seed_all",
                                   "set_per_process_memory_fraction", "current_stream", "set_stream", "Stream"))}
        self.stack = contextlib.ExitStack()
        for name, value in (("CUDAGraph", functools.partial(Graph, self)), ("graph", self.capture),
                            ("device", lambda device: contextlib.nullcontext()), ("set_sync_debug_mode", self.refuse)):
            self.stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in values.items():
            self.stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value))
        seen = lambda t: not gpu.inside and gpu.on(t)
        for name, get in (("device", property(lambda t: CUDA if seen(t) else plain(t))), ("is_cuda", property(seen)),
                          ("is_cpu", property(lambda t: plain(t).type == "cpu" and not seen(t))),
                          ("get_device", lambda t: 0 if seen(t) else -1)):
            setattr(torch.Tensor, name, get)
            self.stack.callback(functools.partial(delattr, torch.Tensor, name))
        self.stack.enter_context(Functions(self))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.__exit__(*error)


class Graph:
    """torch.cuda.CUDAGraph: operations in order, each with the tensors it had and made."""

    def __init__(self, gpu):
        self.gpu, self.calls, self.made, self.saved = gpu, [], set(), {}

    def storages(self, tree):
        return {s._cdata: s for t in tensors_in(tree) for s in [self.gpu.storage(t)]}

    def written(self, func, args, kwargs):
        """Arguments that an operation writes to."""
        known = dict(zip((a.name for a in func._schema.arguments), args)) | kwargs
        return [known[a.name] for a in func._schema.arguments if a.is_write and known.get(a.name) is not None]

    def before(self, func, args, kwargs):
        with _disable_current_modes():
            for at, storage in self.storages(self.written(func, args, kwargs)).items():
                if at not in self.made and at not in self.saved:
                    self.saved[at] = storage, storage.clone()

    def record(self, func, args, kwargs, out):
        inputs, outputs = self.storages((args, kwargs)), self.storages(out)
        self.made |= outputs.keys() - inputs.keys()
        new = [not self.storages(t).keys() & inputs.keys() for t in tensors_in(out)]
        if any(new) or self.written(func, args, kwargs):  # what is left makes a view of memory that stays
            self.calls.append((func, args, kwargs, out, new))

    def restore(self):
        with _disable_current_modes():
            for storage, was in self.saved.values():
                storage.copy_(was)

    def replay(self):
        gpu = self.gpu
        gpu.kernels[gpu.name]["graph"] += 1
        gpu.inside = True
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
                for func, args, kwargs, out, new in self.calls:
                    again = func(*args, **kwargs)
                    for old, value, copied in zip(tensors_in(out), tensors_in(again), new):
                        if copied:
                            old.copy_(value)
        finally:
            gpu.inside = False


class Functions(TorchFunctionMode):
    """The calls from Python: device="cuda" must not reach a torch that has no CUDA."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        gpu, kwargs, name = self.gpu, dict(kwargs or {}), getattr(func, "__name__", "")
        if name == "__get__":
            return func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        here = first is not None and gpu.on(first)
        if name in ("to", "cpu", "cuda"):
            return self.move(func, name, list(args), kwargs, first, here)
        if name in READS and here:
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            gpu.count(gpu.syncs, name)
            return func(*args, **kwargs)
        if name == "__deepcopy__":
            return gpu.tag(func(*args, **kwargs)) if here else func(*args, **kwargs)
        if name == "pin_memory":
            return first
        kwargs.pop("pin_memory", None)  # there is no pinned memory without CUDA
        wanted = kwargs.get("device")
        wanted = None if wanted is None else is_cuda(wanted)
        if wanted:
            kwargs["device"] = "cpu"
        tensors = tensors_in((args, kwargs))
        gpu.ambient.append(any(map(gpu.on, tensors)) if wanted is None else wanted)
        try:
            out = func(*args, **kwargs)
        finally:
            gpu.ambient.pop()
        if wanted:
            if name in ("tensor", "as_tensor", "asarray"):
                gpu.count(gpu.copies, name)
            gpu.tag(out)
        return out

    def move(self, func, name, args, kwargs, first, here):
        """.to(), .cpu() and .cuda(): with the device left out on the CPU, then a copy if the device is another one."""
        gpu, target = self.gpu, {"cpu": False, "cuda": True}.get(name)
        if name == "to":
            for i, a in enumerate(args[1:], 1):
                if isinstance(a, torch.Tensor):
                    target = gpu.on(a)
                elif isinstance(a, (torch.device, str)) or i == 1 and type(a) is int:
                    target, args[i] = is_cuda(a), "cpu"
            if kwargs.get("other") is not None:
                target = gpu.on(kwargs["other"])
            if kwargs.get("device") is not None:
                target, kwargs["device"] = is_cuda(kwargs["device"]), "cpu"
        else:
            func, args = torch.Tensor.to, [first, "cpu"]
            kwargs = {k: v for k, v in kwargs.items() if k == "non_blocking"}
        if first is None or BASE.device.__get__(first).type != "cpu":
            return func(*args, **kwargs)
        if target is None or target == here:
            out = func(*args, **kwargs)
            return gpu.tag(out) if here else out
        if not (target and kwargs.get("non_blocking")):
            gpu.count(gpu.copies if target else gpu.syncs, name)
        return Move.apply(func(*args, **kwargs), gpu, here, target)  # a dtype changes where the tensor is


class Move(torch.autograd.Function):
    """A copy on the other device; its gradient comes back to this one."""

    @staticmethod
    def forward(ctx, tensor, gpu, here, target):
        ctx.gpu, ctx.here = gpu, here
        return Move.copy(tensor, gpu, target)

    @staticmethod
    def backward(ctx, grad):
        return Move.copy(grad, ctx.gpu, ctx.here), None, None, None

    @staticmethod
    def copy(tensor, gpu, target):
        with _disable_current_modes():
            out = tensor.detach().clone()
        return gpu.tag(out) if target else out
