// Taking hold: every time the person takes hold of the robot the number grows, and where they let go there is none.

let grips = 0;

/** A hold that has just begun. */
export const takeHold = () => ++grips;

/** What the person has lately done to the grippers, by whatever device: only what is fresh is said, the rest is kept as it is. */
export class Gripper {
  constructor() {
    this.wish = new Map();
    this.pulse = new Map();
  }

  /** Open (1), close (0) or something between; `pulse` holds the robot for a moment, for buttons that are no dead-man switch. */
  set(arm, open, pulse = false) {
    const now = performance.now();
    this.wish.set(arm, { open, until: now + 400 });
    if (pulse) this.pulse.set(arm, { grip: takeHold(), until: now + 400 });
  }

  /** Share of the opening that is wished for now; null keeps it. */
  open(arm) {
    const wish = this.wish.get(arm);
    return wish && performance.now() < wish.until ? wish.open : null;
  }

  /** Hands of pressed buttons, which move nothing but a gripper. */
  hands() {
    const now = performance.now();
    return [...this.pulse]
      .filter(([, pulse]) => now < pulse.until)
      .map(([arm, pulse]) => ({ arm, grip: pulse.grip, rate: [0, 0, 0, 0, 0, 0] }));
  }

  release() {
    this.pulse.clear();
    this.wish.clear();
  }
}
