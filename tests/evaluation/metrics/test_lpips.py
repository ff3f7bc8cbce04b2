"""LPIPS with random weights against modules of the published form, and its files."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from colorflux_core.errors import ColorFluxError
from colorflux_core.evaluation.benchmark.methods import Method
from colorflux_core.evaluation.benchmark.sets import BenchmarkSet, Item
from colorflux_core.evaluation.metrics.lpips import load_lpips, lpips, lpips_scores

# VGG16's features, by place; M is a pooling, and each convolution is followed by a ReLU.
VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
SLICES = (range(0, 4), range(4, 9), range(9, 16), range(16, 23), range(23, 30))


class Scaling(nn.Module):
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.03, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.45]).view(1, 3, 1, 1))

    def forward(self, rgb: Tensor) -> Tensor:
        return (2 * rgb - 1 - self.shift) / self.scale


class Published(nn.Module):
    """With the names that the package ``lpips`` gives to its weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in VGG16:
            if isinstance(entry, int):
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
                channels = entry
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.net = nn.ModuleDict(
            {
                f"slice{number + 1}": nn.Sequential(OrderedDict((str(i), layers[i]) for i in part))
                for number, part in enumerate(SLICES)
            }
        )
        for number, width in enumerate((64, 128, 256, 512, 512)):
            convolution = nn.Conv2d(width, 1, 1, bias=False)
            convolution.weight.data.abs_()
            judge = nn.Sequential(nn.Dropout(), convolution)
            self.add_module(f"lin{number}", nn.Sequential(OrderedDict(model=judge)))
        self.scaling_layer = Scaling()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        total = torch.zeros(len(one))
        pair = [self.scaling_layer(rgb) for rgb in (one, other)]
        for number, part in enumerate(self.net.values()):
            pair = [part(planes) for planes in pair]
            norms = [planes.square().sum(1, keepdim=True).sqrt() + 1e-10 for planes in pair]
            difference = pair[0] / norms[0] - pair[1] / norms[1]
            total = total + getattr(self, f"lin{number}")(difference**2).mean((1, 2, 3))
        return total


@pytest.fixture(scope="module")
def published() -> Published:
    torch.manual_seed(0)
    return Published().eval()


@pytest.fixture(scope="module")
def weights(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lpips_vgg.safetensors"
    save_file(dict(published.state_dict()), path)
    return path


def pictures(seed: int, height: int = 37, width: int = 50) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_values_are_those_of_the_published_modules(published: Published, weights: Path) -> None:
    one, other = pictures(0), pictures(1)
    with torch.no_grad():
        expected = published(one, other)
    found = lpips(load_lpips(weights), one, other)
    assert expected.min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert lpips(load_lpips(weights), one, one).abs().max() == 0


def test_pictures_may_be_tiny(weights: Path) -> None:
    loaded = load_lpips(weights)
    for height, width in ((1, 1), (2, 1), (1, 40)):
        found = lpips(loaded, pictures(0, height, width), pictures(1, height, width))
        assert found.isfinite().all() and found.min() > 0


def test_other_files_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ColorFluxError, match="absent"):
        load_lpips(tmp_path / "absent.safetensors")
    state = load_lpips(weights)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ColorFluxError, match="pickle"):
        load_lpips(tmp_path / "pickle.safetensors")
    save_file({k: v for k, v in state.items() if "lin3" not in k}, tmp_path / "less.safetensors")
    with pytest.raises(ColorFluxError, match="lin3"):
        load_lpips(tmp_path / "less.safetensors")


def test_scores_of_files(weights: Path, tmp_path: Path) -> None:
    def write(name: str, rgb: Tensor) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((rgb * 255).byte().permute(1, 2, 0).numpy()).save(path)
        return path

    truths = [write(f"truth/{name}.png", rgb) for name, rgb in zip("ab", pictures(2), strict=True)]
    truths.append(write("truth/c.png", pictures(3)[0]))
    write("ours/a.png", pictures(2)[0])
    write("ours/b.png", pictures(4, 74, 100)[0])
    benchmark = BenchmarkSet("set", tuple(Item(path.stem, path, path) for path in truths))
    method, cache = Method("ours", tmp_path / "ours"), tmp_path / "cache"
    scores = lpips_scores([benchmark], [method], weights, cache)
    values = {score.image: score.value for score in scores}
    assert values["a"] == 0 and values["b"] > 1e-3 and math.isnan(values["c"])
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 2
    again = lpips_scores([benchmark], [method], weights, cache)
    assert [score.value for score in again[:2]] == [score.value for score in scores[:2]]
    real = BenchmarkSet("real", (Item("a", truths[0], None),))
    assert not lpips_scores([real], [method], weights, cache)
