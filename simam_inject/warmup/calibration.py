"""`calibrate`: gains by least squares, then statistics of norms, from a few batches and without labels.

The gain of a site is the number c for which c * y, with y = x * gate, is closest to the feature map x: c = sum(x y) /
sum(y y), over all batches. During the forward of a batch, each site updates its gain and returns c * y, so that later
sites measure maps that are corrected already. With one batch this is exact. With several, what an early batch measured
at later sites was corrected with the gains of that moment; this matters little, since a gate depends on the shape of
the distribution of a map and hardly on its scale.

In a second pass, each norm gets the mean and the unbiased variance of its input over all samples (an instance norm the
means of those of each sample), and uses what was measured so far. Both passes run a twin of the model in eval mode; the
model itself gets the numbers at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from simam_inject.adapters import adapter_of, network_of, update
from simam_inject.attention import SimAM, simam
from simam_inject.errors import ModelError, describe_exception, shortened
from simam_inject.planning.tables import Table
from simam_inject.warmup.batches import Batches, evaluated_twin
from simam_inject.warmup.strength import named_simams

_UNBATCHED = ((nn.InstanceNorm1d, 2), (nn.InstanceNorm2d, 3), (nn.InstanceNorm3d, 4))
"""Number of dimensions of a single sample, which these take without a batch."""


@dataclass(frozen=True, slots=True)
class SiteFit:
    """What was fitted at one site."""

    path: str
    gain: float
    error_before: float
    """Size of y - x relative to x at gain 1, as root mean square: 0 means unchanged, 0.3 is usual for a cold SimAM."""
    error_after: float
    """The same with the gain."""

    @property
    def kept(self) -> float:
        """Share of the signal's energy that is kept: 1 - error_after^2."""
        return 1.0 - self.error_after**2


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result of `calibrate`. `str` gives a table."""

    sites: tuple[SiteFit, ...]
    """In the order in which they ran; empty without `gains`."""
    norms: int
    """How many norms got new statistics."""
    frozen: int
    """How many were left as they are: frozen, not derived from PyTorch's classes, without statistics per channel, or
    without anything to measure on these batches."""
    note: str = ""
    """Why no norm got new statistics, where they were asked for."""

    def __str__(self) -> str:
        rows = [
            (one.path, f"{one.gain:.3f}", f"{one.error_before:.3f}", f"{one.error_after:.3f}", f"{one.kept:.1%}")
            for one in self.sites
        ]
        lines = Table(["site", "gain", "error before", "after", "kept"], rows).lines()
        frozen = f", {self.frozen} unchanged (frozen, not of PyTorch's classes, or not run)" if self.frozen else ""
        lines.append(f"norms: {self.norms} recomputed{frozen}" + f" ({self.note})" * bool(self.note))
        return "\n".join(lines)


def calibrate(
    model: nn.Module, batches: Any, *, gains: bool = True, norms: bool = True, frozen_norms: bool = False
) -> Calibration:
    """Fit SimAM to a trained network, in place and without labels: a gain for each site, then new norm statistics.

    Runs a copy of the model, in eval mode and without gradients; if an error is raised, the model is unchanged. Where
    `torch.distributed` is initialised, every process has to call it on its own batches, and all get the same numbers.

    The copy gets copies of the tensors, on its device. If it cannot run a batch as it is, as few tensors as possible
    are converted: floating-point ones to the dtype of the model, images of bytes (uint8) to numbers from 0 to 1; bytes
    only if `example_inputs` of the injection had none.

    Args:
        model: a model with SimAM in it, not yet wrapped or compiled; or an ultralytics `YOLO`.
        batches: a DataLoader, an iterable of tensors, (input, target) pairs or dicts by the names of the arguments, or
            one tensor. A thousand images are enough: `itertools.islice(loader, 8)`. They must be in mixed order
            (`shuffle=True`): from batches that are sorted by class, the norms get statistics that fit no class. For a
            `YOLO` object also the YAML file (or name, or folder of classes) of its data set: 512 of its training
            images, resized as for validation.
        gains: fit the gains, at strength 1, whatever the strength is now.
        norms: compute the running statistics of norms again, at the strength that the model has. At strength 0 they
            fit already and do not change.
        frozen_norms: also of frozen norms: those of a class that is not derived from PyTorch's, as `FrozenBatchNorm2d`,
            and those in eval mode whose parameters do not train while others of the model do, or whose model is in
            train mode.

    Returns:
        The gains with their errors; `print` shows a table.

    Raises:
        ModelError: the model has no SimAM, it is wrapped or compiled, no batch could be run, a site did not run
            or got values that are not finite, or there is nothing to do.

    Example:
        >>> import torch, torchvision
        >>> from simam_inject import inject
        >>> model = inject(torchvision.models.resnet18(), "paper", verify=False)
        >>> found = calibrate(model, torch.rand(4, 3, 64, 64))
        >>> len(found.sites), found.norms
        (8, 20)
    """
    network = network_of(model)
    twin = evaluated_twin(network, "calibrate")
    sites = named_simams(network)
    targets, frozen = _norms_of(network, frozen_norms) if norms else ({}, 0)
    note = "" if targets or not norms else "no norm of PyTorch's classes has running statistics and is not frozen"
    if targets and all(attention.strength == 0.0 for _, attention in sites):
        targets, note = {}, "at strength 0 norms do not change"
    if not gains and not targets:
        raise ModelError(f"nothing to calibrate: {note or 'both gains and norms are turned off'}")
    if isinstance(batches, (str, PathLike)):
        batches = adapter_of(model).batches(model, str(batches)) or batches
    source = Batches(network, batches)
    with torch.no_grad():
        _check_writable(targets)
        fits = _fit_gains(twin, source) if gains else ()
        renewed = _fit_norms(twin, list(targets), source) if targets else {}
        for path, norm in renewed.items():
            targets[path].running_mean.copy_(norm.running_mean)
            targets[path].running_var.copy_(norm.running_var)
        for (_, attention), (_, fitted) in zip(sites, named_simams(twin), strict=True):
            attention.gain = fitted.gain
    update(model)
    if targets and not renewed:
        note = "none ran on these batches with more than one value per channel"
    return Calibration(fits, len(renewed), frozen + len(targets) - len(renewed), note)


def _check_writable(norms: dict[str, Any]) -> None:
    """Write to all norms what they hold: none gets new statistics where one cannot."""
    for path, norm in norms.items():
        try:
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(statistic.clone())
        except RuntimeError as error:
            raise ModelError(f"the norm {path} cannot get new statistics: {describe_exception(error)}") from error


def _fit_gains(network: nn.Module, source: Batches) -> tuple[SiteFit, ...]:
    sites = named_simams(network)
    sums = {path: torch.zeros(3, dtype=torch.float64, device="cpu") for path, _ in sites}
    ran: dict[str, Tensor] = {}  # in the order in which they run
    with _pooled(network, sums.values()), ExitStack() as stack:
        for path, attention in sites:
            stack.enter_context(attention.register_forward_hook(partial(_attend, path, sums[path], ran)))
        source.run(network, "fitting gains")
        if idle := [path for path in sums if path not in ran]:
            raise ModelError(
                f"SimAM at {shortened(idle, 3)} did not run in eval mode on these batches, so it cannot be "
                "calibrated; end its bypass, or leave the site out: inject(model, recipe, exclude=[...])"
            )
    for path, attention in sites:
        attention.gain = _gain(sums[path])
    return tuple(_fit(path, found) for path, found in ran.items())


def _attend(
    path: str, sums: Tensor, ran: dict[str, Tensor], attention: SimAM, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """Forward hook: add to the sums of x x, x y and y y, and return what SimAM would at strength 1 with its gain."""
    if attention.bypassed:
        return output
    y = simam(args[0], attention.e_lambda, channel_dim=attention.channel_dim)
    a, b = (t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in (args[0], y))
    found = torch.stack([(a * a).sum(), (a * b).sum(), (b * b).sum()]).cpu()
    if not bool(found.isfinite().all()):
        raise ModelError(f"the map at {path} has values that are not finite (NaN or infinity)")
    sums += found
    ran[path] = sums
    return y * _gain(sums)


def _gain(sums: Tensor) -> float:
    _, xy, yy = sums.tolist()
    return xy / yy if yy else 1.0  # a map of zeros, as of a dead layer, has no best gain


def _fit(path: str, sums: Tensor) -> SiteFit:
    xx, xy, yy = sums.tolist()
    gain = _gain(sums)
    before, after = (max(xx - 2 * c * xy + c * c * yy, 0.0) / (xx or 1.0) for c in (1.0, gain))
    return SiteFit(path, gain, before**0.5, after**0.5)


def _fit_norms(network: nn.Module, paths: list[str], source: Batches) -> dict[str, Any]:
    """The norms that ran, by path, with the statistics of what they read."""
    norms: dict[str, Any] = {path: network.get_submodule(path) for path in paths}
    sums = {
        path: torch.zeros(3, len(norm.running_mean), dtype=torch.float64, device="cpu") for path, norm in norms.items()
    }
    for path, norm in norms.items():
        norm.register_forward_pre_hook(partial(_measure, path, sums[path]), with_kwargs=True)
    with _pooled(network, sums.values()):
        source.run(network, "estimating norms")
    ran = {path: norm for path, norm in norms.items() if sums[path].any()}
    for path, norm in ran.items():
        if sums[path][0, 0] < 2 and not isinstance(norm, _InstanceNorm):
            raise ModelError(f"the norm {path} reads one value per channel, which has no variance: give more samples")
        _set_statistics(norm, sums[path])
    return ran


def _measure(path: str, sums: Tensor, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook: add to the sums of 1, x and x x for each channel, and set the statistics of all so far."""
    x, channels = (*args, *kwargs.values())[0].detach(), len(norm.running_mean)
    per_sample = isinstance(norm, _InstanceNorm)
    if x.dim() == next((rank for kind, rank in _UNBATCHED if isinstance(norm, kind)), None):
        x = x.unsqueeze(0)
    author = getattr(type(norm), "forward", norm).__module__.partition(".")[0]  # a forward of its own may permute
    if x.shape[1] != channels or (channels in x.shape[2:] and author not in ("torch", "torchvision", "timm")):
        raise ModelError(
            f"the norm {path} has {channels} channels and reads a tensor of shape {tuple(x.shape)}: which dimension "
            "contains them is not known; pass norms=False (or leave frozen_norms out, where that is the reason)"
        )
    if per_sample and x.shape[2:].numel() == 1:
        return  # one value has no variance
    dims = [dim for dim in range(1 if per_sample else 0, x.dim()) if dim != 1]
    spread = torch.var_mean(x if x.dtype == torch.float64 else x.float(), dims, correction=int(per_sample))
    variance, mean = (statistic.cpu().double() for statistic in spread)
    if not bool((variance + mean).isfinite().all()):
        raise ModelError(f"what the norm {path} reads has values that are not finite (NaN or infinity)")
    if per_sample:
        sums += torch.stack([torch.ones_like(mean), mean, variance]).sum(1)
    else:
        sums += x.numel() // channels * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
    _set_statistics(norm, sums)


def _set_statistics(norm: Any, sums: Tensor) -> None:
    count, total, squares = sums
    mean = total / count
    norm.running_mean.copy_(mean)
    variance = (squares - total * mean).clamp(min=0) / (count - 1).clamp(min=1)
    is_instance: bool = isinstance(norm, _InstanceNorm)  # the sum is that of the variances of samples
    norm.running_var.copy_(squares / count if is_instance else variance)


def _norms_of(network: nn.Module, frozen_too: bool) -> tuple[dict[str, Any], int]:
    """Norms with running statistics that are to get new ones, by path, and how many others there are."""
    found = {
        path: module
        for path, module in network.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
        and isinstance(getattr(module, "running_var", None), Tensor)
    }
    taken = {
        path: module
        for path, module in found.items()
        if module.running_mean.dim() == module.running_var.dim() == 1
        and (frozen_too or not _is_frozen(network, module))
    }
    return taken, len(found) - len(taken)


def _is_frozen(network: nn.Module, norm: nn.Module) -> bool:
    if not isinstance(norm, nn.modules.batchnorm._NormBase):
        return True  # FrozenBatchNorm2d and its like never update theirs; of other classes it is not known
    trains = any(parameter.requires_grad for parameter in network.parameters())  # none does in checkpoints of a YOLO
    parameters = list(norm.parameters(recurse=False))
    fixed = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    return not norm.training and (network.training or (fixed and trains))


@contextmanager
def _pooled(network: nn.Module, sums: Iterable[Tensor]) -> Iterator[None]:
    """Add up the sums of all processes after the body. If it raises in one, all raise: they would wait for ever."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if dist.is_available() and dist.is_initialized():
        device = next((parameter.device for parameter in network.parameters()), None)
        failed = torch.tensor(int(failure is not None), device="cpu")
        for tensor in (failed, *sums):
            moved = tensor.to(device)
            dist.all_reduce(moved)
            tensor.copy_(moved)
        if failed.item() and failure is None:
            failure = ModelError("calibration failed in another process")
    if failure is not None:
        raise failure
