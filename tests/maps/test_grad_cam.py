"""pytorch-grad-cam on an injected network, as docs/maps.md shows it: what it sees at which layer."""

import pytest
import torch

from simam_inject import bypass
from simam_inject.attention import simam
from tests.warmup.networks import E_LAMBDA, attended, images, plain

grad_cam = pytest.importorskip("pytorch_grad_cam")
targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")


def seen_at(model, layer, x):
    """What Grad-CAM takes for the layer's activations, and its map."""
    with grad_cam.GradCAM(model=model, target_layers=[layer]) as cam:
        picture = cam(input_tensor=x, targets=[targets.ClassifierOutputTarget(2)] * len(x))
        return cam.activations_and_grads.activations[0], torch.from_numpy(picture)


def test_a_convolution_with_simam_shows_the_attended_map():
    model, x = attended().train(False), images(2)
    stock = plain()
    with torch.no_grad():
        before = stock.blocks[0].first(stock.norm(stock.stem(x)).relu())
    seen, picture = seen_at(model, model.blocks[0].first, x)
    torch.testing.assert_close(seen, simam(before, E_LAMBDA), rtol=1e-4, atol=1e-5)
    assert (seen - before).abs().max() > 0.1
    assert picture.shape == (2, 16, 16)


def test_the_simam_itself_is_a_layer_too():
    model, x = attended(), images(2)
    by_conv, by_simam = (seen_at(model, layer, x) for layer in (model.blocks[1].second, model.blocks[1].second.simam))
    torch.testing.assert_close(by_conv[0], by_simam[0])
    torch.testing.assert_close(by_conv[1], by_simam[1])


def test_bypassed_it_is_the_picture_of_the_plain_network():
    model, stock, x = attended(), plain(), images(2)
    _, live = seen_at(model, model.blocks[1].second, x)
    with bypass(model):
        _, without = seen_at(model, model.blocks[1].second, x)
    torch.testing.assert_close(without, seen_at(stock, stock.blocks[1].second, x)[1])
    assert (live - without).abs().max() > 0.01
