import pytest
import torch

from cpsl.visualize import colorize, heatmap, overlay, panel

PALETTE = [(255, 0, 0), (0, 255, 0)]


def test_classes_get_their_colours_and_all_else_is_black() -> None:
    shown = colorize(torch.tensor([[0, 1, 255, 2]], dtype=torch.uint8), PALETTE)
    assert shown[:, 0].t().tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 0], [0, 0, 0]]


def test_an_overlay_shows_the_image_where_nothing_is_known() -> None:
    image = torch.full((3, 1, 2), 100, dtype=torch.uint8)
    shown = overlay(image, torch.tensor([[0, 255]]), PALETTE, alpha=0.5)
    assert shown[:, 0, 0].tolist() == [178, 50, 50]
    assert shown[:, 0, 1].tolist() == [100, 100, 100]


def test_a_heatmap_gets_brighter() -> None:
    shown = heatmap(torch.tensor([[-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0, torch.nan]]))
    brightness = shown.float().mean(dim=0)[0]
    assert (brightness[1:6].diff() > 0).all()
    assert brightness[0] == brightness[1] == brightness[7]
    assert brightness[5] == brightness[6]


def test_a_panel_holds_all_pictures() -> None:
    pictures = [torch.full((3, 4, 6), value, dtype=torch.uint8) for value in (0, 50, 100)]
    shown = panel(pictures, columns=2, gap=2)
    assert shown.shape == (3, 10, 14)
    assert shown[0, 0, 0] == 0
    assert shown[0, 0, 8] == 50
    assert shown[0, 6, 0] == 100
    assert shown[0, 6, 8] == 255
    with pytest.raises(ValueError, match="one size"):
        panel([pictures[0], torch.zeros(3, 2, 2, dtype=torch.uint8)], 2)
