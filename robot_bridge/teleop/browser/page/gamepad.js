// A gamepad with the standard layout. The left shoulder button is the dead man's: the robot moves while it is held.

import { takeHold } from "./hold.js";

const DEAD_ZONE = 0.15;
const HOLD = 4, OTHER_ARM = 5, OPEN = 6, CLOSE = 7;
const WORDS = { 0: "success", 1: "failure", 2: "undo", 3: "last_success", 8: "discard", 9: "pause" };

export class Gamepads {
  constructor({ gripper, settings, word }) {
    Object.assign(this, { gripper, settings, word });
    this.name = "gamepad";
    this.before = new Set();
    this.grip = 0;
    this.released = false;
  }

  pad() {
    return [...(navigator.getGamepads?.() ?? [])].find((pad) => pad?.connected && pad.mapping === "standard");
  }

  /** Look at the buttons; once per frame. */
  poll() {
    const pad = this.pad();
    const down = new Set(pad ? pad.buttons.flatMap((button, i) => (button.pressed ? [i] : [])) : []);
    const fresh = [...down].filter((i) => !this.before.has(i));
    this.before = down;
    if (fresh.includes(OTHER_ARM)) this.settings.nextArm();
    for (const i of fresh) if (i in WORDS) this.word(WORDS[i]);
    if (!down.has(HOLD)) this.grip = 0;
    else if (fresh.includes(HOLD)) this.grip = takeHold();
    if (this.grip && down.has(CLOSE)) this.gripper.set(this.settings.arm, 0);
    else if (this.grip && down.has(OPEN)) this.gripper.set(this.settings.arm, 1);
    return pad;
  }

  release() {
    this.grip = 0;
  }

  hands() {
    const pad = this.pad();
    if (!pad || !this.grip) return [];
    const axis = (i) => (Math.abs(pad.axes[i] ?? 0) < DEAD_ZONE ? 0 : Math.max(-1, Math.min(1, pad.axes[i])));
    const rate = [-axis(1), -axis(0), -axis(3), 0, 0, -axis(2)].map((v) => v * this.settings.speed);
    return [{ arm: this.settings.arm, grip: this.grip, rate }];
  }
}
