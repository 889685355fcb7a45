"""Fault C: an edit that a later tool takes out is an error at the next forward, or the output is still right.

Modules that are handed on, wrapped or moved are in `test_moved_modules`.
"""

import copy
import functools
import importlib
import pickle
import types
import warnings
import weakref
from pathlib import Path
from types import MethodType

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from simam_inject import InjectError, SimAM, bypass, eject, inject, injected, persist, plan, set_strength, verify
from tests.engine.networks import ConvBlock, Folding, Net, Op, image, recipe, run, small, with_statistics
from tests.oracle import E_LAMBDA, assert_attended, assert_right, attend, distance, hooked, same_bits

# C1, reparameterisation and folding


def test_timm_reparameterisation_raises():
    import timm
    from timm.utils import reparameterize_model

    torch.manual_seed(3)
    model = with_statistics(timm.create_model("mobileone_s0", num_classes=4))
    inject(model, "mobile", example_inputs=image(64), verify=False)
    assert len(injected(model)) == 84
    notes = {insertion.note for insertion in injected(model)}
    assert any("stages.0.0.reparameterize() would remove this SimAM" in note for note in notes), notes
    plain = copy.deepcopy(model)
    with pytest.raises(InjectError, match=r"stages\.\d"):
        run(reparameterize_model(model), image(64))
    eject(plain)
    run(reparameterize_model(plain), image(64))


class Branches(nn.Module):
    """RepVGG's block: at the end of the training, its branches become one convolution."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        if hasattr(self, "merged"):
            return torch.relu(self.merged(x))
        wide = self.wide(x)
        return torch.relu(wide + self.narrow(x) + x)  # not the child `relu`

    def merge(self):
        self.merged = copy.deepcopy(self.wide)
        del self.wide, self.narrow


def test_branches_that_are_merged_around_a_sum_raise(eager_backend):
    model = inject(with_statistics(nn.Sequential(Branches(), Branches())), "residual", example_inputs=image())
    assert [site.path for site in injected(model)] == ["0.add", "1.add"]
    expected = run(model)
    loaded = pickle.loads(pickle.dumps(model))
    for each in (model, copy.deepcopy(model), loaded):
        assert distance(run(torch.compile(each, backend=eager_backend, fullgraph=True)), expected) < 1e-9
        del each[1].relu
        assert distance(run(each), expected) < 1e-9
        each[1].merge()
        with pytest.raises(InjectError, match=r"1\.add was lost: its module has no (narrow|wide) any more"):
            run(each)
        run(eject(each))


class Keeping(Branches):
    """As in RT-DETR: the branches stay, unused."""

    def convert_to_deploy(self):
        self.merged = copy.deepcopy(self.wide)


def test_the_note_promises_no_error_for_branches_that_stay():
    model = inject(with_statistics(nn.Sequential(Keeping(), Keeping())), "after keeping.wide", example_inputs=image())
    for site in injected(model):
        assert "convert_to_deploy() would remove this SimAM" in site.note
        assert "only if" in site.note
        assert "would raise" not in site.note
    model[0].convert_to_deploy()
    run(model)


class PrivateBranch(Branches):
    def __init__(self):
        super().__init__()
        self.__narrow = self.narrow
        del self.narrow

    def forward(self, x):
        if hasattr(self, "merged"):
            return torch.relu(self.merged(x))
        return torch.relu(self.wide(x) + self.__narrow(x) + x)

    def merge(self):
        self.merged = copy.deepcopy(self.wide)
        del self.__narrow


def test_a_branch_of_a_private_name_that_is_merged_raises():
    model = inject(with_statistics(nn.Sequential(PrivateBranch())), "residual", example_inputs=image())
    run(model)
    model[0].merge()
    with pytest.raises(InjectError, match="its module has no _PrivateBranch__narrow any more"):
        run(model)


def fold(net):
    net.one.fold()
    return net


def fuse_by_hand(net):
    net.one.conv = nn.utils.fusion.fuse_conv_bn_eval(net.one.conv, net.one.bn)
    net.one.bn = nn.Identity()
    return net


def fuse_in_place(net):
    """Folds into the parameters of the convolution itself, as many own scripts do."""
    conv, bn = net.one.conv, net.one.bn
    with torch.no_grad():
        gain = bn.weight / (bn.running_var + bn.eps).sqrt()
        conv.weight.mul_(gain[:, None, None, None])
        conv.bias.copy_((conv.bias - bn.running_mean) * gain + bn.bias)
    net.one.bn = nn.Identity()
    return net


def fuse_modules(net):
    torch.ao.quantization.fuse_modules(net, [["one.conv", "one.bn", "one.act"]], inplace=True)
    return net


def fuse_pair(net):
    torch.ao.quantization.fuse_modules(net, [["one.conv", "one.bn"]], inplace=True)
    return net


def replace_by_setattr(net):
    net.one.conv = nn.Conv2d(8, 8, 3, padding=1).double()
    return net


def replace_block(net):
    net.one = ConvBlock().double().eval()
    return net


def replace_by_identity(net):
    net.one.conv = nn.Identity()
    return net


def trace_block(net):
    net.one = torch.jit.trace(net.one, torch.rand(2, 8, 16, 16, dtype=torch.float64))
    return net


def delete_child(net):
    del net.one.conv.simam
    return net


LOSING = [fold, fuse_by_hand, fuse_in_place, fuse_modules, fuse_pair, replace_by_setattr, replace_block,
          replace_by_identity, trace_block, delete_child]  # fmt: skip


@pytest.mark.parametrize("lose", LOSING)
def test_what_folds_or_replaces_the_attended_module_raises_again_and_again(lose):
    model = inject(small(Folding), recipe("one.conv", "two.conv"), example_inputs=image())
    run(model)
    lost = lose(model)
    for each in (lost, lost, copy.deepcopy(lost)):
        with pytest.raises(InjectError, match=r"one\.conv"):
            run(each)
    assert injected(eject(lost)) == ()


def test_an_input_stays_attended_once_when_its_reader_is_folded():
    rule = {"e_lambda": E_LAMBDA, "rules": [{"path": "one.conv", "before": "input"}]}
    stock = small()
    model = fuse_pair(inject(copy.deepcopy(stock), rule, example_inputs=image()))
    with pytest.warns(UserWarning, match=r"1 SimAM modules .*restored"):
        found = run(model)
    assert_attended(found, stock, [">one.conv"], image())
    assert verify(model).ok


@pytest.mark.parametrize("lose", [lose for lose in LOSING if lose is not delete_child])
def test_the_same_tool_after_eject_is_as_on_the_stock_model(lose):
    stock = small(Folding)
    model = eject(inject(copy.deepcopy(stock), recipe("one.conv", "two.conv"), example_inputs=image()))
    torch.manual_seed(5)
    expected = run(lose(stock))
    torch.manual_seed(5)
    assert same_bits(run(lose(model)), expected)


@pytest.mark.parametrize("lose", [fold, fuse_by_hand, fuse_in_place, fuse_modules, fuse_pair])
def test_folding_inside_an_attended_block_keeps_the_attention(lose):
    stock = small(Folding)
    model = inject(copy.deepcopy(stock), recipe("one", "two"), example_inputs=image())
    assert_attended(run(lose(model)), stock, ["one", "two"], image())


def test_torch_fx_fusing_of_an_injected_model_raises_or_is_right():
    """The copy that folding makes of a convolution keeps its hook, which sees that it has a new bias."""
    from torch.fx.experimental.optimization import fuse

    class Biasless(Net):
        def __init__(self):
            super().__init__()
            self.one.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    torch.manual_seed(3)
    stock = with_statistics(Biasless())
    model = inject(copy.deepcopy(stock), recipe("one.conv"), example_inputs=image())
    with hooked(stock, ["one.conv"]):
        expected = run(stock)
    try:
        found = run(fuse(model))
    except InjectError as error:
        message = str(error)
    else:
        assert_right(found, expected, run(stock))
        return
    assert "one.conv" in message


# Hooks alone are gone, the SimAM is still there


def convert_to_sync(net):
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def clear_hooks(net):
    for module in net.modules():
        if module is not net:
            module._forward_hooks.clear()
    return net


def clear_one(net):
    net.one.bn._forward_hooks.clear()
    return net


def back_from_sync(net):
    """To SyncBatchNorm and back, as exporters do."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.SyncBatchNorm):
            norm = nn.BatchNorm2d(module.num_features).double().eval()
            norm.load_state_dict(module.state_dict())
            for name, child in module.named_children():
                norm.add_module(name, child)
            net.get_submodule(path.rpartition(".")[0]).add_module(path.rpartition(".")[2], norm)
    return net


@pytest.mark.parametrize("lose", [convert_to_sync, clear_hooks, clear_one, back_from_sync])
def test_a_lost_hook_is_mended_with_one_warning(lose):
    stock = small()
    model = inject(copy.deepcopy(stock), recipe("one.bn", "two.bn"), example_inputs=image())
    plain = run(stock)
    with hooked(stock, ["one.bn", "two.bn"]):
        expected = run(stock)
    changed = lose(model)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = [run(changed), run(changed)]
    (warning,) = [warning for warning in warned if "SimAM" in str(warning.message) or "simam" in str(warning.message)]
    assert not warning.filename.startswith(str(Path(torch.__file__).parent))  # it points to the call of the model
    for each in found:
        assert_right(each, expected, plain)


def test_hooks_are_restored_where_another_edit_was_lost():
    """The next forward raises for the lost edit; what was only dropped is still known to other functions."""
    model = inject(small(), recipe("one.conv", "one.bn", "two.bn"), example_inputs=image())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.one.conv = copy.deepcopy(small().one.conv)
    with pytest.warns(UserWarning, match="had been dropped"):
        assert [site.path for site in injected(model)] == ["one.bn", "two.bn"]
    with pytest.raises(InjectError, match=r"SimAM at one\.conv was lost"):
        run(model)


# C4: tools that ask for the exact class


# C7: compiled first


def compiled_whole(net, backend):
    compiled = torch.compile(net, backend=backend)
    return net, compiled


def compiled_in_place(net, backend):
    net.compile(backend=backend)
    return net, net


def compiled_child(net, backend):
    net.one.compile(backend=backend)
    return net, net


def compiled_function(net, backend):
    return net, torch.compile(lambda x: net(x) * 1.0, backend=backend)


def test_a_compiled_wrapper_is_refused_with_the_order_that_works(eager_backend):
    compiled = torch.compile(small(), backend=eager_backend)
    with pytest.raises(InjectError, match="inject first, then wrap"):
        inject(compiled, "after convblock", example_inputs=image())


@pytest.mark.parametrize("compiling", [compiled_whole, compiled_in_place, compiled_child, compiled_function])
@pytest.mark.parametrize("copying", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_models_of_one_class_that_are_compiled_differ_in_their_sites(compiling, copying, eager_backend):
    stock = small()
    nets = [
        stock,
        *(inject(small(), recipe(*paths), example_inputs=image()) for paths in (["one.conv"], ["two", "one.conv"])),
    ]
    expected = [run(net) for net in nets]
    callables = [compiling(copying(net), eager_backend)[1] for net in nets]
    for callable_, output in 2 * list(zip(callables, expected, strict=True)):
        assert distance(run(callable_), output) < 1e-8
    assert distance(expected[1], expected[0]) > 1e-4
    assert distance(expected[2], expected[1]) > 1e-4


@pytest.mark.parametrize("compiling", [compiled_whole, compiled_in_place, compiled_child, compiled_function])
def test_a_model_compiled_before_does_not_stay_plain(compiling, eager_backend):
    stock = small()
    target, callable_ = compiling(copy.deepcopy(stock), eager_backend)
    plain = run(stock)
    assert distance(run(callable_), plain) < 1e-8
    pattern = {"e_lambda": E_LAMBDA, "rules": [{"block": "ConvBlock", "after": "output"}]}
    inject(target, pattern, example_inputs=image())
    with hooked(stock, ["one", "two"]):
        expected = run(stock)
    assert_right(run(callable_), expected, plain)
    with bypass(target):
        assert distance(run(callable_), plain) < 1e-8
    assert_right(run(callable_), expected, plain)
    eject(target)
    assert distance(run(callable_), plain) < 1e-8


def test_a_lost_edit_raises_in_a_compiled_model_too(eager_backend):
    model = inject(small(Folding), recipe("one.conv", "two.conv"), example_inputs=image())
    compiled = torch.compile(model, backend=eager_backend)
    run(compiled)
    model.one.fold()
    with pytest.raises(InjectError, match=r"one\.conv"):
        run(compiled)


# eject after a loss leaves nothing


def other_forward(net):
    net.forward = lambda x: x
    return net


@pytest.mark.parametrize(
    ("factory", "site", "lose"),
    [
        (small, "one.conv", clear_hooks),
        (small, "one.bn", clear_one),
        (small, "one.bn", convert_to_sync),
        (lambda: with_statistics(Op()), "mul", other_forward),
        (small, "one", clear_hooks),
        (small, "one.act", fuse_modules),
    ],
)
def test_eject_after_a_loss_takes_every_simam(factory, site, lose):
    model = lose(inject(factory(), recipe(site), example_inputs=image()))
    eject(model)
    assert [name for name, module in model.named_modules() if isinstance(module, SimAM)] == []
    assert injected(model) == ()
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def delete_forward(net):
    net.forward = torch.compile(net.forward)
    del net.forward
    return net


def test_inject_refuses_a_model_with_a_lost_edit_and_restores_a_dropped_hook():
    model = delete_forward(inject(with_statistics(Op()), recipe("mul"), example_inputs=image()))
    with pytest.raises(InjectError, match=r"mul was lost.*eject\(model\)"):
        inject(model, recipe("d"), example_inputs=image())
    stock = small()
    model = convert_to_sync(inject(copy.deepcopy(stock), recipe("one.bn"), example_inputs=image()))
    with pytest.warns(UserWarning, match=r"one\.bn.*restored"):
        inject(model, recipe("two.bn"), example_inputs=image())
    assert_attended(run(model), stock, ["one.bn", "two.bn"], image())


@pytest.mark.parametrize("lose", [convert_to_sync, clear_hooks, clear_one, back_from_sync])
def test_every_function_sees_the_sites_of_a_model_whose_hooks_were_dropped(lose, tmp_path):
    """Before any forward, which would restore them."""
    stock = small()

    def lost():
        return lose(inject(copy.deepcopy(stock), recipe("one.bn"), example_inputs=image()))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [site.path for site in injected(lost())] == ["one.bn"]
        assert len(persist.read(persist.save(lost(), tmp_path / "x.safetensors")).insertions) == 1
        assert plan(lost(), recipe("one.bn"), example_inputs=image()).is_done
        assert verify(lost()).ok
        with bypass(lost()) as model:
            assert distance(run(model), run(stock)) < 1e-8
        assert distance(run(eject(lost())), run(stock)) < 1e-8
        model = lost()
        set_strength(model, 0.0)
        assert distance(run(model), run(stock)) < 1e-8


# What stands on classes and copies


@pytest.mark.parametrize("change", ["lambda", "method", "subclass"])
def test_a_class_whose_method_is_replaced_after_inject_raises(change):
    class Own(Op):
        def forward(self, x):
            y = self.c(x) * 2
            return self.d(y) + y

    class Inner(Own):
        pass

    kind = Inner if change == "subclass" else Own
    model = inject(with_statistics(kind()), recipe("mul"), example_inputs=image())
    run(model)
    if change == "lambda":
        Own.forward = lambda self, x: self.c(x) * 0
    else:
        Own.forward = Op.forward
    with pytest.raises(InjectError, match="forward was replaced after SimAM"):
        run(model)


def test_a_method_that_is_edited_in_place_raises_and_new_defaults_are_used():
    """IPython's `%autoreload 2` sets the `__code__` of the function, also if only another part of the file changed."""

    class Own(Op):
        def forward(self, x, *, scale=1.0):
            y = self.c(x) * 2
            return (self.d(y) + y) * scale

    method, stock = Own.forward, with_statistics(Own())
    model = inject(copy.deepcopy(stock), recipe("mul"), example_inputs=image())
    once = run(model)
    method.__code__ = method.__code__.replace(co_consts=method.__code__.co_consts)
    method.__kwdefaults__ = {"scale": 3.0}
    assert_right(run(model), 3 * once, run(stock))
    with bypass(model):
        assert same_bits(run(model), run(stock))
    method.__code__ = (lambda self, x, *, scale: self.c(x) * scale).__code__
    with pytest.raises(InjectError, match="forward was replaced after SimAM"):
        run(model)
    with pytest.raises(InjectError, match="forward is not available"):
        verify(model)
    assert same_bits(run(eject(model)), run(stock))


SOURCE = """from tests.engine.networks import Op

class Own(Op):
    def forward(self, x):
        y = self.c(x) * 2
        return self.d(y) + y
"""


def test_a_file_that_is_loaded_again_with_its_lines_moved(tmp_path, monkeypatch):
    """IPython's `%autoreload` gives the classes of a file their new methods."""
    file = tmp_path / "lines_moved.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("lines_moved")
    kind, stock = module.Own, with_statistics(module.Own())
    model = inject(copy.deepcopy(stock), recipe("mul"), example_inputs=image())
    once = run(model)
    assert distance(once, run(stock)) > 0.01
    for text in (f"import torch\n\n{SOURCE}", SOURCE.replace("* 2", "* 3")):
        file.write_text(text)
        importlib.invalidate_caches()
        kind.forward = importlib.reload(module).Own.forward
        if text.endswith(SOURCE):
            assert same_bits(run(model), once)
    with pytest.raises(InjectError, match="forward was replaced after SimAM"):
        run(model)


def test_equal_code_of_another_file_is_the_same_method():
    """cloudpickle (joblib, Ray) sets the methods of a class in `__main__` again, from code without a source."""
    factor = 2.0

    class Own(Op):
        def forward(self, x):
            return self.d(self.c(x) * 2) * factor

    stock = with_statistics(Own())
    model = inject(copy.deepcopy(stock), recipe("mul"), example_inputs=image())
    once, method = run(model), Own.forward
    code = method.__code__.replace(co_filename="<dynamic-code>")
    Own.forward = types.FunctionType(code, dict(method.__globals__), "forward", None, (types.CellType(3.0),))
    assert_right(run(model), 1.5 * once, run(stock))
    with bypass(model):
        assert same_bits(run(model), run(stock))


def compiled_forward(net, backend):
    net.forward = torch.compile(net.forward, backend=backend, fullgraph=True)


def decorated_forward(net, _):
    inner = net.forward
    net.forward = functools.wraps(inner)(lambda x: inner(x) * 1.0)


class Timed:
    """A decorator that is a class."""

    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, x):
        return self.function(x)


def timed_forward(net, _):
    net.forward = Timed(net.forward)


def cached_forward(net, _):
    net.forward = functools.cache(net.forward)


def forward_of_two_decorators(net, _):
    net.forward = torch.no_grad()(torch.autocast("cpu")(net.forward))


def forward_by_default(net, _):
    net.forward = functools.wraps(net.forward)(lambda x, inner=net.forward: inner(x))


def forward_with_hook(net, _):
    """As accelerate's `add_hook_to_module` makes."""
    net._old_forward = net.forward
    new = functools.partial(lambda module, *args: module._old_forward(*args), net)
    net.forward = functools.update_wrapper(new, net.forward)


WRAPPERS = [compiled_forward, decorated_forward, timed_forward, cached_forward, forward_of_two_decorators]
WRAPPERS += [forward_by_default, forward_with_hook]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("part", [False, True])
def test_a_rewritten_forward_may_be_compiled_and_ejected(wrap, part, eager_backend):
    stock = with_statistics(nn.Sequential(Op()) if part else Op())
    path = "0.mul" if part else "mul"
    model = inject(copy.deepcopy(stock), recipe(path), example_inputs=image())
    attended, plain = run(model), run(stock)
    wrap(model[0] if part else model, eager_backend)
    assert_right(run(model), attended, plain)
    assert verify(model).ok
    assert len(injected(model)) == 1
    if part:
        assert_right(run(copy.deepcopy(model)), attended, plain)
    with bypass(model):
        assert distance(run(model), plain) < 1e-8
    for _ in range(2):
        assert distance(run(eject(model)), plain) < 1e-8
    assert not any(isinstance(module, SimAM) for module in model.modules())
    with pytest.raises(InjectError, match="inject first"):
        inject(model, recipe(path), example_inputs=image())
    inject(model, recipe(path.replace("mul", "d")), example_inputs=image())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: functools.wraps(net.forward)(lambda x: x),
        lambda net: functools.update_wrapper(functools.partial(Op.forward, net), net.forward),
        lambda net: MethodType(functools.wraps(net.forward)(lambda self, x: Op.forward(self, x) * 1.0), net),
        lambda net: functools.cache(functools.wraps(net.forward)(lambda x: Op.forward(net, x))),
        lambda net: functools.update_wrapper(Timed(MethodType(Op.forward, net)), net.forward),
        lambda net: functools.wraps(torch.compile(net.forward))(lambda x: x),
        lambda net: functools.wraps(Timed(net.forward))(lambda x: x),
    ],
)
@pytest.mark.parametrize("part", [False, True])
def test_a_wrapper_that_does_not_run_the_rewritten_forward_raises(wrap, part):
    stock = with_statistics(nn.Sequential(Op()) if part else Op())
    model = inject(stock, recipe("0.mul" if part else "mul"), example_inputs=image())
    net = model[0] if part else model
    net.forward = wrap(net)
    with pytest.raises(InjectError, match="mul was lost"):
        run(model)


def test_a_dead_weak_proxy_on_a_module():
    model, trainer = with_statistics(Op()), Timed(len)
    model.trainer = weakref.proxy(trainer)
    del trainer
    plain = run(model)
    inject(model, recipe("mul"), example_inputs=image())
    assert len(injected(model)) == 1
    assert distance(run(model), plain) > 1e-3
    assert same_bits(run(eject(model)), plain)


@pytest.mark.parametrize("wrap", [compiled_forward, decorated_forward])
def test_a_copy_that_runs_the_wrapped_forward_of_the_original_raises(wrap, eager_backend):
    model = inject(with_statistics(Op()), recipe("mul"), example_inputs=image())
    wrap(model, eager_backend)
    with pytest.raises(InjectError, match=r"after its forward was wrapped \(torch.compile"):
        run(torch.optim.swa_utils.AveragedModel(model))


@pytest.mark.parametrize(
    "rule",
    [{"path": "*", "after": {"op": "mul"}}, {"path": "*.c", "after": "output"}, {"path": "*.d", "before": "input"}],
)
@pytest.mark.parametrize("compiling", ["forward", "compile"])
def test_blocks_of_one_class_that_are_compiled_share_graphs(rule, compiling, fresh_compiler):
    class Square(Op):
        def __init__(self):
            super().__init__()
            self.c, self.d = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    stock = with_statistics(nn.Sequential(*(Square() for _ in range(10))))
    model = inject(copy.deepcopy(stock), {"rules": [rule]}, example_inputs=image())
    attended, counter = run(model), CompileCounterWithBackend("eager")
    for block in model:
        if compiling == "forward":
            block.forward = torch.compile(block.forward, backend=counter, fullgraph=True)
        else:
            block.compile(backend=counter, fullgraph=True)
    assert_right(run(model), attended, run(stock))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("part", ["root", "inner", "deep"])
def test_a_shallow_copy_runs_its_own_forward_or_raises(part):
    """As DataParallel's replicas are made."""

    class Scales(Op):
        gain = 2.0

        def forward(self, x):
            y = self.c(x) * self.gain
            return self.d(y) + y

    stock = with_statistics(Scales() if part == "root" else nn.Sequential(Scales()))
    model = inject(copy.deepcopy(stock), recipe("mul" if part == "root" else "0.mul"), example_inputs=image())
    twin = copy.deepcopy(model) if part == "deep" else copy.copy(model)
    if part == "root":
        with pytest.raises(InjectError, match="a shallow copy of this model"):
            run(twin)
    else:
        twin._modules = dict(twin._modules)
        twin._modules["0"] = copy.copy(twin._modules["0"])
        twin._modules["0"].gain = 3.0
        other = copy.deepcopy(stock)
        other[0].gain = 3.0
        y = attend(run(other[0].c) * 3)
        assert distance(run(twin), run(other[0].d, y) + y) < 1e-8
    run(model)


GRAPHS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda graph: pickle.loads(pickle.dumps(graph)),
    "twice": lambda graph: copy.deepcopy(copy.deepcopy(graph)),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("site", ["mul", "c", "d"])
def test_a_graph_module_keeps_its_sites_in_copies_or_is_refused(site, name):
    stock = torch.fx.symbolic_trace(with_statistics(Op()))
    model = copy.deepcopy(stock)
    try:
        inject(model, recipe(site), example_inputs=image())
    except InjectError:
        assert injected(model) == ()
        return
    assert len(injected(GRAPHS[name](model))) == 1
    assert distance(run(GRAPHS[name](model)), run(model)) < 1e-12


class Chunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x):
        return self.c(x).chunk(2, 1)


class ReadsChunks(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, z):
        return self.t(z[0]) + z[1]


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.k, self.r = Chunks(), ReadsChunks()

    def forward(self, x):
        return self.r(self.k(x))


@pytest.mark.parametrize("rule", [{"path": "k", "after": "output"}, {"path": "r", "before": "input"}])
def test_fx_tracing_of_a_list_is_right_or_says_what_to_do(rule):
    model = inject(with_statistics(Lists()), {"e_lambda": E_LAMBDA, "rules": [rule]}, example_inputs=image())
    try:
        traced = torch.fx.symbolic_trace(model)
    except InjectError as error:
        message = str(error)
    else:
        assert distance(run(traced), run(model)) < 1e-12
        return
    assert "trace it first, then inject" in message
