"""Pictures of landscapes: a sky and, before it, layered terrain, lit by the time of day."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .grammar import Landscape
from .light import LIGHT, Light
from .scenery import PAINTERS, Scene
from .shapes import pixel_grid

Canvas = NDArray[np.float32]

LAYOUTS = {
    "mountains": 51,
    "snowy mountains": 42,
    "hills": 33,
    "sea": 4,
    "desert": 15,
    "forest": 6,
}
"""The seed of each terrain's lines. They are always the same and only shift a little: a denoiser this
small draws the mean of all that a caption leaves open, and the mean of many ridges is fog."""
SKY = 7
"""The seed of stars and clouds, for the same reason."""


def paint_landscape(
    spec: Landscape, height: int, width: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """The landscape as (height, width, 3) sRGB; the same rng draws the same picture."""
    layout = np.random.default_rng(LAYOUTS[spec.terrain])
    scene = Scene(np.empty((height, width, 3), np.float32), pixel_grid(height, width), layout)
    light = LIGHT[spec.time]
    _paint_sky(scene, light, rng)
    if spec.stars:
        _paint_stars(replace(scene, rng=np.random.default_rng(SKY)))
    horizon = 0.6 + rng.uniform(-0.008, 0.008)
    orb = _paint_orb(scene, light, spec, horizon, rng)
    if spec.clouds:
        _paint_clouds(replace(scene, rng=np.random.default_rng(SKY)), light, horizon)
    PAINTERS[spec.terrain](scene, light, horizon, orb)
    return np.clip(scene.canvas + 0.5, 0, 255).astype(np.uint8)


def _paint_sky(scene: Scene, light: Light, rng: np.random.Generator) -> None:
    stops = np.array(light.sky, np.float32) + rng.uniform(-4, 4, 3).astype(np.float32)
    down = np.linspace(0, 1.45, scene.height, dtype=np.float32)
    column = [np.interp(down, (0, 0.45, 0.9), stops[:, channel]) for channel in range(3)]
    scene.canvas[:] = np.stack(column, axis=1)[:, None]


def _paint_stars(scene: Scene) -> None:
    count = scene.rng.integers(35, 60)
    across = scene.rng.uniform(0.02, 0.98, count) * scene.width
    down = scene.rng.uniform(0.02, 0.52, count) * scene.height
    for x, y in zip(across, down, strict=True):
        radius = scene.side / 256 * scene.rng.uniform(0.8, 1.7)
        scene.disc((float(x), float(y)), radius, (250, 248, 225), softness=1.0)


def _paint_orb(
    scene: Scene, light: Light, spec: Landscape, horizon: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Sun or moon with its glow; returns its centre in pixels, or None on a moonless night."""
    if spec.time == "night" and not spec.moon:
        return None
    side = scene.side
    low = spec.time in ("sunset", "dawn")
    x = ((0.5 if low else 0.76) + rng.uniform(-0.008, 0.008)) * scene.width
    y = (horizon - 0.075 if low else 0.19 + rng.uniform(-0.008, 0.008)) * scene.height
    radius = side * (0.085 if low else 0.07)
    away = np.hypot(scene.grid[0] - x, scene.grid[1] - y) / side
    for reach, strength in ((0.16, 0.5), (0.45, 0.45)):
        scene.blend(strength * np.exp(-((away / reach) ** 2)), light.glow)
    scene.disc((float(x), float(y)), radius, light.orb)
    return float(x), float(y)


def _paint_clouds(scene: Scene, light: Light, horizon: float) -> None:
    rng, side = scene.rng, scene.side
    spread = np.linspace(0.15, 0.85, int(rng.integers(2, 4)) + (scene.width > 1.2 * scene.height))
    for share in spread:
        x = (share + rng.uniform(-0.08, 0.08)) * scene.width
        y = rng.uniform(0.1, horizon - 0.24) * scene.height
        size = side * rng.uniform(0.05, 0.075)
        puffs = ((-1.5, 0.1, 0.7), (-0.6, -0.3, 1.0), (0.5, -0.45, 1.1), (1.5, 0.0, 0.75))
        cover = np.zeros((scene.height, scene.width), np.float32)
        for dx, dy, scale in puffs:
            distance = np.hypot(scene.grid[0] - x - dx * size, scene.grid[1] - y - dy * size)
            cover = np.maximum(cover, np.clip(0.5 + scale * size - distance, 0, 1))
        flat = np.clip(y + 0.55 * size - scene.grid[1] + 0.5, 0, 1)
        shade = np.clip((scene.grid[1] - y) / (1.6 * size) + 0.5, 0, 1)[..., None]
        colour = np.array(light.cloud, np.float32) - shade * np.array((26, 22, 14), np.float32)
        scene.blend(cover * flat * 0.94, colour)
