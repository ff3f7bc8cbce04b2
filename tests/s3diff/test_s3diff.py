"""S3Diff's own picture: every part against the public code's arithmetic, written out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from colorflux_core.errors import ColorFluxError
from colorflux_core.photos.color import grayscale
from colorflux_core.s3diff import restorer
from colorflux_core.s3diff.checkpoint import load_s3diff
from colorflux_core.s3diff.color_fix import fix_colors
from colorflux_core.s3diff.convert import convert
from colorflux_core.s3diff.degradation import DegradationEstimator
from colorflux_core.s3diff.model import S3Diff
from colorflux_core.s3diff.modulated_lora import ModulatedLora, unet_stage, vae_stage
from colorflux_core.s3diff.modulation import fourier_features
from colorflux_core.s3diff.options import ColorFix, Restoration
from colorflux_core.s3diff.restorer import restore
from colorflux_core.s3diff.sd_turbo import UNET, VAE, text_embeddings
from colorflux_core.s3diff.tiling import blend, enlarged, spans, strips
from tests.s3diff import models as tiny
from tests.s3diff import reference

DEGREES = torch.tensor([[0.2, 0.7], [0.9, 0.1]])
PLAIN = Restoration(color_fix="none")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published layout, SD-Turbo and the converted checkpoint."""
    folder = tmp_path_factory.mktemp("s3diff")
    tiny.save_sd_turbo(folder / "sd-turbo")
    torch.save(tiny.published(), folder / "s3diff.pkl")
    torch.save(tiny.published_de_net(), folder / "de_net.pth")
    convert(
        folder / "s3diff.pkl", folder / "de_net.pth", folder / "s.safetensors", tiny.UNET, tiny.VAE
    )
    return folder


@pytest.fixture
def model(files: Path) -> S3Diff:
    return load_s3diff(files / "s.safetensors", files / "sd-turbo")


def photos(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def expected(model: S3Diff, rgb: Tensor, scale: int) -> Tensor:
    height, width = (-(-scale * side // 64) * 8 for side in rgb.shape[-2:])
    noise = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
    weights = (tiny.published(), tiny.published_de_net())
    return reference.restored(*tiny.tiny_networks(), *weights, model.prompts, rgb, scale, noise)


@pytest.mark.parametrize(("scale", "height", "width"), [(1, 50, 70), (1, 64, 128), (2, 37, 33)])
def test_the_picture_is_the_public_codes(
    model: S3Diff, scale: int, height: int, width: int
) -> None:
    rgb = photos(1, height, width)
    ours = restore(model, rgb, Restoration(scale=scale, color_fix="none"))
    theirs = expected(model, rgb, scale)
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() < 1e-4


def test_de_net_is_the_public_codes(model: S3Diff) -> None:
    rgb = photos(2, 41, 30)
    theirs = reference.degradation(tiny.published_de_net(), rgb)
    with torch.no_grad():
        torch.testing.assert_close(model.de_net(rgb), theirs)


@pytest.mark.parametrize("network", ["unet", "vae"])
def test_modulations_are_the_public_codes(model: S3Diff, network: str) -> None:
    weights = tiny.published()
    theirs = reference.modulations(weights, network, DEGREES, weights[f"rank_{network}"])
    with torch.no_grad():
        fourier = fourier_features(DEGREES, model.frequencies)
        ours = getattr(model, f"{network}_modulator")(fourier)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_the_networks_are_the_public_codes(model: S3Diff, count: int) -> None:
    weights, degrees = tiny.published(), DEGREES[:count]
    unet, vae = tiny.tiny_networks()
    unet.conv_in.load_state_dict(
        {name: weights["state_dict_unet"][f"conv_in.{name}"] for name in ("weight", "bias")}
    )
    for kind, network in (("unet", unet), ("vae", vae)):
        matrices = reference.modulations(weights, kind, degrees, weights[f"rank_{kind}"])
        reference.hook(network, weights, kind, matrices)
    pixels, z = 2 * photos(count, 64, 64) - 1, torch.randn(count, 4, 8, 8)
    prompts = torch.randn(count, 77, 24)
    with torch.no_grad(), model.adapted(degrees):
        for ours, theirs in (
            (model.unet(z, 999, prompts).sample, unet(z, 999, prompts).sample),
            (model.vae.encode(pixels).latent_dist.mean, vae.encode(pixels).latent_dist.mean),
            (model.vae.decode(z).sample, vae.decode(z).sample),
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_each_kind_of_layer_and_stage_has_its_lora(model: S3Diff) -> None:
    layers = {
        f"{part}.{name}": layer
        for part, network in (("unet", model.unet), ("vae", model.vae))
        for name, layer in network.named_modules()
        if isinstance(layer, ModulatedLora)
    }
    kinds = {
        (type(layer.base_layer), getattr(layer.base_layer, "kernel_size", None))
        for layer in layers.values()
    }
    assert kinds == {(nn.Linear, None), (nn.Conv2d, (1, 1)), (nn.Conv2d, (3, 3))}
    names = [name.partition(".")[2] for name in layers if name.startswith("unet")]
    assert {unet_stage(name) for name in names} == set(range(10))
    names = [name.partition(".")[2] for name in layers if name.startswith("vae")]
    assert {vae_stage(name) for name in names} == set(range(6))


def test_the_lora_is_on_while_it_is_modulated(model: S3Diff) -> None:
    _, vae = tiny.tiny_networks()
    z = torch.randn(1, 4, 8, 8)
    pixels = 2 * photos(1, 64, 64) - 1
    with torch.no_grad():
        assert torch.equal(model.vae.decode(z).sample, vae.decode(z).sample)
        plain = vae.encode(pixels).latent_dist.mean
        assert torch.equal(model.vae.encode(pixels).latent_dist.mean, plain)
        with model.adapted(DEGREES[:1]):
            assert not torch.allclose(model.vae.encode(pixels).latent_dist.mean, plain)
        assert torch.equal(model.vae.encode(pixels).latent_dist.mean, plain)


def test_sd_turbo_has_as_many_tensors_as_published() -> None:
    with torch.device("meta"):
        model = S3Diff(UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), torch.zeros(0))
    trained = model.trained
    unet = [key for key in trained if key.startswith("unet.")]
    assert len([key for key in unet if ".lora_" in key]) == 514
    assert [key for key in unet if ".lora_" not in key] == [
        "unet.conv_in.weight",
        "unet.conv_in.bias",
    ]
    assert len([key for key in trained if key.startswith("vae.")]) == 62
    down = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert trained[f"{down}.lora_A.weight"].shape == (32, 1024)
    assert trained["unet.up_blocks.3.resnets.2.conv1.lora_B.weight"].shape == (320, 32, 1, 1)
    assert trained["vae.encoder.conv_in.lora_A.weight"].shape == (16, 3, 3, 3)
    assert trained["unet_modulator.fuse_mlp.weight"].shape == (32**2, 320)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (30, 97), (121, 64), (128, 128)])
@pytest.mark.parametrize("tile", [32, 46])
def test_de_net_in_tiles_is_exact(height: int, width: int, tile: int) -> None:
    estimator = DegradationEstimator(width=4).double()
    rgb = photos(2, height, width).double()
    with torch.no_grad():
        towers = zip(estimator.conv_first, estimator.body, strict=True)
        pooled = [body(first(rgb)).mean(dim=(-2, -1)) for first, body in towers]
        whole = [head(x) for head, x in zip(estimator.fc_degree, pooled, strict=True)]
        torch.testing.assert_close(
            estimator(rgb, tile), torch.cat(whole, dim=1), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 20, 33])
def test_spans_and_strips_cover_all(length: int) -> None:
    overlapping, disjoint = spans(length, 8, 3), strips(length, 8)
    for parts in (overlapping, disjoint):
        assert parts[0].start == 0 and parts[-1].stop == length
    for one, other in itertools.pairwise(overlapping):
        assert one.stop - other.start >= 3
        assert other.start > one.start
    assert {part.stop - part.start for part in overlapping} == {min(8, length)}
    for one, other in itertools.pairwise(disjoint):
        assert one.stop == other.start == one.start + 8


@pytest.mark.parametrize("size", [(5, 5), (20, 33), (8, 41)])
@pytest.mark.parametrize("unit", [1, 4])
def test_blending_tiles_of_a_picture_gives_the_picture(size: tuple[int, int], unit: int) -> None:
    picture = torch.rand(2, 3, *(unit * side for side in size))

    def cut(rows: slice, columns: slice) -> Tensor:
        return picture[..., enlarged(rows, unit), enlarged(columns, unit)]

    rows, columns = (spans(side, 8, 3) for side in size)
    blended = blend(torch.empty(picture.shape), rows, columns, unit, cut)
    torch.testing.assert_close(blended, picture, rtol=0, atol=1e-6)


def test_one_tile_is_no_tile(model: S3Diff) -> None:
    rgb = photos(1, 120, 180)
    assert torch.equal(
        restore(model, rgb, PLAIN), restore(model, rgb, Restoration(color_fix="none", tile=256))
    )


@pytest.fixture
def calm(model: S3Diff) -> S3Diff:
    """The same model with weaker LoRA, residual branches and estimate of the noise: random ones
    at full strength make a wild texture of every field, in which no seam could be told."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"\.(lora_B|conv2|to_out\.0|ff\.net\.2|proj_out)\b", name):
                parameter.mul_(0.1)
            if re.search(r"unet\.conv_out\.(base_layer|lora_B)", name):
                parameter.mul_(0.001)
    model.de_net = DegradationEstimator(width=4)
    return model


def test_tiles_of_the_networks_are_what_they_are_in_the_whole(calm: S3Diff) -> None:
    """Within 6 % in their middle: normalization and attention see less of the picture. A tile that
    does not begin at a multiple of 64 pixels is sampled elsewhere, and off by far more."""
    generator = torch.Generator().manual_seed(0)
    pixels, z = photos(1, 512, 512), torch.randn(1, 4, 64, 64, generator=generator)

    def error(network: Callable[[Tensor], Tensor], x: Tensor, start: int, side: int) -> float:
        whole = network(x)
        factor = whole.shape[-1] / x.shape[-1]
        tile = network(x[..., start : start + side, start : start + side])
        first, middle = int(factor * start), slice(tile.shape[-1] // 4, -tile.shape[-1] // 4)
        place = slice(first, first + tile.shape[-1])
        whole, tile = whole[..., place, place][..., middle, middle], tile[..., middle, middle]
        return float((tile - whole).square().mean().sqrt() / whole.std())

    def noise(z: Tensor) -> Tensor:
        return calm.unet(z, 999, calm.prompts[:1]).sample

    with torch.no_grad(), calm.adapted(DEGREES[:1]):
        assert error(lambda x: calm.encode(x)[0], pixels, 128, 256) < 0.06
        assert error(noise, z, 16, 32) < 0.06
        assert error(noise, z, 17, 32) > 0.2
        assert error(calm.decode, z, 16, 32) < 0.06


def largest_step(picture: Tensor) -> float:
    return max(float(picture.diff(dim=dim).abs().max()) for dim in (-1, -2))


def test_tiles_leave_no_seam_on_a_flat_field(calm: S3Diff, monkeypatch: pytest.MonkeyPatch) -> None:
    gray = torch.full((1, 3, 512, 768), 0.5)
    options = Restoration(tile=256, seed=None, color_fix="none")
    inner = (..., slice(64, -64), slice(64, -64))
    assert largest_step(restore(calm, gray, options)[inner]) < 1 / 255
    # Nor would a narrower overlap or none do.
    for narrower in (lambda length, size, _: spans(length, size, 1), lambda *of: strips(*of[:2])):
        monkeypatch.setattr(restorer, "spans", narrower)
        assert largest_step(restore(calm, gray, options)[inner]) > 5 / 255


@pytest.mark.parametrize("tile", range(4, 14))
def test_tiles_of_other_brightness_leave_no_seam(tile: int) -> None:
    parts = spans(20, tile, -(-tile // 3))

    def field(rows: slice, columns: slice) -> Tensor:
        return torch.tensor(15 / 255 if (parts.index(rows) + parts.index(columns)) % 2 else 0.0)

    assert largest_step(blend(torch.empty(1, 1, 1280, 1280), parts, parts, 64, field)) < 1 / 255


def test_a_batch_gives_each_photo_what_it_gets_alone(model: S3Diff) -> None:
    rgb = torch.cat(
        [photos(1, 90, 130), photos(1, 90, 130).flip(-1) * 0.3, torch.zeros(1, 3, 90, 130)]
    )
    together = restore(model, rgb, Restoration(tile=256))
    for photo, restored in zip(rgb, together, strict=True):
        alone = restore(model, photo[None], Restoration(tile=256))[0]
        # Convolutions of other batch sizes round differently, and by CPU: 3.1e-5 on an AMD Zen 4.
        torch.testing.assert_close(restored, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", [(1, 1), (1, 90), (65, 3)])
@pytest.mark.parametrize("scale", [1, 1.5, 4])
def test_any_size_and_scale(model: S3Diff, side: tuple[int, int], scale: float) -> None:
    restored = restore(model, photos(1, *side), Restoration(scale=scale))
    assert restored.shape[-2:] == tuple(round(scale * n) for n in side)
    assert restored.isfinite().all() and restored.min() >= 0 and restored.max() <= 1


def test_all_depths_are_one_photo(model: S3Diff) -> None:
    deep = (photos(1, 40, 40) * 255).round()
    eight, sixteen = deep.to(torch.uint8), (deep * 257).to(torch.uint16)
    whole = restore(model, deep / 255)
    for rgb in (eight, sixteen):
        torch.testing.assert_close(restore(model, rgb), whole, rtol=0, atol=1e-5)


def test_seed_mode_gray_and_progress(model: S3Diff) -> None:
    rgb, told = photos(1, 300, 90), []
    one = restore(model, rgb, Restoration(tile=256), lambda *done: told.append(done))
    assert told == [(i + 1, 8) for i in range(8)]
    assert torch.equal(one, restore(model, rgb, Restoration(tile=256)))
    assert not torch.equal(one, restore(model, rgb, Restoration(tile=256, seed=1)))
    mode = restore(model, rgb, Restoration(seed=None))
    assert torch.equal(mode, restore(model, rgb, Restoration(seed=None)))
    gray = restore(model, rgb, Restoration(tile=256, gray=True))
    assert torch.equal(gray, grayscale(one))

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(model, rgb, PLAIN, stop)


def wavelet_blur(image: Tensor, radius: int) -> Tensor:
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=image.dtype) / 16
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, 3, 3), groups=3, dilation=radius)


@pytest.mark.parametrize(("height", "width"), [(2, 5), (300, 40), (700, 33)])
def test_color_fixes_are_the_public_codes(height: int, width: int) -> None:
    restored, original = (
        photos(1, height, width).double(),
        photos(1, height, width).flip(1).double(),
    )
    high, low = restored, original
    for level in range(5):
        high, low = wavelet_blur(high, 2**level), wavelet_blur(low, 2**level)
    wavelet = (restored - high + low).clamp(0, 1)

    def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
        flat = image.flatten(2)
        return flat.mean(2)[..., None, None], (flat.var(2) + 1e-5).sqrt()[..., None, None]

    (mean, spread), (target_mean, target_spread) = statistics(restored), statistics(original)
    adain = ((restored - mean) / spread * target_spread + target_mean).clamp(0, 1)
    by_method: dict[ColorFix, Tensor] = {"wavelet": wavelet, "adain": adain, "none": restored}
    for method, theirs in by_method.items():
        ours = fix_colors(restored.clone(), lambda rows: original[..., rows, :], method)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_prompts_of_ones_own_need_a_tokenizer(files: Path) -> None:
    published = text_embeddings(files / "sd-turbo")
    assert published.shape == (2, 77, 24)
    assert not torch.allclose(published[0], published[1])
    with pytest.raises(ColorFluxError, match="no tokenizer"):
        text_embeddings(files / "sd-turbo", ["a photo"])


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 0.5}, {"scale": 5.0}, {"tile": 128}, {"tile": 700}, {"guidance": -1.0}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ColorFluxError, match=f"{next(iter(wrong))} is"):
        Restoration(**wrong)  # type: ignore[arg-type]
