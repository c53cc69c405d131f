"""Blender's side of the photo tier: draws the scene that `photo.py` describes. Nobody imports this file.

    PYTHON_WITH_BPY simulation/blender.py FOLDER

bpy is GPL-3.0 and wants numpy < 2, so this runs under a Python of its own and shares files alone. In FOLDER lie
`scene.json`, `meshes.npz` and the PNG files that the scene names; it writes `background.png`, the whole frame without
objects, and for each frame `0000.png`, the part of it that they change. Lengths in metres; Blender's world: x right, y
away from the viewer, z up.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix

SOFT = 4.0  # times the mean: no part of the surroundings is brighter than that
HAZE = 8  # a light that is brighter than this after scattering makes specks, not light


def new_mesh(name: str, vertices: np.ndarray, faces: np.ndarray, material: Any) -> Any:
    data = bpy.data.meshes.new(name)
    data.from_pydata(vertices.tolist(), [], faces.tolist())
    data.materials.append(material)
    thing = bpy.data.objects.new(name, data)
    bpy.context.collection.objects.link(thing)
    return thing


def new_material(folder: Path, look: dict[str, Any], kind: str) -> Any:
    """Paint with the colours of a picture: laid on by UV (`TexImage`), or by direction (`TexEnvironment`)."""
    material = bpy.data.materials.new(look["image"])
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    paint = nodes["Principled BSDF"]
    paint.inputs["Roughness"].default_value = look["roughness"]
    paint.inputs["Metallic"].default_value = look.get("metallic", 0.0)
    place = nodes.new("ShaderNodeTexCoord")
    picture = nodes.new(f"ShaderNode{kind}")
    picture.image = bpy.data.images.load(str(folder / look["image"]))
    links.new(place.outputs["UV" if kind == "TexImage" else "Object"], picture.inputs["Vector"])
    links.new(picture.outputs["Color"], paint.inputs["Base Color"])
    if kind == "TexImage":
        relief = nodes.new("ShaderNodeBump")  # what is darker lies deeper: joints, grain
        relief.inputs["Distance"].default_value = look["relief"]
        links.new(picture.outputs["Color"], relief.inputs["Height"])
        links.new(relief.outputs["Normal"], paint.inputs["Normal"])
    else:
        edge = nodes.new("ShaderNodeBevel")  # rounds how an edge shines, not where it is
        edge.samples, edge.inputs["Radius"].default_value = 4, look["edge"]
        links.new(edge.outputs["Normal"], paint.inputs["Normal"])
    return material


def add_still(folder: Path, name: str, look: dict[str, Any], arrays: Any) -> None:
    """Floor, wall or ramp: quadrangles with a place in the picture for each corner."""
    material = new_material(folder, look, "TexImage")
    thing = new_mesh(name, arrays[f"{name}_vertices"], arrays[f"{name}_faces"], material)
    layer = thing.data.uv_layers.new()
    layer.data.foreach_set("uv", arrays[f"{name}_uv"].astype(np.float32).ravel())


def add_body(folder: Path, name: str, look: dict[str, Any], arrays: Any) -> Any:
    material = new_material(folder, look, "TexEnvironment")
    thing = new_mesh(name, arrays[f"{name}_vertices"], arrays[f"{name}_faces"], material)
    thing.data.normals_split_custom_set(arrays[f"{name}_normals"].reshape(-1, 3).tolist())
    return thing


def light_up(environment: dict[str, Any], sun: dict[str, Any]) -> None:
    """Light from all around, of the strength asked for on average, and a lamp as wide as a window."""
    world = bpy.data.worlds.new("world")
    world.use_nodes = True
    bpy.context.scene.world = world
    nodes, links = world.node_tree.nodes, world.node_tree.links
    folder = Path(bpy.utils.system_resource("DATAFILES")) / "studiolights" / "world"
    image = bpy.data.images.load(str(folder / f"{environment['name']}.exr"))
    pixels = np.empty(image.size[0] * image.size[1] * 4, np.float32)
    image.pixels.foreach_get(pixels)
    colours = pixels.reshape(image.size[1], image.size[0], 4)[..., :3]
    share = np.cos((np.arange(len(colours)) + 0.5) / len(colours) * np.pi - np.pi / 2)
    share /= share.sum() * colours.shape[1]
    mean = np.einsum("ijc,i->", colours, share) / 3
    np.minimum(colours, SOFT * mean, out=colours)  # the lamp is the only thing that casts sharp shadows
    image.pixels.foreach_set(pixels)
    mean = np.einsum("ijc,i->", colours, share) / 3
    place, turn = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeMapping")
    turn.inputs["Rotation"].default_value = (0, 0, environment["turn"])
    around = nodes.new("ShaderNodeTexEnvironment")
    around.image = image
    links.new(place.outputs["Generated"], turn.inputs["Vector"])
    links.new(turn.outputs["Vector"], around.inputs["Vector"])
    links.new(around.outputs["Color"], nodes["Background"].inputs["Color"])
    nodes["Background"].inputs["Strength"].default_value = environment["strength"] / mean
    lamp = bpy.data.lights.new("sun", "SUN")
    lamp.energy, lamp.angle, lamp.color = sun["strength"], sun["angle"], sun["colour"]
    thing = bpy.data.objects.new("sun", lamp)
    bpy.context.collection.objects.link(thing)
    thing.matrix_world = Matrix(sun["pose"])


def add_camera(camera: dict[str, Any]) -> None:
    data = bpy.data.cameras.new("camera")
    data.sensor_fit, data.sensor_width, data.lens = "HORIZONTAL", 36.0, 36.0 * camera["focal"]
    thing = bpy.data.objects.new("camera", data)
    bpy.context.collection.objects.link(thing)
    thing.matrix_world = Matrix(camera["pose"])
    data.dof.use_dof, data.dof.focus_distance = True, camera["focus"]
    data.dof.aperture_fstop = data.lens / 1000 / camera["aperture"]
    bpy.context.scene.camera = thing


def prepare(content: dict[str, Any]) -> None:
    """Cycles on one thread, cleaned of noise, the same picture each time."""
    scene = bpy.context.scene
    render, cycles = scene.render, scene.cycles
    render.engine = "CYCLES"
    render.resolution_x = render.resolution_y = content["size_px"]
    render.threads_mode, render.threads = "FIXED", 1
    render.use_persistent_data = True
    render.image_settings.file_format, render.image_settings.color_mode = "PNG", "RGB"
    render.dither_intensity = 0
    cycles.device, cycles.seed = "CPU", content["seed"]
    cycles.use_adaptive_sampling = False
    cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 3, 2, 2
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.sample_clamp_indirect = HAZE
    scene.view_settings.view_transform = content["view_transform"]
    scene.view_settings.look = content["look"]
    scene.view_settings.exposure = content["exposure"]


def shoot(path: Path, samples: int, border: list[int] | None, size: int) -> None:
    """One picture; `border`: columns from, to, and rows from, to, counted from the top."""
    scene = bpy.context.scene
    render = scene.render
    render.use_border = render.use_crop_to_border = border is not None
    if border is not None:  # a hundredth of a pixel more, since Blender cuts off what follows the point
        left, right, top, bottom = border
        render.border_min_x, render.border_max_x = (left + 0.01) / size, (right + 0.01) / size
        render.border_min_y, render.border_max_y = (size - bottom + 0.01) / size, (size - top + 0.01) / size
    scene.cycles.samples = samples
    render.filepath = str(path)
    bpy.ops.render.render(write_still=True)


def main(folder: Path) -> None:
    parent = os.getppid()
    content, arrays = json.loads((folder / "scene.json").read_text()), np.load(folder / "meshes.npz")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    prepare(content)
    add_camera(content["camera"])
    light_up(content["environment"], content["sun"])
    for name, look in content["stills"].items():
        add_still(folder, name, look, arrays)
    bodies = [
        (add_body(folder, name, look, arrays), arrays[f"{name}_poses"]) for name, look in content["bodies"].items()
    ]
    for body, _ in bodies:
        body.hide_render = True
    shoot(folder / "background.png", content["background_samples"], None, content["size_px"])
    for body, _ in bodies:
        body.hide_render = False
    for number, border in enumerate(content["borders"]):
        if os.getppid() != parent:
            raise SystemExit("whoever asked for these pictures is gone")
        for body, poses in bodies:
            body.matrix_world = Matrix(poses[number])
        shoot(folder / f"{number:04d}.png", content["samples"], border, content["size_px"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
