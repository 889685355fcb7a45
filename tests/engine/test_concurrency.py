"""Threads, forks, files and defaults: faults D1 to D6, by kind, and memory over many models.

The default runs take seconds; `-m long` runs eight threads for a minute.
"""

import copy
import functools
import gc
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from simam_inject import InjectError, SimAM, eject, inject, injected, plan, verify
from simam_inject.verification.random_numbers import random_states, set_seed
from tests.oracle import E_LAMBDA, assert_right, distance, hooked, same_bits

ROOT = Path(__file__).absolute().parents[2]


class Unit(nn.Module):
    def __init__(self, channels=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)

    def danger(self, x):
        raise AssertionError("a file called this")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Conv2d(3, 6, 3, padding=1), Unit(), Unit(), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


RECIPE = {"e_lambda": E_LAMBDA, "rules": [{"block": "Unit", "after": "conv2"}]}
PLACES = ["one.conv2", "two.conv2"]


def image(seed=1, dtype=torch.float64):
    return torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(factory=Net):
    """Weights from a generator of their own: the global one belongs to all threads."""
    noise = torch.Generator().manual_seed(3)
    model = factory().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype) * 0.3)
    return model


def run(model, x=None):
    with torch.no_grad():
        return model(image() if x is None else x)


def expected_output():
    with hooked(build(), PLACES) as stock:
        return run(stock)


def in_threads(*tasks):
    """Run the tasks at once; the first error of any is raised here."""
    errors = []
    gate = threading.Barrier(len(tasks))

    def work(task):
        try:
            gate.wait()
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def for_seconds(seconds, task):
    def work():
        end = time.monotonic() + seconds
        while True:
            task()
            if time.monotonic() > end:
                return

    return work


# D1, D2: other threads notice nothing


def inject_one(stock=None):
    stock = stock or build()
    model = inject(copy.deepcopy(stock), RECIPE, example_inputs=image())
    assert distance(run(model), expected_output()) < 1e-8


def unpickle_one(data):
    model = pickle.loads(data)
    assert len(injected(model)) == 2
    assert distance(run(model), expected_output()) < 1e-8


class Serving:
    """Another network, which must always return the same."""

    def __init__(self):
        torch.manual_seed(9)
        self.net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3)).double().eval()
        self.expected = run(self.net)
        self.count = 0

    def __call__(self):
        assert same_bits(run(self.net), self.expected)
        assert isinstance(self.net, nn.Sequential)
        fresh = nn.Linear(3, 3)
        fresh.extra = nn.ReLU()
        assert list(dict(fresh.named_children())) == ["extra"]
        self.count += 1


def test_three_threads_inject_at_once_and_leave_torch_whole():
    calls = nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__, isinstance, torch.relu
    in_threads(*[inject_one] * 3)
    assert (nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__, isinstance, torch.relu) == calls
    assert nn.Conv2d(3, 3, 3)(torch.rand(1, 3, 4, 4)).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("deed", ["inject", "plan", "verify", "unpickle", "deepcopy", "eject"])
def test_another_model_is_served_meanwhile(deed):
    model = inject(build(), RECIPE, example_inputs=image())
    data = pickle.dumps(model)
    deeds = {
        "inject": inject_one,
        "plan": lambda: plan(build(), RECIPE, example_inputs=image()),
        "verify": lambda: verify(copy.deepcopy(model), example_inputs=image()),
        "unpickle": lambda: unpickle_one(data),
        "deepcopy": lambda: run(copy.deepcopy(model)),
        "eject": lambda: eject(pickle.loads(data)),
    }
    serving = Serving()
    in_threads(for_seconds(0.7, deeds[deed]), for_seconds(0.7, serving))
    assert serving.count > 3


@functools.cache
def grid(height, width):
    return torch.linspace(-1, 1, height * width, dtype=torch.float64).view(height, width)


ROWS = {}


class UsesCaches(Unit):
    """What it makes of sizes alone is the same for all models of the process."""

    def forward(self, x):
        height, width = x.shape[-2:]
        if width not in ROWS:
            ROWS[width] = torch.ones(width, dtype=torch.float64)
        y = super().forward(x + grid(height, width) * ROWS[width])
        if threading.current_thread() is threading.main_thread():
            serving = threading.Thread(target=serve, args=(UsesCaches(3).double(), torch.rand(2, 3, height, width)))
            serving.start()
            serving.join()
        return y


SERVED, FAILED = threading.Event(), threading.Event()


def serve(model, x):
    try:
        assert model(x.double()).isfinite().all()
        SERVED.set()
    except Exception:
        FAILED.set()


def test_a_cache_of_several_models_holds_no_tensor_without_data_meanwhile():
    plan(nn.Sequential(UsesCaches(3)).double(), {"rules": [{"pattern": "conv2d"}]}, example_inputs=image())
    assert SERVED.is_set()
    assert not FAILED.is_set()


def test_an_injected_model_is_served_by_several_threads():
    model, expected = inject(build(), RECIPE, example_inputs=image()), expected_output()
    assert_right(run(model), expected, run(build()))
    results = []
    in_threads(*[for_seconds(0.5, lambda: results.append(distance(run(model), expected)))] * 3)
    assert max(results) < 1e-8


def test_random_numbers_of_another_thread_are_its_own():
    """Planning and verification seed and restore nothing that a thread that draws by its own generator sees."""
    wanted = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in range(50)]

    def draw():
        found = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in range(50)]
        assert all(map(torch.equal, found, wanted))

    in_threads(for_seconds(0.5, inject_one), for_seconds(0.5, draw))


def hard_work(seconds):
    data = pickle.dumps(inject(build(), RECIPE, example_inputs=image()))
    servings = [Serving(), Serving()]
    in_threads(
        *[for_seconds(seconds, inject_one)] * 3,
        *[for_seconds(seconds, lambda: unpickle_one(data))] * 3,
        *[for_seconds(seconds, serving) for serving in servings],
    )
    assert all(serving.count for serving in servings)
    assert nn.Conv2d(3, 3, 3)(torch.rand(1, 3, 4, 4)).shape == (1, 3, 2, 2)


def test_eight_threads_inject_unpickle_and_serve():
    hard_work(2)


@pytest.mark.long
def test_eight_threads_inject_unpickle_and_serve_for_a_minute():
    hard_work(60)


# D3, forks


class Pausing(Net):
    """Stops in the middle of a forward until it may go on."""

    def forward(self, x):
        if GATE and not GATE["reached"].is_set():
            GATE["reached"].set()
            GATE["go"].wait(60)
        return super().forward(x)


GATE = {}


def fork_while_injecting(deed):
    """A thread stands in the middle of `deed`, in a forward of the model; the main thread forks and the child works."""
    GATE.update(reached=threading.Event(), go=threading.Event())
    thread = threading.Thread(target=deed)
    thread.start()
    assert GATE["reached"].wait(20)
    child = os.fork()
    if child == 0:
        try:
            net = nn.Conv2d(3, 2, 3)
            net.extra = nn.ReLU()
            with torch.no_grad():
                found = net.extra(net(torch.ones(1, 3, 5, 5)))
            os._exit(0 if found.shape == (1, 2, 3, 3) and isinstance(found, torch.Tensor) else 3)
        except BaseException:
            os._exit(4)
    GATE["go"].set()
    thread.join(60)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"


@pytest.mark.parametrize("deed", ["inject", "verify", "stock"])
def test_a_process_forked_meanwhile_works(deed):
    """In a process of its own. `stock` holds the ground: a fork while a stock forward waits."""
    call(
        f"""
        import torch
        from simam_inject import inject, plan, verify
        from tests.engine import test_concurrency as t
        torch.set_num_threads(1)
        model = t.build(t.Pausing)
        t.nn.Conv2d(3, 2, 3)(torch.ones(1, 3, 5, 5))
        if {deed!r} == "verify":
            inject(model, t.RECIPE, example_inputs=t.image())
        deeds = {{
            "plan": lambda: plan(model, t.RECIPE, example_inputs=t.image()),
            "inject": lambda: inject(model, t.RECIPE, example_inputs=t.image()),
            "verify": lambda: verify(model, example_inputs=t.image()),
            "stock": lambda: t.run(model),
        }}
        assert t.fork_while_injecting(deeds[{deed!r}]) == 0
        """
    )


@pytest.mark.long
def test_workers_that_are_forked_while_a_process_injects_for_the_first_time_do_not_hang():
    """One run of about ten still hangs: a fork may meet a lock of torch or of the C library."""
    call(
        """
        import threading
        import torch
        from torch.utils.data import DataLoader
        from simam_inject import inject, injected
        from tests.engine import test_concurrency as t
        images, stock = t.image(), t.build()
        done = []

        class Data(list):
            def __getitem__(self, index):
                with torch.no_grad():
                    return stock(images).mean()

        def work():
            done.append(len(injected(inject(t.build(), t.RECIPE, example_inputs=images))))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            assert len(list(DataLoader(Data([0] * 4), batch_size=2, num_workers=2))) == 2
        for thread in threads:
            thread.join()
        assert done == [2] * 4
        """
    )


def call(source, timeout=120, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# D4: files hold data only


def restricted(data, *classes):
    import torch.nn.modules as modules

    known = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear, modules.module.Module, Net, Unit, set, *classes]
    with torch.serialization.safe_globals(known):
        return torch.load(io.BytesIO(data), weights_only=True)


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("word", ["one.conv2", "two.conv2", "conv2", "simam"])
def test_names_in_a_file_are_only_names(word):
    """Whatever string of the file is replaced by a method's name, that method is not called."""
    data = saved(inject(build(), RECIPE, example_inputs=image()))
    for other in ("danger", "forward", "train"):
        changed = replace_in_pickle(data, word, other)
        try:
            model = restricted(changed)
            run(model)
        except Exception as error:  # a refusal of any kind is right
            message = str(error)
        else:
            message = ""
        assert "a file called this" not in message


def replace_in_pickle(data, word, other):
    """The archive with one string of its pickle replaced by another of the same length."""
    import zipfile

    source, result = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                old, new = word.encode(), other.encode()
                content = content.replace(
                    b"X" + len(old).to_bytes(4, "little") + old, b"X" + len(new).to_bytes(4, "little") + new
                )
            archive.writestr(name, content)
    return result.getvalue()


# D5: defaults of the process


def defaults(change):
    return f"""
        import torch
        from torch import nn
        {change}
        import simam_inject
        from simam_inject import inject
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        from tests.engine.test_concurrency import RECIPE, build, distance, expected_output, image, run
        model = inject(build(), RECIPE, example_inputs=image())
        assert distance(run(model), expected_output()) < 1e-8
        x = image().requires_grad_()
        model(x).square().sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0
        for dtype in (torch.float32, torch.bfloat16):
            x = image(dtype=dtype).requires_grad_()
            simam_inject.simam(x).sum().backward()
            assert torch.isfinite(x.grad).all()
    """


@pytest.mark.parametrize(
    "change",
    [
        'torch.set_default_device("meta")',
        "torch.set_default_dtype(torch.bfloat16); torch.set_grad_enabled(False); from simam_inject import SimAM, simam",
    ],
    ids=["meta", "bfloat16 and no grad"],
)
def test_defaults_at_import_do_not_matter(change):
    call(defaults(change))


def test_defaults_while_injecting_do_not_matter():
    outputs = []
    for context in (torch.device("meta"), torch.inference_mode(), torch.no_grad()):
        model, example = build(), image()
        with context:
            inject(model, RECIPE, example_inputs=example)
        outputs.append(run(model))
        x = image().requires_grad_()
        model(x).square().sum().backward()
        assert torch.isfinite(x.grad).all()
    for output in outputs:
        assert_right(output, expected_output(), run(build()))


# D6: inject inside a traced forward


class Injecting(nn.Module):
    """Injects another model while it runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.found = nn.Conv2d(3, 6, 3, padding=1), []

    def forward(self, x):
        other = inject(build(), RECIPE, example_inputs=image())
        self.found = [len(injected(other))]
        return self.conv(x)


class Planning(Injecting):
    def forward(self, x):
        self.found = [len(plan(build(), RECIPE, example_inputs=image()).insertions)]
        return self.conv(x)


class Unpickling(Injecting):
    def forward(self, x):
        self.found = [len(injected(pickle.loads(PICKLED)))]
        return self.conv(x)


PICKLED = b""


@pytest.mark.parametrize("factory", [Injecting, Planning, Unpickling])
def test_inject_while_a_forward_is_recorded_does_not_hang(factory, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PICKLED", pickle.dumps(inject(build(), RECIPE, example_inputs=image())))
    model = factory().double().eval()
    stock = copy.deepcopy(model)

    def work():
        inject(model, {"e_lambda": E_LAMBDA, "rules": [{"path": "conv", "after": "output"}]}, example_inputs=image())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it hangs"
    with hooked(stock, ["conv"]):
        expected = run(stock)
    found = run(model)
    assert model.found == [2]
    with torch.no_grad():
        assert_right(found, expected, stock.conv(image()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("factory", [Injecting, Planning])
def test_inject_while_jit_traces(factory):
    model = factory().double().eval()
    try:
        traced = torch.jit.trace(model, image(), check_trace=False)
    except InjectError:
        return
    assert model.found == [2]
    with torch.no_grad():
        assert distance(traced(image()), model.conv(image())) < 1e-12


# Memory


def alive():
    gc.collect()
    objects = gc.get_objects()
    return sum(type(each) is SimAM for each in objects), sum(issubclass(type(each), type) for each in objects)


def come_and_go(count):
    for index in range(count):
        model = inject(build(), RECIPE, example_inputs=image(), verify=index % 10 == 0)
        if index % 3 == 0:
            model = pickle.loads(pickle.dumps(model))
        if index % 3 == 1:
            model = copy.deepcopy(model)
        run(model)
        if index % 2:
            eject(model)


def check_memory(count):
    come_and_go(6)
    before = alive()
    come_and_go(count)
    after = alive()
    assert after[0] <= before[0], f"{after[0] - before[0]} SimAMs more"  # other tests may hold some
    assert after[1] <= before[1], f"{after[1] - before[1]} classes more"


def test_twelve_models_come_and_go():
    check_memory(12)


@pytest.mark.long
def test_three_hundred_models_come_and_go():
    check_memory(300)


@pytest.mark.parametrize("ejected", [False, True])
def test_a_dropped_model_is_freed(ejected):
    model = inject(build(), RECIPE, example_inputs=image())
    kept = weakref.ref(model), weakref.ref(model.one.conv2), weakref.ref(model.one.conv2.simam)
    run(model)
    if ejected:
        eject(model)
    del model
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3


def test_compiled_models_of_one_class_in_another_thread(eager_backend, monkeypatch):
    """In torch 2.14, a setting of `torch._dynamo` is that of the thread which set it."""
    monkeypatch.setattr(torch._dynamo.config._config["skip_nnmodule_hook_guards"], "default", True)
    stock = Unit().eval()
    x = torch.rand(2, 6, 8, 8)
    model = inject(copy.deepcopy(stock), {"rules": [{"pattern": "conv2d"}]}, example_inputs=x)
    call = torch.compile(lambda module: module(x), backend=eager_backend)
    found = []
    thread = threading.Thread(target=lambda: found.extend([call(stock), call(model)]))
    thread.start()
    thread.join()
    assert torch.allclose(found[0], stock(x), atol=1e-5)
    assert torch.allclose(found[1], model(x), atol=1e-5)


def test_plan_while_another_thread_compiles():
    compiling, done, found = threading.Event(), threading.Event(), []

    def backend(graph, _inputs):  # called in the middle of the compilation
        compiling.set()
        assert done.wait(60)
        return graph.forward

    call = torch.compile(nn.Conv2d(3, 3, 3), backend=backend)
    thread = threading.Thread(target=lambda: found.append(call(torch.rand(1, 3, 8, 8))))
    thread.start()
    assert compiling.wait(60)
    try:
        assert plan(build(), RECIPE, example_inputs=image()).insertions
    finally:
        done.set()
        thread.join()
    assert found


class Random(nn.Module):
    """Draws numbers in train mode, and noise in every mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Dropout2d(), nn.Conv2d(6, 4, 3)

    def forward(self, x):
        y = self.drop(self.conv(x))
        return self.head(y + 0.1 * torch.rand_like(y))


@pytest.mark.parametrize("other", [lambda: torch.rand(100), lambda: nn.Conv2d(3, 3, 3)])
def test_random_numbers_that_another_thread_draws_are_no_fault(other):
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            other()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        model = inject(build(Random), "after conv2d", example_inputs=image())
        found = verify(model)
    finally:
        stop.set()
        thread.join()
    assert found.ok
    assert all("another thread" in check.detail for check in found.checks if check.ok is None)
    assert all(check.ok for check in verify(model).checks)
    model.head.simam.register_forward_hook(lambda module, args, output: output * 1.001)
    assert not verify(model).ok


@pytest.mark.parametrize("which", range(1, 7))
def test_another_thread_draws_equally_many_numbers_at_other_moments(which, monkeypatch):
    seeded = []

    def seed_and_draw(seed):
        seeded.append(seed)
        set_seed(seed)
        torch.rand(0 if len(seeded) == which else 100)

    def draw_and_return():
        torch.rand(100 if len(seeded) == which else 0)
        return random_states()

    model = inject(build(Random), "after conv2d", example_inputs=image())
    monkeypatch.setattr("simam_inject.verification.verifier.set_seed", seed_and_draw)
    monkeypatch.setattr("simam_inject.verification.verifier.random_states", draw_and_return)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()
        found = verify(model)
    assert len(seeded) > 6
    assert all(check.ok for check in found.checks), found


def test_threads_that_verify_networks_with_random_numbers_do_not_disturb_each_other():
    def check(_):
        found = verify(inject(build(Random), "after conv2d", example_inputs=image()))
        return [check.ok for check in found.checks]

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(check, range(6)))
    assert all(all(one) for one in found), found
