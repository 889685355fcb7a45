"""A file that must not be read."""

import pytest
import torch

from simam_inject import injected
from simam_inject.errors import FileError


@pytest.fixture
def refused():
    """`refused(load, words, path, model)`: an error that begins with the path has these words, and nothing happened."""

    def check(load, words, path, model):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        sites, attributes = injected(model), set(vars(model))
        with pytest.raises(FileError, match=words) as caught:
            load(path, model)
        assert str(caught.value).startswith(str(path))
        assert (injected(model), set(vars(model))) == (sites, attributes)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    return check
