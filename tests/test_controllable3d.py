"""Controllable 3D synthesis: cameras, renderers, edits of scenes, files."""

from pathlib import Path

import pytest
import torch
from test_models import tiny
from torch import Tensor

from i2ifast import models
from i2ifast.models import System
from i2ifast.models._controllable3d import Faces, camera, placed, projected, seen, splat


def batch(n: int = 2, size: int = 32) -> dict[str, Tensor]:
    return {"image": torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1}


def upright(n: int = 1, depth: float = 2.0) -> Tensor:
    pose = torch.eye(3, 4).repeat(n, 1, 1)
    pose[:, 2, 3] = depth
    return pose


def test_cameras_look_at_the_centre_from_above() -> None:
    view = camera(torch.rand(5), 0.15 + 0.22 * torch.rand(5))
    turn = view[:, :, :3]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3).expand(5, 3, 3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(placed(torch.zeros(5, 1, 3), view)[:, 0], torch.tensor([[0.0, 0, 2]]).expand(5, 3))
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(5))
    above = placed(torch.tensor([[0.0, -0.3, 0]]).expand(5, 1, 3), view)
    assert (projected(above, 32)[..., 1] < 16).all()


@pytest.mark.parametrize("count", [1, 3])
def test_points_are_gaussians(count: int) -> None:
    points, features = torch.rand(2, count, 3) - 0.5, torch.randn(2, count, 4)
    expected = torch.zeros(2, 4, 32, 32)
    sigma = 2 if count == 1 else 1
    for n in range(2):
        for k in range(count):
            u, v = (32 * (points[n, k, i] / (points[n, k, 2] + 2) + 0.5) for i in (0, 1))
            rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
            weight = torch.exp(-((rows - v) ** 2 + (columns - u) ** 2) / sigma**2)
            expected[n] += features[n, k, :, None, None] * weight
    torch.testing.assert_close(splat(points, features, upright(2), 32), expected, rtol=1e-4, atol=1e-5)
    behind = splat(points, features, upright(2, -2.0), 32)
    assert not behind.any()


def test_a_cuboid_covers_its_silhouette_at_its_depth() -> None:
    faces = Faces(torch.full((1, 3), 0.3), upright(), 32)
    front = 32 * 0.3 / 1.7
    inside = (torch.arange(32) + 0.5 - 16).abs() < front - 2
    outside = (torch.arange(32) + 0.5 - 16).abs() > front + 5
    cover, nearest = faces.cover()[0, 0], faces.nearest()[0, 0]
    assert cover[inside][:, inside].min() > 0.5 and cover[outside].max() < 0.1
    torch.testing.assert_close(nearest[inside][:, inside], torch.full_like(nearest[inside][:, inside], 1.7 / 4))
    assert (nearest[outside] == 1).all()
    textures = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(-1, -1, 2, 3, 3)
    assert faces.painted(textures)[0, 0, 16, 16] > 3.5  # the face of axis 2 that looks at the camera


@pytest.mark.parametrize("options", [{}, {"render_type": "cuboid", "texsize": 3, "param_transforms": "trans_0.2_1"}])
def test_phases_train_their_networks(options: dict[str, object]) -> None:
    system = tiny("controllable3d", **options).train()
    for phase in system.phases:
        system.freeze_all_but(phase)
        system.zero_grad()
        optimizer = phase.optimizer.over(system.nets[phase.nets[0]].parameters())
        before = {name: p.detach().clone() for name, p in system.nets.named_parameters()}
        terms = phase.loss(system.prepare(batch()))
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        sum(terms.values()).backward()
        optimizer.step()
        changed = {name.split(".")[0] for name, p in system.nets.named_parameters() if not p.equal(before[name])}
        assert changed == set(phase.nets)


def test_consistency_teaches_the_2d_generator_only() -> None:
    system = tiny("controllable3d")
    z, sampled = system.sampled(2)
    system.consistency(system.redrawn(sampled, z)).backward()
    generators = system.nets["G"]
    assert all(p.grad is None for p in generators["generator_3d"].parameters())
    assert all(p.grad.isfinite().all() for p in generators["generator_2d"].parameters())


def scenes(system: System, **edits: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(0)
    view = camera(torch.tensor([0.1, 0.4]), torch.tensor([0.2, 0.3]))
    return system.translate({"latent": torch.randn(2, 8, generator=g), "view": view, **edits})["fake"]


def test_scenes_are_edited() -> None:
    system = tiny("controllable3d").eval()
    plain = scenes(system)
    assert plain.shape == (2, 3, 32, 32)
    torch.testing.assert_close(scenes(system, keep=torch.zeros(2, 2)), torch.ones_like(plain))
    for edit in ({"keep": torch.tensor([[1.0, 0], [1, 1]])}, {"turn": torch.tensor([[0.7, 0], [0, 0]])},
                 {"move": torch.tensor([[[0.3, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])}):  # fmt: skip
        edited = scenes(system, **edit)
        assert not edited[0].allclose(plain[0], atol=1e-4)
        torch.testing.assert_close(edited[1], plain[1])
    pose = upright(3)
    assert seen(pose, pose)[:, 2, 3].tolist() == [4.0] * 3


def test_files_of_the_original(tmp_path: Path) -> None:
    source, target = tiny("controllable3d"), tiny("controllable3d")
    for parameter in source.nets.parameters():
        torch.nn.init.uniform_(parameter)
    states = {"generator": source.nets["G"].state_dict(), "discriminator": source.nets["D"].state_dict()}
    torch.save(states, tmp_path / "model.pt")
    target.load_original(tmp_path / "model.pt")
    wanted = source.nets.state_dict()
    assert all(value.equal(wanted[key]) for key, value in target.nets.state_dict().items())
    torch.save({"discriminator": states["discriminator"]}, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"less\.pt has no network generator"):
        target.load_original(tmp_path / "less.pt")
    with pytest.raises(ValueError, match="param_transforms 'grow_2': expected rot_<degrees>_1"):
        models.build("controllable3d", "tiny", param_transforms="grow_2")
