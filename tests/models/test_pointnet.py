"""PointNet: what its maximum, its transforms and its penalty promise."""

import pytest
import torch

from tbn_tvm.models.pointnet import TransformNet
from tbn_tvm.models.registry import find_model
from tbn_tvm.training.losses import collected_penalties


@pytest.fixture(params=["pointnet", "pointnet-part", "pointnet-semantic"])
def case(request):
    """Each network at its small sizes, and inputs."""
    model = find_model(request.param).reduced()
    torch.manual_seed(0)
    return model.build().eval(), model.example_inputs(3)


def test_the_order_of_points_does_not_matter(case):
    module, (cloud, *others) = case
    order = torch.randperm(cloud.shape[2])
    y, permuted = module(cloud, *others), module(cloud[:, :, order], *others)
    if y.dim() == 3:
        y = y[:, :, order]
    torch.testing.assert_close(permuted, y, atol=1e-5, rtol=1e-5)


def test_the_category_matters_to_parts():
    model = find_model("pointnet-part").reduced()
    module, (cloud, _) = model.build().eval(), model.example_inputs(1)
    mug, table = torch.eye(4)[None, 0], torch.eye(4)[None, 1]
    assert not torch.allclose(module(cloud, mug), module(cloud, table))


def test_the_penalty_is_the_distance_from_rotations():
    net = TransformNet(3, 4, penalised=True)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    matrices = torch.stack([rotation, 2 * torch.eye(4)])
    # |I - 4 I|^2 = 4 * 9, and 0 for the rotation.
    torch.testing.assert_close(net.penalty(matrices), torch.tensor(18.0), atol=1e-4, rtol=0)
    assert TransformNet(3, 3).penalty(torch.zeros(1, 3, 3)) == 0


def test_penalties_are_collected_with_their_gradient_and_only_inside(case):
    module, inputs = case
    with collected_penalties(module.train(), 0.5) as found:
        module(*inputs)
    sum(found).backward()
    assert module.encoder.align_features.cloud[-1].bias.grad.abs().sum() > 0
    with collected_penalties(module, 0.0) as none:
        module(*inputs)
    module(*inputs)
    # Both transforms answer; that of coordinates asks for nothing.
    assert (found[0], len(found), none) == (0, 2, [])
