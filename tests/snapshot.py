"""What a model and the process are made of, for tests that nothing else has changed."""

import random
import threading
from collections.abc import Mapping

import numpy as np
import torch


def snapshot(model):
    """Everything a failed or a mere inspection must leave as it was, in a form that compares with ==."""
    state = []
    for path, module in model.named_modules():
        plain = {
            name: _frozen(value)
            for name, value in module.__dict__.items()
            if name not in ("_parameters", "_buffers", "_modules")
        }
        tables = {
            name: [(key, id(value)) for key, value in module.__dict__[name].items()]
            for name in ("_parameters", "_buffers", "_modules")
        }
        state.append((path, id(module), type(module), list(module.__dict__), plain, tables))
    contents = [(name, _content(tensor)) for name, tensor in (*model.named_parameters(), *model.named_buffers())]
    process = (
        *(torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        *(torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), threading.active_count()),
    )
    return state, contents, process


def _frozen(value):
    if isinstance(value, torch.Tensor):
        return _content(value)
    if isinstance(value, Mapping):
        return [(key, id(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return type(value), [id(item) for item in value]
    return (type(value), value) if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def _content(tensor):
    grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
    data = None if tensor.is_meta else tensor.detach().flatten().tolist()
    return id(tensor), tensor.requires_grad, str(tensor.dtype), data, grad
