"""Golden pictures of the procedural world: python make.py <folder of world.py>. Needs numpy and Pillow.

Every random draw of the staging is taken from a fixed list of fractions in 0 .. 1, in order, which the TypeScript test plays too."""
import json
import os
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, sys.argv[1])
import world


class Played:
    def __init__(self, fractions):
        self.left = list(fractions)

    def uniform(self, low, high):
        return low + (high - low) * self.left.pop(0)

    def normal(self, mean, deviation, count):
        return mean + deviation * np.array([2 * self.left.pop(0) - 1 for _ in range(count)])

    def choice(self, of):
        return of[min(int(self.left.pop(0) * len(of)), len(of) - 1)]


def solid(shape, colour, material="", size=""):
    return dict(shape=shape, colour=colour, material=material, size=size)


CASES = {
    "pair": dict(objs=[solid("cylinder", "red", "striped"), solid("gem", "blue", "metal", "large")], rel="left of", floor="sand", light="", style=""),
    "behind": dict(objs=[solid("ring", "purple", "checkered"), solid("cone", "yellow", "shiny", "small")], rel="behind", floor="green", light="at sunset", style="a watercolor of"),
    "stack": dict(objs=[solid("pyramid", "orange"), solid("cube", "cyan", "checkered")], rel="on top of", floor="gray", light="in a studio", style="a sketch of"),
    "neon": dict(objs=[solid("pill", "pink")], rel=None, floor="blue", light="at night", style="a neon"),
    "cartoon": dict(objs=[solid("sphere", "white", "metal")], rel=None, floor="red", light="", style="a cartoon of"),
    "blueprint": dict(objs=[solid("pyramid", "brown")], rel=None, floor="white", light="", style="a blueprint of"),
    "risograph": dict(objs=[solid("cube", "green", "striped")], rel=None, floor="brown", light="in a studio", style="a risograph of"),
    "mushroom": dict(objs=[solid("sphere", "red")], rel=None, floor="green", light="", style="", parts="mushroom"),
}
here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(1)
cases = {}
for name, scene in CASES.items():
    fractions = [round(float(f), 4) for f in rng.random(16)]
    spec = dict(scene)
    if "parts" in spec:
        spec["parts"] = world.OBJECTS[spec["parts"]]
    picture, depth, edges = world.render(spec, Played(fractions))
    planes = {"rgb": picture, "depth": depth, "edges": edges}
    for kind, plane in planes.items():
        Image.fromarray((plane * 255 + 0.5).astype(np.uint8)).save(os.path.join(here, f"{name}.{kind}.png"), optimize=True)
    cases[name] = dict(scene, fractions=fractions)
with open(os.path.join(here, "scenes.json"), "w") as file:
    json.dump(cases, file, indent=1)
