"""The two domains: the content of their streets, and their cameras.

They differ like a game and a real camera car: in colors, light, haze, surfaces and noise, in height and lens
of the camera, and in how wide, green and crowded the streets are.
"""

from typing import Literal

from cpsl.data.streets.rendering import Photograph
from cpsl.data.streets.scene import Town

Style = Literal["game", "real"]

# Colors of both domains; each adds its own.
_COMMON_COLORS = {
    "car": ((200, 200, 205), (35, 35, 40), (120, 122, 128), (150, 30, 30), (40, 60, 130), (90, 105, 90)),
    "truck": ((220, 220, 215), (60, 90, 150), (180, 140, 50), (120, 50, 45)),
    "bus": ((190, 40, 40), (210, 180, 60), (60, 110, 160), (210, 210, 205)),
    "train": ((200, 190, 160), (170, 40, 40), (70, 120, 90), (215, 215, 215)),
    "two-wheeler": ((170, 30, 30), (30, 60, 130), (40, 40, 45), (200, 200, 200), (60, 130, 70)),
    "clothes": ((40, 45, 60), (110, 40, 40), (190, 185, 175), (70, 90, 120), (60, 70, 50), (30, 30, 32),
                (150, 120, 80)),
    "sign": ((190, 40, 40), (40, 80, 170), (225, 200, 60), (230, 230, 230)),
    "trunk": ((85, 65, 50), (70, 62, 55)),
}  # fmt: skip

TOWNS: dict[Style, Town] = {
    "game": Town(
        camera_height=(1.4, 2.2), focal=(1.1, 1.5), horizon=(0.42, 0.56), road=(5.5, 9.0),
        sidewalk=(2.5, 6.0), house=(6, 26), plots=(0.52, 0.22, 0.14, 0.12), verge=0.5, haze=(400, 900),
        trees=(0, 4), parked=(0, 6), traffic=(0, 4.5), people=(0, 10), two_wheelers=(0, 3), posts=(2, 9),
        bonnet=False,
        colors=_COMMON_COLORS | {
            "sky": ((95, 150, 225), (120, 170, 230), (150, 175, 205), (210, 170, 140)),
            "haze": ((200, 215, 230), (225, 215, 205)),
            "road": ((105, 103, 102), (85, 85, 90), (125, 120, 112)),
            "sidewalk": ((175, 168, 158), (150, 148, 146), (190, 170, 145)),
            "terrain": ((125, 140, 60), (165, 145, 90), (95, 130, 55)),
            "marking": ((235, 230, 220), (230, 190, 60)),
            "building": ((205, 175, 140), (170, 90, 70), (220, 215, 205), (150, 155, 165), (120, 135, 150),
                         (225, 190, 110), (110, 85, 75)),
            "window": ((50, 65, 85), (110, 140, 165), (30, 35, 45)),
            "wall": ((190, 165, 135), (150, 145, 140), (160, 95, 75)),
            "fence": ((120, 125, 125), (140, 110, 75), (60, 65, 60)),
            "vegetation": ((60, 115, 40), (95, 135, 50), (45, 90, 45), (120, 125, 55)),
            "pole": ((130, 132, 132), (75, 75, 78), (110, 90, 70)),
            "shadow": ((20, 20, 40, 70),),
        },
    ),
    "real": Town(
        camera_height=(1.2, 1.35), focal=(1.4, 1.7), horizon=(0.40, 0.47), road=(3.8, 6.5),
        sidewalk=(2.0, 5.0), house=(9, 22), plots=(0.58, 0.22, 0.12, 0.08), verge=0.4, haze=(120, 350),
        trees=(1, 9), parked=(1, 11), traffic=(0, 3.5), people=(0, 20), two_wheelers=(0, 5),
        posts=(3, 11), bonnet=True,
        colors=_COMMON_COLORS | {
            "sky": ((215, 220, 222), (190, 200, 212), (235, 225, 210)),
            "haze": ((205, 208, 208), (190, 192, 198), (215, 205, 195)),
            "road": ((100, 100, 104), (118, 116, 114), (88, 86, 88)),
            "sidewalk": ((128, 122, 120), (112, 112, 116), (145, 128, 120)),
            "terrain": ((95, 105, 65), (110, 98, 75), (80, 95, 60)),
            "marking": ((205, 205, 205),),
            "building": ((150, 135, 115), (125, 95, 85), (170, 165, 155), (115, 115, 118), (135, 130, 110),
                         (95, 85, 80)),
            "window": ((55, 60, 65), (95, 100, 105), (140, 145, 150)),
            "wall": ((120, 115, 108), (100, 98, 98), (125, 95, 82)),
            "fence": ((85, 92, 90), (100, 88, 72), (60, 65, 62)),
            "vegetation": ((62, 84, 44), (80, 98, 50), (48, 70, 42), (92, 90, 52)),
            "pole": ((105, 108, 108), (75, 76, 78), (140, 142, 142)),
            "shadow": ((10, 12, 18, 110),),
        },
    ),
}  # fmt: skip

CAMERAS: dict[Style, Photograph] = {
    "game": Photograph(
        texture=(0.05, 0.12), exposure=(0.75, 1.15), balance=(1.03, 1.0, 0.98), balance_deviation=0.04,
        saturation=(0.9, 1.2), veil=(0, 6), vignette=(0, 0.08), blur=(0.0005, 0.001), noise=(0.5, 1.5),
    ),
    "real": Photograph(
        texture=(0.09, 0.17), exposure=(0.7, 1.05), balance=(0.94, 1.04, 0.98), balance_deviation=0.04,
        saturation=(0.65, 1.0), veil=(6, 26), vignette=(0.08, 0.3), blur=(0.0012, 0.003),
        noise=(2.5, 5.5),
    ),
}  # fmt: skip
