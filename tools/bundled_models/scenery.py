"""The terrains: silhouettes from the horizon to the front, each layer nearer and clearer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .light import Colour, Light

Field = NDArray[np.float32]
Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """A picture in the making: canvas (height, width, 3) in 0..255, and its pixel grid."""

    canvas: Field
    grid: tuple[Field, Field]
    rng: np.random.Generator

    @property
    def height(self) -> int:
        """In pixels."""
        return self.canvas.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.canvas.shape[1]

    @property
    def side(self) -> int:
        """The shorter of the two: sizes are shares of it, so that no picture is stretched."""
        return min(self.height, self.width)

    def blend(
        self, cover: Field, colour: ArrayLike, window: tuple[slice, slice] | None = None
    ) -> None:
        """Paint a colour where cover (0..1) says so, on the whole canvas or a window of it."""
        target = self.canvas[window] if window else self.canvas
        target += cover[..., None] * (np.asarray(colour, np.float32) - target)

    def disc(self, centre: Point, radius: float, colour: ArrayLike, softness: float = 0.5) -> None:
        """A filled circle, all in pixels."""
        x, y = centre
        reach = int(radius + softness + 2)
        rows = slice(max(0, int(y) - reach), max(0, int(y) + reach + 1))
        columns = slice(max(0, int(x) - reach), max(0, int(x) + reach + 1))
        away = np.hypot(self.grid[0][rows, columns] - x, self.grid[1][rows, columns] - y)
        cover = np.clip((radius - away) / (2 * softness) + 0.5, 0, 1)
        self.blend(cover, colour, (rows, columns))

    def below(self, skyline: Field) -> Field:
        """Cover of all that lies under a skyline: its height in pixels from the top, per column."""
        return np.clip(self.grid[1] - skyline + 0.5, 0, 1)

    def waves(self, count: int, slowest: float) -> Field:
        """A smooth random line per column, about -1..1; slowest is in bumps per shorter side."""
        across = self.grid[0][0] / self.side
        line = np.zeros(self.width, np.float32)
        for octave in range(count):
            bumps = slowest * (1.7**octave) * self.rng.uniform(0.8, 1.2)
            turn = self.rng.uniform(0, 2 * np.pi)
            line += 0.55**octave * np.sin(2 * np.pi * bumps * across + turn)
        return line / sum(0.55**octave for octave in range(count))


def _ground(scene: Scene, light: Light, top: float, colour: Colour, distance: float) -> Field:
    """A soft meadow-like layer from `top` (share of the height) down; returns its skyline."""
    skyline = top * scene.height + 0.025 * scene.side * scene.waves(3, 0.6)
    lift = np.clip((scene.grid[1] - skyline) / (0.3 * scene.height), 0, 1)[..., None]
    shade = light.on(colour, distance) * (1.06 - 0.24 * lift)
    scene.blend(scene.below(skyline), shade)
    return skyline


def _peak(
    scene: Scene, light: Light, apex: Point, steep: float, distance: float, snow: bool
) -> None:
    x, y = apex
    across, down = scene.grid[0] - x, scene.grid[1] - y
    rough = 0.012 * scene.side * scene.waves(3, 5.0)
    cover = np.clip((down - np.abs(across) * steep + rough) * 0.7 + 0.5, 0, 1)
    lit = np.clip(0.5 - (across - 0.18 * down + 1.5 * rough) * 0.5, 0, 1)[..., None]
    rock = light.on((112, 116, 136), distance)
    scene.blend(cover, rock * (0.80 + 0.26 * lit))
    if snow:
        zigzag = 0.045 * scene.side * np.abs(((scene.grid[0][0] - x) / (0.05 * scene.side)) % 2 - 1)
        cap = np.clip((0.15 * scene.side + zigzag - down) * 0.7 + 0.5, 0, 1)
        white = light.on((248, 250, 255), 0.4 * distance) + 14
        scene.blend(cover * cap, white * (0.84 + 0.16 * lit))


def _mountain_range(scene: Scene, light: Light, horizon: float, snow: bool) -> None:
    rng = scene.rng
    for distance, low, rise in ((0.8, 0.30, 0.10), (0.35, 0.40, 0.14)):
        count = round(3 * scene.width / scene.side) + (distance > 0.5)
        shift = rng.uniform(-0.1, 0.1)
        for place in rng.permutation(count):
            share = (place + 0.5) / count + shift + rng.uniform(-0.05, 0.05)
            top = (horizon - low + 0.18 + rng.uniform(-rise, rise * 0.6)) * scene.height
            steep = rng.uniform(0.85, 1.25)
            _peak(scene, light, (share * scene.width, top), steep, distance, snow)


def _mountains(scene: Scene, light: Light, horizon: float, orb: Point | None) -> None:
    _mountain_range(scene, light, horizon - 0.08, snow=False)
    _ground(scene, light, horizon + 0.13, (86, 150, 84), 0.15)
    _ground(scene, light, horizon + 0.24, (58, 122, 62), 0.0)


def _snowy_mountains(scene: Scene, light: Light, horizon: float, orb: Point | None) -> None:
    _mountain_range(scene, light, horizon - 0.08, snow=True)
    _ground(scene, light, horizon + 0.13, (214, 226, 242), 0.15)
    _ground(scene, light, horizon + 0.24, (238, 244, 252), 0.0)


def _hills(scene: Scene, light: Light, horizon: float, orb: Point | None) -> None:
    greens: tuple[Colour, ...] = ((120, 176, 110), (104, 178, 84), (78, 156, 64), (54, 130, 52))
    for index, colour in enumerate(greens):
        top = (horizon - 0.06 + 0.105 * index) * scene.height
        skyline = top + 0.055 * scene.side * scene.waves(2, 0.7)
        lift = np.clip((scene.grid[1] - skyline) / (0.2 * scene.height), 0, 1)[..., None]
        shade = light.on(colour, 0.75 - 0.25 * index) * (1.08 - 0.22 * lift)
        scene.blend(scene.below(skyline), shade)


def _desert(scene: Scene, light: Light, horizon: float, orb: Point | None) -> None:
    sands: tuple[Colour, ...] = ((238, 196, 128), (232, 182, 104), (218, 160, 82), (200, 138, 64))
    for index, colour in enumerate(sands):
        top = (horizon - 0.03 + 0.1 * index) * scene.height
        across = scene.grid[0][0] / scene.side * scene.rng.uniform(0.75, 1.1)
        phase = (across + scene.rng.uniform(0, 1)) % 1.0
        # A dune climbs slowly and falls fast; the fast side lies in the shade.
        crest = np.where(phase < 0.68, phase / 0.68, (1 - phase) / 0.32)
        smooth = crest * crest * (3 - 2 * crest)
        skyline = top - 0.085 * scene.side * smooth
        shadow = np.where(phase < 0.68, 1.05, 0.86).astype(np.float32)
        depth = np.clip((scene.grid[1] - skyline) / (0.14 * scene.height), 0, 1)
        shade = light.on(colour, 0.7 - 0.23 * index) * (shadow + depth * (0.97 - shadow))[..., None]
        scene.blend(scene.below(skyline), shade)


def _sea(scene: Scene, light: Light, horizon: float, orb: Point | None) -> None:
    top = horizon * scene.height
    depth = np.clip((scene.grid[1] - top) / (scene.height - top), 0, 1)[..., None]
    far, near = light.on((70, 150, 206), 0.55), light.on((16, 84, 148), 0.0)
    scene.blend(scene.below(np.full(scene.width, top, np.float32)), far + depth * (near - far))
    rng = scene.rng
    for row in range(9):
        down = top + (scene.height - top) * ((row + 0.7) / 9) ** 1.4
        swell = down + 0.006 * scene.side * (1 + row / 3) * scene.waves(2, 1.6)
        thick = scene.side * (0.0025 + 0.0008 * row)
        broken = np.clip(scene.waves(3, 1.1) * 1.6, 0, 1)
        line = np.clip(thick - np.abs(scene.grid[1] - swell) + 0.5, 0, 1) * broken
        scene.blend(0.5 * line, far * 0.6 + 0.4 * np.array(light.glow, np.float32))
        if orb is not None:
            half = scene.side * (0.035 + 0.012 * row) * rng.uniform(0.75, 1.2)
            glint = np.hypot(
                (scene.grid[0] - orb[0]) / half, (scene.grid[1] - down) / (2.4 * thick)
            )
            scene.blend(0.85 * np.clip((1 - glint) * 2, 0, 1), light.orb)


def _tree(scene: Scene, foot: Point, tall: float, colour: Field) -> None:
    """A conifer: three tiers, each wider than the one above."""
    x, y = foot
    rows = slice(max(0, int(y - tall) - 2), max(0, min(scene.height, int(y) + 2)))
    reach = int(0.3 * tall) + 3
    columns = slice(max(0, int(x) - reach), max(0, int(x) + reach + 1))
    if rows.start >= rows.stop or columns.start >= min(columns.stop, scene.width):
        return
    across = np.abs(scene.grid[0][rows, columns] - x)
    up = (y - scene.grid[1][rows, columns]) / tall
    cover = np.zeros(across.shape, np.float32)
    for base, top, half in ((0.08, 0.55, 0.27), (0.32, 0.78, 0.21), (0.58, 1.0, 0.15)):
        edge = half * tall * np.clip((top - up) / (top - base), 0, 1)
        tier = np.clip(edge - across + 0.5, 0, 1) * np.clip((up - base) * tall + 0.5, 0, 1)
        cover = np.maximum(cover, tier)
    trunk = np.clip(0.03 * tall - across + 0.5, 0, 1) * (up < 0.12)
    scene.blend(np.maximum(cover, trunk), colour, (rows, columns))


def _forest(scene: Scene, light: Light, horizon: float, orb: Point | None) -> None:
    greens: tuple[Colour, ...] = ((84, 150, 112), (52, 122, 78), (26, 88, 52))
    for index, colour in enumerate(greens):
        distance = 0.8 - 0.4 * index
        top = horizon + 0.02 + 0.12 * index
        skyline = _ground(scene, light, top, colour, distance)
        count = round((13 - 2.5 * index) * scene.width / scene.side)
        for slot in range(count + 1):
            x = (slot + scene.rng.uniform(-0.3, 0.3)) / count * scene.width
            tall = scene.side * (0.15 + 0.06 * index) * scene.rng.uniform(0.75, 1.25)
            column = int(np.clip(x, 0, scene.width - 1))
            tone = light.on(colour, distance) * scene.rng.uniform(0.86, 1.02)
            _tree(scene, (x, float(skyline[column]) + 0.02 * scene.side), tall, tone)


Painter = Callable[[Scene, Light, float, Point | None], None]
PAINTERS: Mapping[str, Painter] = {
    "mountains": _mountains,
    "snowy mountains": _snowy_mountains,
    "hills": _hills,
    "sea": _sea,
    "desert": _desert,
    "forest": _forest,
}
"""Terrain word to what paints it: scene, light, horizon (share of the height), orb in pixels."""
