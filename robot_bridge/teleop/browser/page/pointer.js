// Mouse, pen and fingers: hold the pad and the robot follows; let go and it holds. Beside the pad are strips for height and turning.

import { takeHold } from "./hold.js";
import { about, multiply } from "./math.js";

const METRES_PER_PIXEL = 0.0005, METRES_PER_WHEEL = 0.0002, RAD_PER_PIXEL = 0.006;

export class Pointer {
  /** `parts`: elements {pad, height, turn}; `phone`: how the phone is turned, and where it is, if that is known. */
  constructor(parts, { settings, phone }) {
    Object.assign(this, { settings, phone });
    this.name = "pointer";
    this.at = [0, 0, 0];
    this.yaw = 0;
    this.grip = 0;
    this.pointers = new Map();
    for (const [part, element] of Object.entries(parts)) {
      element.addEventListener("pointerdown", (event) => this.down(event, part, element));
      element.addEventListener("pointermove", (event) => this.move(event));
      for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) element.addEventListener(end, (event) => this.up(event));
      element.addEventListener("contextmenu", (event) => event.preventDefault());
    }
    parts.pad.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  down(event, part, element) {
    if (event.button !== 0) return;
    event.preventDefault();
    element.setPointerCapture(event.pointerId);
    if (!this.pointers.size) {
      this.grip = takeHold();
      this.scale = 2 * this.settings.speed; // one hold, one scale
      this.phone.takeHold();
    }
    this.pointers.set(event.pointerId, { part, element, x: event.clientX, y: event.clientY });
    element.classList.add("held");
  }

  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const dx = event.clientX - pointer.x, dy = event.clientY - pointer.y;
    pointer.x = event.clientX;
    pointer.y = event.clientY;
    const scale = this.scale * METRES_PER_PIXEL;
    if (pointer.part === "height") this.at[2] -= dy * scale;
    else if (pointer.part === "turn") this.yaw -= dx * RAD_PER_PIXEL;
    else if (!this.phone.moves) {
      this.at[0] -= dy * scale;
      this.at[1] -= dx * scale;
    }
  }

  wheel(event) {
    if (!this.pointers.size) return;
    event.preventDefault();
    if (event.shiftKey) this.yaw -= (event.deltaX || event.deltaY) * METRES_PER_WHEEL * 10;
    else this.at[2] -= event.deltaY * METRES_PER_WHEEL * this.scale;
  }

  up(event) {
    this.pointers.get(event.pointerId)?.element.classList.remove("held");
    this.pointers.delete(event.pointerId);
  }

  release() {
    for (const { element } of this.pointers.values()) element.classList.remove("held");
    this.pointers.clear();
  }

  hands() {
    if (!this.pointers.size) return [];
    const phone = this.phone.pose();
    if (phone === undefined) return []; // it should tell where it is and does not
    const [at, facing] = phone ?? [[0, 0, 0], [1, 0, 0, 0]];
    const position = this.at.map((v, i) => v + at[i] * this.scale);
    return [{ arm: this.settings.arm, grip: this.grip, pose: [...position, ...multiply(about([0, 0, 1], this.yaw), facing)] }];
  }
}
