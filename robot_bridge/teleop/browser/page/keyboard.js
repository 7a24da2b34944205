// Keys: the robot moves while one is down. The letters are those of the terminal.

import { takeHold } from "./hold.js";

const MOTIONS = {
  KeyI: [0, 1], KeyK: [0, -1], KeyJ: [1, 1], KeyL: [1, -1], KeyU: [2, 1], KeyO: [2, -1], KeyN: [5, 1], KeyM: [5, -1],
  ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [1, 1], ArrowRight: [1, -1], PageUp: [2, 1], PageDown: [2, -1],
};
const WORDS = { KeyY: "success", KeyX: "failure", KeyR: "discard", KeyP: "pause", KeyQ: "stop" };

export class Keyboard {
  constructor({ gripper, settings, word, stop }) {
    Object.assign(this, { gripper, settings, word, stop });
    this.name = "keyboard";
    this.down = new Set();
    this.grip = 0;
    addEventListener("keydown", (event) => this.press(event));
    addEventListener("keyup", (event) => this.letGo(event.code));
  }

  press(event) {
    if (event.code === "Escape") this.stop();
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.matches?.("input, select")) return;
    if (event.code in MOTIONS) {
      event.preventDefault();
      if (event.repeat) return;
      if (!this.down.size) this.grip = takeHold();
      this.down.add(event.code);
    } else if (event.repeat) {
      return;
    } else if (event.code === "KeyG" || event.code === "KeyH") {
      this.gripper.set(this.settings.arm, event.code === "KeyG" ? 0 : 1, true);
    } else if (event.code === "KeyB") {
      this.settings.nextArm();
    } else if (event.code in WORDS) {
      this.word(event.code === "KeyR" && event.shiftKey ? "again" : WORDS[event.code]);
    }
  }

  letGo(code) {
    this.down.delete(code);
  }

  release() {
    this.down.clear();
  }

  hands() {
    if (!this.down.size) return [];
    const rate = [0, 0, 0, 0, 0, 0];
    for (const code of this.down) {
      const [element, direction] = MOTIONS[code];
      rate[element] += direction * this.settings.speed;
    }
    return [{ arm: this.settings.arm, grip: this.grip, rate: rate.map((v) => Math.max(-1, Math.min(1, v))) }];
  }
}
