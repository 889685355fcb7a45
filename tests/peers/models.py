"""Small models of torchvision and timm, stock and injected, for the tests that their own suites run on every model."""

import copy
import warnings
from functools import cache

import torch

from simam_inject import inject
from tests.oracle import E_LAMBDA

PLACES = {
    "torchvision:resnet18": ("block-output", "layer{}.{}"),
    "timm:resnet10t": ("block-output", "layer{}.{}"),
    "timm:convnext_atto": ("paper", "stages.{}.blocks.{}.conv_dw"),
    "timm:efficientnet_lite0": ("stage-end", "blocks.{}.{}"),
    "timm:regnetx_002": ("residual", "s{}.b{}.conv3.bn"),
}
"""Model -> recipe."""


@cache
def _built(key):
    library, _, name = key.partition(":")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "torchvision":
            import torchvision

            return awake(torchvision.models.get_model(name, weights=None, num_classes=10))
        import timm

        return awake(timm.create_model(name, num_classes=10))


def awake(model):
    """Norm weights and layer scales that start at zero hide whole branches."""
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and (parameter.abs().max() < 1e-3 or parameter.std() == 0):
                parameter.copy_(torch.rand(parameter.shape, generator=noise) * 0.5 + 0.3)
    return model


def stock_of(key):
    return copy.deepcopy(_built(key)).eval()


@cache
def _injected(key):
    return inject(stock_of(key), PLACES[key][0], example_inputs=image(), e_lambda=E_LAMBDA, verify=False)


def injected_of(key):
    return copy.deepcopy(_injected(key))


def image(batch=2, side=64, seed=1):
    return torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(seed))
