"""Names of Meta-World's tasks and cameras, and what the robot is told; knows no simulator, so it imports at once."""

from __future__ import annotations

from collections.abc import Sequence

from accerl.config import ConfigError, suggest

INSTRUCTIONS = {
    "assembly-v3": "put the ring on the peg",
    "basketball-v3": "drop the ball into the basket",
    "bin-picking-v3": "move the block to the other bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
    "button-press-v3": "press the button on the front",
    "button-press-wall-v3": "reach over the wall and press the button on the front",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine to the mark",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet to the left",
    "faucet-open-v3": "turn the faucet to the right",
    "hammer-v3": "hit the nail with the hammer",
    "hand-insert-v3": "put the gripper into the hole at the mark",
    "handle-press-side-v3": "press the handle at the side down",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle at the side up",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole of the box",
    "peg-unplug-side-v3": "pull the peg out of the box",
    "pick-out-of-hole-v3": "lift the block out of the hole to the mark",
    "pick-place-v3": "lift the block to the mark",
    "pick-place-wall-v3": "lift the block over the wall to the mark",
    "plate-slide-back-side-v3": "slide the plate out of the goal sideways to the mark",
    "plate-slide-back-v3": "slide the plate back out of the goal to the mark",
    "plate-slide-side-v3": "slide the plate sideways into the goal",
    "plate-slide-v3": "slide the plate into the goal",
    "push-back-v3": "pull the block back to the mark",
    "push-v3": "push the block to the mark",
    "push-wall-v3": "push the block around the wall to the mark",
    "reach-v3": "move the gripper to the mark",
    "reach-wall-v3": "move the gripper over the wall to the mark",
    "shelf-place-v3": "put the block on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pull the thermos to the mark with the stick",
    "stick-push-v3": "push the thermos to the mark with the stick",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "slide the window shut",
    "window-open-v3": "slide the window open",
}
"""Task to sentence. Opposite tasks of one scene differ in the words that matter; left and right are the robot's own.

"The mark" is Meta-World's goal site. It is drawn in the tasks that speak of it, whose goal is a point in free space;
elsewhere it would only tell which of two opposite tasks is meant.
"""

FREE_CAMERAS = {
    "workspace": ((0.0, 0.68, 0.15), 1.0, 145.0, -35.0),
    "opposite": ((0.0, 0.68, 0.15), 1.0, 35.0, -35.0),
    "overhead": ((0.0, 0.68, 0.05), 1.1, 90.0, -80.0),
}
"""Name to the point looked at, distance (metres), azimuth and elevation (degrees)."""

MODEL_CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
"""Cameras that every model of Meta-World defines."""


def check(tasks: Sequence[str], cameras: Sequence[str]) -> None:
    """Raises ConfigError at the first unknown task or camera."""
    known_cameras = [*FREE_CAMERAS, *MODEL_CAMERAS]
    for task in tasks:
        if task not in INSTRUCTIONS:
            raise ConfigError(f"env.tasks: unknown task {task!r}; {suggest(task, list(INSTRUCTIONS))}")
    for camera in cameras:
        if camera not in known_cameras:
            raise ConfigError(f"env.cameras: unknown camera {camera!r}; {suggest(camera, known_cameras)}")
